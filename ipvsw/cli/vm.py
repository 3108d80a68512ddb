"""`exec`, `attach` and `detach`: a port into a virtual machine, and out of it."""

from __future__ import annotations

import os
import re
from typing import Any

from ipvsw.cli.command import Asked, Command, Failed, Option, Usage, first, read_port, silent
from ipvsw.cli.complete import Names


def _read_exec(words: list[str], asked: Asked) -> None:
    read_port(words, asked)
    if not asked.argv:
        raise Usage("the command is missing: exec PORT -- COMMAND", asked.command)


def _exec(asked: Asked) -> None:
    """Does not return: the command takes this process."""
    handed, fds = asked.client.hand_over(asked.required_name)
    for fd in fds:
        os.set_inheritable(fd, True)
    words = {"fd": str(fds[0]), "fds": ":".join(map(str, fds)), "mac": handed["mac"], "mtu": str(handed["mtu"])}
    argv = [re.sub(r"\{(fds?|mac|mtu)\}", lambda found: words[found[1]], word) for word in asked.argv]
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise Failed(f"{argv[0]}: {error.strerror}") from None


def _attach(asked: Asked) -> Any:
    from ipvsw.vmm import qmp  # its event loop would slow every other command down

    handed, fds = asked.client.hand_over(asked.required_name)
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
    return handed


def _detach(asked: Asked) -> None:
    from ipvsw.vmm import qmp

    try:
        qmp.detach(asked.options["qmp"], _device(asked, asked.required_name))
    except qmp.QmpError as error:
        raise Failed(str(error)) from None


def _device(asked: Asked, port: str) -> str:
    """The name in QEMU of the device and its back end: after the port, unless --id gives one."""
    bare = port.rpartition("/")[2]
    return asked.options.get("id") or "ipvsw-" + re.sub(r"[^A-Za-z0-9._-]", "-", bare)


# ---------------------------------------------------------------------------- the commands

_QMP = Option("--qmp", "QEMU's QMP socket", operand="PATH", required=True)
_ID = Option("--id", "the device's name in QEMU [ipvsw-PORT]", operand="ID")

COMMANDS = (
    Command(
        name="exec",
        summary="run a VMM with a port's descriptor",
        operands="PORT -- COMMAND...",
        about="""\
Run COMMAND with the descriptor of a virtual machine's port. In its words {fd} becomes the number of
the descriptor, {fds} those of a port with several queues, as 3:4, {mac} a MAC address for the guest
(with `mac master` the one it must use), {mtu} the MTU.

Example: ipvsw exec vm1 -- qemu-system-x86_64 -netdev tap,id=n0,fd={fd}
           -device virtio-net-pci,netdev=n0,mac={mac} ...
The descriptor is a TAP's; of kind stream and dgram it is a socket's:
  -netdev stream,id=n0,addr.type=fd,addr.str={fd}
  -netdev dgram,id=n0,local.type=fd,local.str={fd}
""",
        read=_read_exec,
        run=_exec,
        complete=first(Names.ports),
        argv=True,
    ),
    Command(
        name="attach",
        summary="plug a port into a running QEMU",
        operands="PORT",
        about="Plug a virtual machine's port into a running QEMU. On an error nothing is changed.\n",
        read=read_port,
        run=_attach,
        write=silent,
        complete=first(Names.ports),
        options=(
            _QMP,
            Option("--device", "the device that the guest sees [virtio-net-pci]", operand="DRIVER"),
            _ID,
            Option("--mac", "[one made for the port; with `mac master` the master's]", operand="MAC"),
            Option("--bus", "where to plug it in; machine q35 needs a pcie-root-port for each", operand="BUS"),
        ),
    ),
    Command(
        name="detach",
        summary="take a port out of a running QEMU",
        operands="PORT",
        about="Take a port's device out of a running QEMU. Returns when the guest has released it.\n",
        read=read_port,
        run=_detach,
        complete=first(Names.ports),
        options=(_QMP, _ID),
    ),
)
