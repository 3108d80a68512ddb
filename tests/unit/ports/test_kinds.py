"""Which backend a port has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipvsw.linux.devices import veth
from ipvsw.model import Device, PortConfig
from ipvsw.ports import kinds


@pytest.mark.parametrize(
    ("device", "supported", "made", "path"),
    [
        (Device.TAP, True, Device.TAP, ""),
        (Device.VETH, False, Device.VETH, ""),
        (Device.AUTO, True, Device.VETH, ""),
        (Device.AUTO, False, Device.TAP, "slow (the kernel has no veth)"),
    ],
)
def test_the_kernel_says_what_auto_is(
    monkeypatch: pytest.MonkeyPatch, device: Device, supported: bool, made: Device, path: str
) -> None:
    def port(env: object, config: PortConfig, make_backend: Any) -> Any:
        return make_backend(SimpleNamespace(config=config, env=SimpleNamespace(switch="lan")))

    monkeypatch.setattr(kinds, "Port", port)
    monkeypatch.setattr(veth, "supported", lambda: supported)
    backend = cast(Any, kinds.configured_port)(None, PortConfig(name="a", ifname="a", netns="a"), device)
    assert (backend.device, backend.path) == (made, path)
