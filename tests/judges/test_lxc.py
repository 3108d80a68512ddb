"""LXC and systemd-nspawn by the recipes in docs/containers.md, through restarts of the container and the daemon."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.judges.judged import Judged
from tests.judges.recipes import here, recipes
from tests.support.patience import LIMIT, until
from tests.support.programs.dnsmasq import Dnsmasq
from tests.support.running import FOLLOWED, ROOT, Daemon, switch
from tests.support.sniff import sniffing
from tests.support.topology import MASTER4, MASTER6, MASTER_MAC, WIRE4, WIRE6, Lab, run
from tests.support.traffic import Stream

SECTION = "LXC and systemd-nspawn"
WEB4, WEB6 = "10.1.7.11", "fd00:1::7:11"
OURS = bytes.fromhex(MASTER_MAC.replace(":", ""))
SLEEPS = {"web": "3001", "db": "3002", "more": "3003"}  # by which a container's first process is found


class Runtime(ABC):
    """One of the two, in the root."""

    def __init__(self, judged: Judged) -> None:
        self.judged = judged

    @abstractmethod
    def start(self, name: str, how: str = "") -> None: ...

    @abstractmethod
    def stop(self, name: str) -> None: ...

    def pid(self, name: str) -> int | None:
        """That of the first process of the container, as this machine has it."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().split(b"\0")[:2] in (
                    [word, SLEEPS[name].encode()] for word in (b"sleep", b"/bin/sleep")
                ):
                    return int(path.parent.name)
        return None

    def tell(self, name: str, *words: str) -> str:
        pid = self.pid(name)
        done = subprocess.run(
            ["nsenter", f"--target={pid}", "--net", "--mount", "--root", *words],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        return done.stdout

    def reaches(self, name: str, address: str) -> None:
        def answered() -> bool:
            return "1 packets received" in self.tell(name, "/bin/ping", "-c", "1", "-W", "1", address)

        until(answered, f"{name} reaches {address}", every=0.1)


class Lxc(Runtime):
    def start(self, name: str, how: str = "") -> None:
        config = how or recipes(SECTION, "ini")[0].replace("web", name)
        common = f"lxc.rootfs.path = dir:/srv/tree\nlxc.init.cmd = /bin/sleep {SLEEPS[name]}\nlxc.mount.auto = proc\n"
        self.judged.write(f"/var/lib/lxc/{name}/config", f"lxc.uts.name = {name}\n{common}{config}")
        self.judged.run("lxc-start", "-n", name, "-o", f"/run/{name}.log")
        until(lambda: self.pid(name), f"{name} runs")

    def stop(self, name: str) -> None:
        self.judged.run("lxc-stop", "-k", "-n", name)
        until(lambda: self.pid(name) is None, f"{name} has ended")


class Nspawn(Runtime):
    def __init__(self, judged: Judged) -> None:
        super().__init__(judged)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, how: str = "") -> None:
        """Without systemd as the host's init, and without udev, which says when an interface is complete."""
        (recipe,) = recipes(SECTION)
        words = recipe.replace("web", name).replace(f"/var/lib/machines/{name}", "/srv/tree").split()
        for path in (self.judged.path / "sys/class/net").glob("*/ifindex"):
            self.judged.write(f"/run/udev/data/n{path.read_text().strip()}", "I:1\n")
        inside = f"ip link set host0 up; exec sleep {SLEEPS[name]}"
        command = self.judged.command(
            *words, "--register=no", "--keep-unit", "--console=pipe", "--volatile=overlay", "sh", "-c", inside
        )
        self._running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

        def runs() -> bool:
            assert self._running[name].poll() is None, f"systemd-nspawn ended with {self._running[name].returncode}"
            return self.pid(name) is not None

        until(runs, f"{name} runs")

    def stop(self, name: str) -> None:
        pid = self.pid(name)
        assert pid is not None
        os.kill(pid, 9)
        self._running.pop(name).wait(LIMIT)


