"""What a user who is not root may attach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from ipvsw.daemon.switches import USER_PORTS, Switches
from ipvsw.linux.peercred import Peer
from ipvsw.model import Forbidden, Refused, SwitchConfig
from ipvsw.switch.switch import Switch

USER, OTHER = Peer(1000), Peer(100)


def switches(*labels: str) -> Switches:
    """One that both users may attach to, with a port for each label."""
    ports = {str(number): SimpleNamespace(config=SimpleNamespace(label=label)) for number, label in enumerate(labels)}
    config = SwitchConfig(name="lan", master="m0", users=(1000, 100))
    return Switches(lan=cast("Switch", SimpleNamespace(config=config, ports=ports, links={})))


def test_nobody_fills_a_switch_alone() -> None:
    full = switches(*["user:1000", "user:1000:x"] * (USER_PORTS // 2), "cni:1000")
    with pytest.raises(Refused, match=f"this user has {USER_PORTS} ports already"):
        full.check_user("m0", USER)
    full.check_user("m0", OTHER)
    switches(*["user:1000"] * (USER_PORTS - 1)).check_user("m0", USER)


def test_a_switch_says_which_users() -> None:
    with pytest.raises(Forbidden, match="this user may not attach to m0"):
        switches().check_user("m0", Peer(7))
    with pytest.raises(Forbidden, match="this user may not attach to m1"):
        switches().check_user("m1", USER)
