"""What runs on the stage: the daemon, and pings. Each in a session of its own, so that Ctrl-C ends us first."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from ipvsw.client import ApiError, Client, Unreachable
from ipvsw.lab.stage import NAMESPACES, LabError, ip
from ipvsw.status import PortState, SwitchStatus

READY = 15.0  # seconds until every port has to be up
SETTLED = 5.0  # seconds for IPv6 duplicate address detection, which takes one to two
EXIT = 10.0  # seconds for the daemon to go when it is asked to


@contextlib.asynccontextmanager
async def daemon(config: Path, log: Path, client: Client) -> AsyncIterator[None]:
    """`ipvswd` on `config`, from ready to gone. Errors: LabError with the last of what it said."""
    command = [str(Path(sys.executable).parent / "ipvswd"), "--config", str(config)]
    print(f"$ {' '.join(command)}", flush=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while not all_up(client):
            if process.returncode is not None:
                raise LabError(f"ipvswd ended with exit code {process.returncode}: {tail(log)}")
            if time.monotonic() > started + READY:
                raise LabError(f"ipvswd has not brought its ports up in {READY:.0f} s: {tail(log)}")
            await asyncio.sleep(0.05)
        print(f"ipvswd is ready after {time.monotonic() - started:.2f} s\n", flush=True)
        try:
            yield
        except LabError:
            if process.returncode is not None:
                raise LabError(f"ipvswd ended with exit code {process.returncode}: {tail(log)}") from None
            raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), EXIT)
        except TimeoutError:
            process.kill()
            await process.wait()
            print(f"ipvswd did not end in {EXIT:.0f} s and was killed")
        if process.returncode:  # what it has left would wait for another one
            cleanup = await asyncio.create_subprocess_exec(*command, "--cleanup", stderr=subprocess.DEVNULL)
            await cleanup.wait()


def all_up(client: Client) -> bool:
    try:
        switches = msgspec.convert(client.switches(), list[SwitchStatus])
    except (Unreachable, ApiError):
        return False
    ports = [port for switch in switches for port in switch.ports]
    return bool(ports) and all(port.state is PortState.UP for port in ports)


def tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-10:]) or "it said nothing"


async def settled() -> None:
    """Wait until no address is tentative any more, so that the pings meet a network at rest."""
    deadline = time.monotonic() + SETTLED
    while time.monotonic() < deadline:
        tentative = [json.loads(ip(f"-n {name} -6 -json address show tentative") or "[]") for name in NAMESPACES]
        if not any(link.get("addr_info") for links in tentative for link in links):
            return
        await asyncio.sleep(0.1)


async def ping(source: str, target: str, address: str) -> bool:
    """Three echo requests, told as it happens; answered means all of them."""
    print(f"ping {source:>6} -> {target:<6} {address:<14} ", end="", flush=True)
    process = await asyncio.create_subprocess_exec(
        *ping_command(source, address, "-c", "3", "-i", "0.1", "-W", "1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace")
    received = re.search(r"(\d+) received", text)
    average = re.search(r"= [\d.]+/([\d.]+)/", text)
    answered = received is not None and received[1] == "3"
    print(f"{'answered' if answered else 'NOT ANSWERED'}  {f'{average[1]} ms' if average else ''}")
    return answered


@contextlib.contextmanager
def pinging(source: str, address: str) -> Iterator[None]:
    """Ten echo requests a second in the background, so that the table has something to show."""
    process = subprocess.Popen(
        ping_command(source, address, "-q", "-i", "0.1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ping_command(source: str, address: str, *options: str) -> list[str]:
    return ["ip", "netns", "exec", source, "ping", "-n", *options, address]