class Setting:
    def __init__(self, lab: Lab, daemon: Daemon, judged: Judged) -> None:
        self.lab, self.daemon, self.judged = lab, daemon, judged

    def links(self) -> set[str]:
        return {link["ifname"] for link in self.lab.links(self.lab.home)} - {"lo"}

    def leased(self, port: str) -> str:
        """The address that the port has leased and the container has."""

        def found() -> str:
            every = self.daemon.call("GET", "/v1/leases")[1]
            return next((one["address"] for one in every if one["port"] == port and one["prefix"] is not None), "")

        return until(found, f"{port} has leased")

    @contextlib.contextmanager
    def named(self, pid: int | None) -> Iterator[str]:
        """A container's namespace under a name, for sockets of tests."""
        name = f"{self.lab.prefix}-inside"
        run("ip", "netns", "attach", name, str(pid))
        try:
            yield name
        finally:
            run("ip", "netns", "del", name)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    (text,) = recipes(SECTION, "toml")
    (wanted,) = tomllib.loads(here(text))["switch"]
    ports = wanted.pop("port")
    with Lab(0) as lab, sniffing(lab.wire, "w0") as wire:
        Dnsmasq(lab, tmp_path_factory.mktemp("dhcp")).start()
        with Daemon(
            switch("m0", lab.host, ports, host_access=wanted["host_access"]), home=lab.home, keeps=True
        ) as daemon:
            daemon.wait(states=("down",))
            with Judged(lab.home, Path(daemon.directory.name)) as judged:
                tree = judged.busybox("/srv/tree")
                judged.run("sh", "-c", f"cd {tree}; mkdir -p proc sys dev etc root tmp run usr; touch etc/os-release")
                install_tool(judged)
                made = Setting(lab, daemon, judged)
                held = daemon.fds()
                yield made
                assert made.links() == {"web", "db"}, "both are given back"
                assert [port["state"] for port in daemon.show()[0]["ports"]] == ["down", "down"]
                until(lambda: daemon.fds() <= held, "no descriptor is left")
            daemon.stop()
            assert not made.links() and not daemon.state.exists()
        assert {frame[6:12] for _, frame in wire.frames} == {OURS}


def install_tool(judged: Judged) -> None:
    """`ipvsw`, as the package has it: without what is compiled it is the same."""
    source = ROOT / "ipvsw"
    for path in source.rglob("*.py"):
        target = judged.path / "usr/lib/ipvsw/ipvsw" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    launcher = (ROOT / "contrib/debian/launchers/ipvsw").read_text().replace(" -IS", "")
    judged.write("/usr/lib/ipvsw/launcher", launcher, 0o755)
    judged.write(
        "/usr/local/bin/ipvsw", '#!/bin/sh\nexec /usr/lib/ipvsw/launcher --socket /var/lib/ipvsw/api.sock "$@"\n', 0o755
    )


@pytest.fixture(params=[Lxc, Nspawn])
def runtime(setting: Setting, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    one: Runtime = request.param(setting.judged)
    yield one
    for name in SLEEPS:
        if one.pid(name) is not None:
            one.stop(name)
    until(lambda: setting.links() == {"web", "db"}, "the interfaces are back")


def test_containers_come_talk_restart_and_go(setting: Setting, runtime: Runtime) -> None:
    lab = setting.lab
    runtime.start("web")
    runtime.start("db")
    leased = setting.leased("db")
    for address in (leased, WIRE4, WIRE6, MASTER4, MASTER6):
        runtime.reaches("web", address)
    for address in (WEB4, WIRE4, MASTER4):
        runtime.reaches("db", address)
    for netns in (lab.wire, lab.host):
        for address in (WEB4, WEB6, leased):
            lab.reachable(netns, address)
    assert f"default via {WIRE4}" in runtime.tell("db", "/bin/ip", "route")
    for name in ("web", "db"):
        runtime.stop(name)
        until(lambda name=name: name in setting.links(), f"{name} is given back")
        runtime.start(name)
    assert setting.leased("db") == leased
    runtime.reaches("db", WEB4)
    lab.reachable(lab.wire, WEB6)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_connections_outlive_the_daemon(setting: Setting, runtime: Runtime, how: str) -> None:
    daemon, lab = setting.daemon, setting.lab
    runtime.start("web")
    runtime.start("db")
    leased = setting.leased("db")
    runtime.reaches("web", WIRE4)
    with setting.named(runtime.pid("web")) as inside, Stream(lab.wire, inside, WEB4) as stream:
        stream.flows()
        FOLLOWED[how](daemon)
        stream.flows()
    assert setting.leased("db") == leased
    for name in ("web", "db"):
        runtime.reaches(name, WIRE4)
    lab.reachable(lab.wire, leased)


def test_a_port_by_a_hook_goes_with_its_container(setting: Setting) -> None:
    lxc, lab = Lxc(setting.judged), setting.lab
    (hook,) = recipes(SECTION, "sh")
    setting.judged.write("/usr/local/lib/lxc-ipvsw", here(hook), 0o755)
    for _ in range(2):
        lxc.start("more", recipes(SECTION, "ini")[1])
        leased = setting.leased("more")
        lxc.reaches("more", WIRE4)
        lab.reachable(lab.host, leased)
        assert "altname more" in setting.judged.run("ipvsw", "link", "show", "label", "lxc")
        lxc.stop("more")
        until(lambda: len(setting.daemon.show()[0]["ports"]) == 2, "its port has gone")


def test_a_hook_that_fails_fails_the_start(setting: Setting) -> None:
    """Another port has the address."""
    (hook,) = recipes(SECTION, "sh")
    taken = here(hook).replace("dhcp on", f"address {WEB4}/16")
    setting.judged.write("/usr/local/lib/lxc-ipvsw", taken, 0o755)
    lxc = Lxc(setting.judged)
    with pytest.raises(AssertionError, match="lxc-start"):
        lxc.start("more", recipes(SECTION, "ini")[1])
    assert lxc.pid("more") is None and len(setting.daemon.show()[0]["ports"]) == 2
