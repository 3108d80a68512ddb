"""The command line tool `ipvsw`: words -> API calls; tables, --json, exit codes (0 done, 1 failed, 2 usage).

It starts on every TAB of a shell, so it imports little: no event loop, no HTTP server.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TypeVar

import msgspec

from ipvsw import __version__
from ipvsw.cli import output
from ipvsw.cli.complete import candidates
from ipvsw.cli.help import HELP
from ipvsw.cli.words import Asked, Usage, understand
from ipvsw.client import ApiError, Client, Record, Unreachable
from ipvsw.model import AddressStatus, LeaseStatus, PortStatus, SwitchStats, SwitchStatus

T = TypeVar("T")


class Failed(Exception):
    """One line for stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:2] == ["completion", "words"]:
            text = "\n".join(candidates(arguments[2:]))
        else:
            asked = understand(arguments)
            text = _COMMANDS[asked.command](asked, Client(asked.socket))
        if text:
            print(text.rstrip("\n"))
        sys.stdout.flush()
        return 0
    except Usage as error:
        hint = f"ipvsw {error.command} --help" if error.command else "ipvsw --help"
        print(f"ipvsw: {error} (see {hint})", file=sys.stderr)
        return 2
    except (Failed, ApiError, Unreachable) as error:
        print(f"ipvsw: {error}", file=sys.stderr)
        return 1
    except msgspec.ValidationError as error:
        print(f"ipvsw: the daemon's answer is of another version than {__version__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 1
    except KeyboardInterrupt:
        return 1


# ---------------------------------------------------------------------------- commands


def _help(asked: Asked, client: Client) -> str:
    return HELP.get(asked.name or "", HELP[""])


def _version(asked: Asked, client: Client) -> str:
    return f"ipvsw {__version__}"


def _show(asked: Asked, client: Client) -> str:
    found = client.switches() if asked.name is None else [client.switch(asked.name)]
    return _json(found) if asked.json else output.show(_typed(found, list[SwitchStatus]))


def _stats(asked: Asked, client: Client) -> str:
    found = client.stats()
    totals = asked.name is None or any(one["name"] == asked.name for one in found)
    if asked.name is not None and totals:
        found = [one for one in found if one["name"] == asked.name]
    elif asked.name is not None:
        found = [
            one | {"ports": {port: one["ports"][port]}}
            for one in found
            if (port := _port_of(one["name"], one["ports"], asked.name)) is not None
        ]
    if asked.name is not None and not found:
        raise Failed(f"there is no switch or port {json.dumps(asked.name)}")
    if asked.json:
        return _json(found)
    masters = {one["name"]: one["master"] for one in client.switches()} if totals else {}
    for one in found:
        masters.setdefault(one["name"], "")
    return output.stats(_typed(found, list[SwitchStats]), masters, zeros=asked.all, totals=totals)


def _address(asked: Asked, client: Client) -> str:
    found = client.addresses()
    if asked.name is not None:
        wanted = _selected(_typed(client.switches(), list[SwitchStatus]), asked.name)
        pairs = {(switch.name, port.name) for switch, port in wanted}
        found = [one for one in found if (one["switch"], one["port"]) in pairs]
    return _json(found) if asked.json else output.addresses(_typed(found, list[AddressStatus]))


def _lease(asked: Asked, client: Client) -> str:
    found = client.leases()
    if asked.name is not None:
        wanted = _selected(_typed(client.switches(), list[SwitchStatus]), asked.name)
        pairs = {(switch.name, port.name) for switch, port in wanted}
        found = [one for one in found if (one["switch"], one["port"]) in pairs]
    return _json(found) if asked.json else output.leases(_typed(found, list[LeaseStatus]))


def _link_show(asked: Asked, client: Client) -> str:
    found = _selected(_typed(client.switches(), list[SwitchStatus]), asked.name)
    if asked.json:
        return _json([output.link_record(switch, port) for switch, port in found])
    return "\n".join(output.link(switch, port) for switch, port in found)


def _link_add(asked: Asked, client: Client) -> str:
    added = client.add_port(**asked.port, mode=asked.mode, flag=asked.flag)
    return _json(added) if asked.json else ""


def _link_set(asked: Asked, client: Client) -> str:
    changed = client.set_mode(asked.name or "", mode=asked.mode, flag=asked.flag)
    return _json(changed) if asked.json else ""


def _link_delete(asked: Asked, client: Client) -> str:
    client.delete_port(asked.name or "")
    return ""


def _exec(asked: Asked, client: Client) -> str:
    """Doesn't return: the command takes this process."""
    handed, fds = client.hand_over(asked.name or "")
    for fd in fds:
        os.set_inheritable(fd, True)
    words = {"fd": str(fds[0]), "fds": ":".join(map(str, fds)), "mac": handed["mac"], "mtu": str(handed["mtu"])}
    argv = [re.sub(r"\{(fds?|mac|mtu)\}", lambda found: words[found[1]], word) for word in asked.argv]
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise Failed(f"{argv[0]}: {error.strerror}") from None


def _attach(asked: Asked, client: Client) -> str:
    from ipvsw.vmm import qmp  # it has an event loop, which would cost every TAB

    handed, fds = client.hand_over(asked.name or "")
    try:
        qmp.attach(
            asked.options["qmp"],
            fds,
            kind=handed["kind"],
            name=_device(asked, handed["port"]),
            device=asked.options.get("device", "virtio-net-pci"),
            mac=asked.options.get("mac") or handed["mac"],
            bus=asked.options.get("bus"),
        )
    except qmp.QmpError as error:
        raise Failed(str(error)) from None
    finally:
        for fd in fds:
            os.close(fd)
    return _json(handed) if asked.json else ""


def _detach(asked: Asked, client: Client) -> str:
    from ipvsw.vmm import qmp

    try:
        qmp.detach(asked.options["qmp"], _device(asked, asked.name or ""))
    except qmp.QmpError as error:
        raise Failed(str(error)) from None
    return ""


def _device(asked: Asked, port: str) -> str:
    """What the device and its back end are called in QEMU, if nobody says otherwise: after the port."""
    bare = port.rpartition("/")[2]
    return asked.options.get("id") or "ipvsw-" + re.sub(r"[^A-Za-z0-9._-]", "-", bare)


def _reload(asked: Asked, client: Client) -> str:
    actions = client.reload()
    return _json(actions) if asked.json else "\n".join(actions) or "nothing has changed"


def _completion(asked: Asked, client: Client) -> str:
    return resources.files(__package__).joinpath("completions", f"ipvsw.{asked.name}").read_text()


_COMMANDS: dict[str, Callable[[Asked, Client], str]] = {
    "help": _help,
    "version": _version,
    "show": _show,
    "stats": _stats,
    "address": _address,
    "lease": _lease,
    "link show": _link_show,
    "link add": _link_add,
    "link set": _link_set,
    "link delete": _link_delete,
    "exec": _exec,
    "attach": _attach,
    "detach": _detach,
    "reload": _reload,
    "completion": _completion,
}


# ---------------------------------------------------------------------------- what they share


def _selected(switches: Sequence[SwitchStatus], name: str | None) -> list[tuple[SwitchStatus, PortStatus]]:
    """All ports; those of the switch `name`; or those named PORT or SWITCH/PORT. Errors: Failed for none."""
    every = [(switch, port) for switch in switches for port in switch.ports]
    if name is None:
        return every
    if any(switch.name == name for switch in switches):
        return [(switch, port) for switch, port in every if switch.name == name]
    found = [(switch, port) for switch, port in every if _port_of(switch.name, (port.name,), name)]
    if not found:
        raise Failed(f"there is no switch or port {json.dumps(name)}")
    return found


def _port_of(switch: str, ports: Sequence[str] | Record, name: str) -> str | None:
    """The one of a switch's `ports` that PORT or SWITCH/PORT names."""
    wanted, slash, port = name.rpartition("/")
    return port if port in ports and (not slash or wanted == switch) else None


def _typed(found: object, kind: type[T]) -> T:
    return msgspec.convert(found, kind)


def _json(value: object) -> str:
    return json.dumps(value, indent=2)
