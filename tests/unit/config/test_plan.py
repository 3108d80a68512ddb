"""plan.diff: applying its actions must turn one configuration into the other, in a safe order."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsw.config.file import parse
from ipvsw.config.plan import (
    Action,
    AddPort,
    AddSwitch,
    ChangePort,
    Postpone,
    RemovePort,
    RemoveSwitch,
    SetMode,
    diff,
)
from ipvsw.model import (
    FOLLOW,
    Config,
    DaemonConfig,
    Device,
    Export,
    Flag,
    HostAccess,
    Kind,
    L3Output,
    Mode,
    PortConfig,
    SwitchConfig,
)
from tests.support.effort import calls


def port(name: str = "p", **fields: object) -> PortConfig:
    return msgspec.structs.replace(PortConfig(name=name, ifname=name, netns="ns-" + name), **fields)


def switch(name: str = "lan", *ports: PortConfig, **fields: object) -> SwitchConfig:
    return msgspec.structs.replace(SwitchConfig(name=name, master="eth0", ports=ports), **fields)


def dispatch(config: Config, actions: tuple[Action, ...]) -> Config:
    """The obvious interpreter. It refuses what the daemon could not do."""
    switches = {item.name: item for item in config.switches}
    for action in actions:
        match action:
            case RemoveSwitch():
                del switches[action.switch]
            case AddSwitch():
                taken = {(item.master, item.netns) for item in switches.values()}
                assert action.switch.name not in switches and (action.switch.master, action.switch.netns) not in taken
                assert not action.switch.ports
                switches[action.switch.name] = action.switch
            case SetMode():
                own = switches[action.switch.name]
                assert not action.switch.ports
                assert (action.switch.master, action.switch.netns) == (own.master, own.netns)
                switches[own.name] = msgspec.structs.replace(action.switch, ports=own.ports)
            case RemovePort() | ChangePort() | AddPort():
                own = switches[action.switch]
                ports = {item.name: item for item in own.ports}
                if isinstance(action, RemovePort):
                    del ports[action.port]
                elif isinstance(action, ChangePort):
                    assert ports[action.old.name] == action.old and action.old.name == action.new.name
                    assert (action.old.netns, action.old.ifname) == (action.new.netns, action.new.ifname)
                    ports[action.new.name] = action.new
                else:
                    every = [item for each in switches.values() for item in each.ports]
                    assert (action.port.netns, action.port.ifname) not in {(item.netns, item.ifname) for item in every}
                    assert action.port.name not in ports
                    ports[action.port.name] = action.port
                switches[action.switch] = msgspec.structs.replace(own, ports=tuple(ports.values()))
    return Config(daemon=config.daemon, switches=tuple(switches.values()))


def canonical(config: Config) -> dict[str, tuple[SwitchConfig, dict[str, PortConfig]]]:
    return {
        item.name: (msgspec.structs.replace(item, ports=()), {each.name: each for each in item.ports})
        for item in config.switches
    }


ADDRESSES = [ip_interface(text) for text in ("10.0.0.1/24", "10.0.0.2/24", "fd00::1/64")]


@st.composite
def configs(draw: st.DrawFn) -> Config:
    switches = []
    places = draw(st.permutations([(ns, name) for ns in ("a", "b") for name in ("e", "f")]))
    for name, master in zip("xyz", draw(st.permutations(("eth0", "eth1", "eth2"))), strict=True):
        if not draw(st.booleans()):
            continue
        ports = []
        for number in draw(st.sets(st.integers(0, 2))):
            if not places:
                break
            netns, ifname = places.pop()
            addresses = tuple(draw(st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=2)))
            mtu = draw(st.sampled_from((None, 1400, 1500)))
            ports.append(PortConfig(name=f"p{number}", ifname=ifname, netns=netns, addresses=addresses, mtu=mtu))
        switches.append(
            SwitchConfig(name=name, master=master, flag=draw(st.sampled_from(list(Flag))), ports=tuple(ports))
        )
    return Config(switches=tuple(switches))


@given(configs(), configs())
def test_actions_lead_to_what_is_wanted(current: Config, wanted: Config) -> None:
    actions = diff(current, wanted)
    assert canonical(dispatch(current, actions)) == canonical(wanted)
    assert all("\n" not in str(action) for action in actions)


@given(configs())
def test_nothing_to_do(config: Config) -> None:
    assert diff(config, config) == ()


def test_a_port_changes_in_place() -> None:
    old = port(addresses=(ADDRESSES[0],))
    new = port(addresses=(ADDRESSES[1],), gateway=(ip_address("10.0.0.9"),), mtu=1400)
    actions = diff(Config(switches=(switch("lan", old),)), Config(switches=(switch("lan", new),)))
    assert actions == (ChangePort("lan", old, new),)
    assert str(actions[0]) == (
        "change port lan/p: address -10.0.0.1/24, address +10.0.0.2/24, gateway +10.0.0.9, mtu 1400"
    )


@pytest.mark.parametrize("change", [{"netns": "other"}, {"ifname": "eth0"}])
def test_a_port_that_moves_is_made_anew(change: dict[str, str]) -> None:
    new = port(**change)
    actions = diff(Config(switches=(switch("lan", port()),)), Config(switches=(switch("lan", new),)))
    assert actions == (RemovePort("lan", "p"), AddPort("lan", new))


@pytest.mark.parametrize("change", [{"netns": "other"}, {"master": "eth9"}])
def test_a_switch_that_moves_is_made_anew(change: dict[str, str]) -> None:
    new = switch("lan", port(), **change)
    actions = diff(Config(switches=(switch("lan", port()),)), Config(switches=(new,)))
    assert actions == (RemoveSwitch("lan"), AddSwitch(switch("lan", **change)), AddPort("lan", port()))


def test_a_master_is_given_up_before_another_switch_takes_it() -> None:
    actions = diff(Config(switches=(switch("b", port()),)), Config(switches=(switch("a", port()),)))
    assert [str(action) for action in actions] == [
        "remove switch b",
        "add switch a on eth0, l2 bridge",
        "add port a/p as p in ns-p",
    ]


def test_mode_belongs_to_the_switch() -> None:
    changes: dict[str, Any] = {"mode": Mode.L3, "flag": Flag.VEPA, "l3_output": L3Output.HOST}
    changes |= {"host_access": HostAccess.BOTH, "multicast": (ip_address("224.0.0.251"),)}
    changes["export"] = Export.ROUTES
    wanted = switch("lan", port(), **changes)
    actions = diff(Config(switches=(switch("lan", port()),)), Config(switches=(wanted,)))
    assert actions == (SetMode(switch("lan", **changes)),)
    assert str(actions[0]) == (
        "set switch lan: mode l3, flag vepa, l3_output host, host_access both, multicast 224.0.0.251, export routes,"
        " guard by the port's kind, device tap, users none"
    )
    for name, value in changes.items():
        wanted = switch("lan", port(), **{name: value})
        assert diff(Config(switches=(switch("lan", port()),)), Config(switches=(wanted,))) == (
            SetMode(switch("lan", **{name: value})),
        )


def test_the_device_of_a_switch_is_that_of_its_ports_which_have_none() -> None:
    own, none = port("own", device=Device.TAP), port("none")
    others = port("moved", netns=FOLLOW), port("numbered", index=7), port("vm", kind=Kind.TAP)
    wanted = switch("lan", own, none, *others, device=Device.AUTO)
    actions = diff(Config(switches=(switch("lan", own, none, *others),)), Config(switches=(wanted,)))
    assert [str(action) for action in actions] == [
        "remove port lan/none",
        str(SetMode(switch("lan", device=Device.AUTO))),
        "add port lan/none as none in ns-none",
    ]
    said = [msgspec.structs.replace(none, device=Device.AUTO) if one is none else one for one in (own, none, *others)]
    actions = diff(Config(switches=(wanted,)), Config(switches=(switch("lan", *said, device=Device.AUTO),)))
    assert not any(isinstance(action, RemovePort | AddPort) for action in actions)


def test_settings_of_the_process_wait() -> None:
    actions = diff(Config(), Config(daemon=DaemonConfig(workers=4)))
    assert actions == (Postpone("workers", "4"),)
    assert str(actions[0]) == "daemon.workers = 4 needs a restart"


def test_a_large_file_is_read_again_quickly() -> None:
    """Its addresses are parsed once for all readings, and one that did not change is the same object to the plan."""

    def text(mtu: int) -> str:
        addresses = [f'"10.{k // 62500}.{k // 250 % 250}.{k % 250 + 1}/8"' for k in range(20_000)]
        ports = (
            f"[[switch.port]]\nname = 'p{p}'\naddresses = [{','.join(addresses[p * 100 : p * 100 + 100])}]\n"
            for p in range(200)
        )
        return f"[[switch]]\nmaster = 'm0'\n{''.join(ports)}mtu = {mtu}\n"

    configs: list[Config] = []
    first, again = (calls(lambda mtu=mtu: configs.append(parse(text(mtu)))) for mtu in (1400, 1300))
    changes: list[Action] = []
    again += calls(lambda: changes.extend(diff(*configs)))
    assert [str(change) for change in changes] == ["change port m0/p199: mtu 1300"]
    assert again < first / 2
