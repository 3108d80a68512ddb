"""What a network card does with multicast frames, in the thread's namespace. Errors: OSError."""

from __future__ import annotations

import os
from pathlib import Path

# Virtual functions of which the card refuses more groups than that, as long as they aren't trusted. In the drivers of
# the cards: IGB_MAX_VF_MC_ENTRIES, IXGBE_MAX_VF_MC_ENTRIES; I40E_VC_MAX_MAC_ADDR_PER_VF and ICE_MAX_MACADDR_PER_VF, of
# which two are for the function itself.
LIMITS = {"igbvf": 30, "ixgbevf": 30, "iavf": 16}


def groups(device: str) -> int:
    """How many group MAC addresses it listens to, for whomever."""
    rows = (line.split() for line in Path("/proc/thread-self/net/dev_mcast").read_text().splitlines())
    return sum(row[1] == device for row in rows)


def group_limit(device: str, root: Path) -> int:
    """How many it may listen to, if it is one of which that is known; 0 if not. `root` is that of sysfs's devices."""
    try:
        driver = os.readlink(root / device / "device/driver")
    except OSError:  # it is no hardware
        return 0
    return LIMITS.get(Path(driver).name, 0)
