"""`doctor`: what on this host bites, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipvsw.cli.command import Asked, Command, Failed, read_nothing
from ipvsw.client import ApiError, Unreachable

if TYPE_CHECKING:
    from ipvsw.client import Client, Record
    from ipvsw.doctor.checks.finding import Finding
    from ipvsw.doctor.facts import Daemon

TOO_FEW_FDS = 503  # a finding in itself


def _doctor(asked: Asked) -> list[Record]:
    from msgspec import to_builtins

    from ipvsw.doctor.checks import daemon_away, examine
    from ipvsw.doctor.facts import Daemon, daemon_pid, read_host, read_master

    daemon, pid = Daemon(), None
    away: list[Finding] = []
    try:
        pid = daemon_pid(asked.socket)
        daemon = _ask(asked.client)
    except OSError:
        away = [daemon_away(f"{asked.socket}: no daemon answers there")]
    except Unreachable as error:
        away = [daemon_away(str(error))]
    except ApiError as error:
        if error.status != TOO_FEW_FDS:
            raise
    try:
        masters = {
            switch["name"]: master for switch in daemon.switches if (master := read_master(switch, pid)) is not None
        }
        found: list[Record] = to_builtins(away + examine(read_host(pid), daemon, masters))
    except PermissionError:
        raise Failed("only root may look into the masters' namespaces") from None
    except OSError as error:
        raise Failed(f"the masters can't be looked at: {error.strerror or error}") from None
    return found


def _ask(client: Client) -> Daemon:
    import time
    import tomllib

    from ipvsw.doctor.facts import Daemon

    return Daemon(
        switches=client.switches(),
        stats={one["name"]: one for one in client.stats()},
        leases=client.leases(),
        config=tomllib.loads(client.config()),
        now=time.time(),
    )


def _write(found: list[Record], asked: Asked) -> str:
    return "\n".join(f"{one['code']}: {one['where']}: {one['text']}\n    do: {one['remedy']}" for one in found)


def _code(found: Any) -> int:
    return 1 if found else 0


COMMANDS = (
    Command(
        name="doctor",
        summary="what on this host bites, and what to do",
        about="""\
Look at the host, at the daemon and at the masters, and say what keeps frames from getting where
they should, or will: settings of the kernel, other programs on the master, conflicts of addresses,
limits. ARP probes on the masters ask who else on the network has a port's address. Nothing is
changed. Each finding has a code, which docs/reference/doctor.md explains.

Exits with 0 if there is nothing to say, else with 1.
""",
        read=read_nothing,
        run=_doctor,
        write=_write,
        code=_code,
    ),
)
