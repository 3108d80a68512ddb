"""A container runtime in a Debian root, beside a daemon of ours on this machine: they share `/var/lib/ipvsw`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.patience import LIMIT, until
from tests.support.running import ROOT
from tests.support.topology import exec_in

TRIXIE = ROOT / "build/judges/trixie"
ENTER = Path(__file__).with_name("enter")
READY = "/run/ready"


class Judged:
    """The root, in the network namespace `netns`. A context manager; it needs `make judges` to have made the root."""

    def __init__(
        self, netns: str, shared: Path, *, cgroups_of_machine: bool = False, netns_of_machine: bool = False
    ) -> None:
        """`netns_of_machine`: a namespace's path in the root is its path here too."""
        if not TRIXIE.is_dir():
            pytest.skip("there is no root to judge in: make judges")
        wanted = {"CGROUPS_OF_MACHINE": cgroups_of_machine, "NETNS_OF_MACHINE": netns_of_machine}
        environment = {**os.environ, **{name: "1" for name, is_wanted in wanted.items() if is_wanted}}
        command = [str(ENTER), str(TRIXIE), str(shared), "bash", "-c", f"touch {READY}; exec sleep infinity"]
        self._outer = subprocess.Popen(exec_in(netns, *command), env=environment)
        self._children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        until(lambda: self._outer.poll() is None and self._children.read_text().split(), "the root's first process")
        self.first = int(self._children.read_text().split()[0])
        until(lambda: Path(f"/proc/{self.first}/root{READY}").exists(), "the root is there")
        self.path = Path(f"/proc/{self.first}/root")

    def __enter__(self) -> Judged:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._outer.send_signal(signal.SIGKILL)
        self._outer.wait()

    def command(self, *words: str, user: str = "") -> list[str]:
        """The words that run a command there."""
        inside = ["nsenter", "--all", f"--target={self.first}", "--root", "--wd", "--"]
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        home = f"/home/{user}" if user else "/root"
        runtime = [f"XDG_RUNTIME_DIR=/run/user/{user}"] if user else []
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [
            *inside,
            *as_user,
            "env",
            "--ignore-environment",
            f"--chdir={home}",
            f"HOME={home}",
            path,
            *runtime,
            *words,
        ]

    def run(self, *words: str, user: str = "", check: bool = True) -> str:
        """What a command there says, its errors too. Errors: AssertionError."""
        done = subprocess.run(
            self.command(*words, user=user), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}: {done.stdout}"
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        target = self.path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def busybox(self, place: str, owner: str = "root") -> str:
        """A tree for containers."""
        self.run("sh", "-c", f"mkdir -p {place}/bin {place}/www && cp /bin/busybox {place}/bin")
        self.run("sh", "-c", f"{place}/bin/busybox --install {place}/bin && chown -R {owner}: {place}")
        return place
