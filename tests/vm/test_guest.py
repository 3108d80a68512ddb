"""The guest itself: what comes back from it, and what happens when it goes wrong."""

from __future__ import annotations

import pytest

from tests.vm.guest import GuestError, run_in_guest

pytestmark = pytest.mark.usefixtures("bootable")


def test_a_script_runs_with_a_kernel_that_has_ipvlan() -> None:
    done = run_in_guest(
        "ip link add m0 type veth peer name w0 && ip link add link m0 name s0 type ipvlan mode l2 private\n"
        "ip -d link show s0\necho an error >&2\ntouch /etc/only-here\nexit 7",
        modules=("veth", "ipvlan"),
    )
    assert done.exit_code == 7
    assert "ipvlan" in done.stdout and "private" in done.stdout
    assert done.stderr == "an error\n"


def test_a_kernel_that_complains_or_hangs_is_an_error() -> None:
    with pytest.raises(GuestError, match=r"(?s)kernel complained.*sysrq: Trigger a crash"):
        run_in_guest("echo c >/proc/sysrq-trigger")
    with pytest.raises(GuestError, match="did not come to the end"):
        run_in_guest("sleep 60", timeout=1.0)


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(GuestError, match="no module no-such-thing"):
        run_in_guest("true", modules=("no-such-thing",))
