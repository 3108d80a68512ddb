"""A daemon of its own for a test, in a namespace of its own, and what its file says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipvsw.client import Client, Unreachable
from tests.support.patience import LIMIT, until
from tests.support.running import end_keeper
from tests.support.spaces import Namespace

ROOT = Path(__file__).resolve().parents[2]
MASTER = "m0"
MASTER_MAC = "02:00:00:00:00:01"


class Daemon:
    """One that is started with `text` as its configuration; `port` and `switch` read its API."""

    def __init__(self, home: Namespace, directory: Path, text: str) -> None:
        self.home = home
        self.file = directory / "ipvsw.toml"
        self.socket = directory / "api.sock"
        self.log = directory / "log"
        self.client = Client(str(self.socket))
        self.process: subprocess.Popen[bytes] | None = None
        self.write(text)

    def write(self, text: str) -> None:
        self.file.write_text(f'[daemon]\nsocket = "{self.socket}"\n{text}')

    def command(self, *more: str) -> list[str]:
        enter = ["nsenter", f"--net=/run/netns/{self.home.name}"]
        return [*enter, sys.executable, "-m", "ipvsw", "--config", str(self.file), *more]

    def start(self, *options: str, **environment: str) -> Daemon:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(*options), cwd=ROOT, stderr=log, env=os.environ | environment)
        until(self.answers, "the API answers")
        return self

    def answers(self) -> bool:
        assert self.process and self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(Unreachable):
            self.client.switches()
            return True
        return False

    def once(self, *more: str) -> tuple[int, list[str]]:
        """A run that ends by itself: exit status and lines on stderr."""
        done = subprocess.run(self.command(*more), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        return done.returncode, done.stderr.splitlines()

    def switch(self, name: str = "lan") -> dict[str, Any]:
        return next(one for one in self.client.switches() if one["name"] == name)

    def port(self, name: str) -> dict[str, Any]:
        return next(one for switch in self.client.switches() for one in switch["ports"] if one["name"] == name)

    def until(self, state: str, *names: str) -> Daemon:
        for name in names:
            until(lambda: self.port(name)["state"] == state, f"{name} is {state}")  # noqa: B023
        return self

    def until_owned(self, name: str, *addresses: str) -> None:
        def owned() -> bool:
            found = [one["address"] for one in self.port(name)["addresses"] if one["state"] == "owned"]
            return {one for one in found if not one.startswith("fe80")} == set(addresses)

        until(owned, f"{name} owns {addresses}")

    def reload(self, text: str) -> list[str]:
        self.write(text)
        return self.client.reload()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(LIMIT)

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        end_keeper(Path(f"{self.socket}.keeper"))


Make = Callable[[str], Daemon]
Spaces = Callable[..., Namespace]


def switch(*ports: str, **more: object) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in ({"name": "lan", "master": MASTER} | more).items()]
    return "\n".join(["[[switch]]", *lines, *ports, ""])


def port(name: str, netns: Namespace | str, *addresses: str, **more: object) -> str:
    where = netns if isinstance(netns, str) else netns.name
    keys = {"name": name, "netns": where, "addresses": addresses} | more
    return "\n".join(["[[switch.port]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""])


def ping(source: Namespace, address: str) -> None:
    source.run("ping", "-c", "1", "-W", f"{LIMIT}", address)


def devices(namespace: Namespace) -> set[str]:
    return {link["ifname"] for link in json.loads(namespace.ip("-j", "link", "show"))}


def attributes(namespace: Namespace, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(namespace.ip("-j", "link", "show", "dev", name))[0]
    return found
