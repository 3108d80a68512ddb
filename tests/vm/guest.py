"""A QEMU guest with Debian's kernel on this machine's root file system, for what this kernel has not got.

How a run goes: a small initramfs (busybox and the modules asked for) mounts the host's root read-only over 9p with a
tmpfs overlay, and a directory of this run's own, read and write, on /run/guest. There the guest finds its script
and leaves what the script said and its exit status; then it powers itself off. The kernel's console goes to a file
that is searched for complaints and shown when something goes wrong.

Needs Debian's qemu-system-x86, linux-image-amd64, busybox-static and kmod; no KVM. Nothing in the guest can write
to the host's files except to the run's own directory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.patience import patient, until
from tests.vm.vmlinux import decompressed

BOOT = Path("/boot")
MODULES = Path("/lib/modules")
MOMENTS = patient(120)  # s for one command, or to boot: there is no KVM
LIFE = patient(900)  # s for all that is done in a guest
BOOTS = 3  # now and then a kernel of two emulated CPUs stands still before its first process
NEEDED = ("virtio_pci", "9pnet_virtio", "9p", "overlay")

# What a kernel says when it is not well. The watchdogs for stalls are off: a slow machine is no fault of it.
COMPLAINT = re.compile(
    r"cut here|WARNING: |\bBUG: |kernel BUG|Oops|Kernel panic|refcount_t|general protection fault"
    r"|unregister_netdevice: waiting|suspicious RCU|memory leak|KASAN|UBSAN"
)

INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
    /bin/busybox insmod "$module" || echo "guest: cannot load $module"
done
nine=trans=virtio,version=9p2000.L,msize=512000
/bin/busybox mount -t 9p -o $nine,ro,cache=loose root /ro
/bin/busybox mount -t tmpfs tmpfs /rw
/bin/busybox mkdir /rw/upper /rw/work
/bin/busybox mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /root
for place in proc sys dev; do /bin/busybox mount --move /$place /root/$place; done
/bin/busybox mount -t tmpfs tmpfs /root/run
/bin/busybox mkdir -p /root/run/guest /root/run/netns
/bin/busybox mount -t 9p -o $nine,cache=none run /root/run/guest
exec /bin/busybox switch_root /root /bin/sh /run/guest/main
"""

# Nothing may be executed after the power-off has partial: the root file system is gone then.
MAIN = """export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
cd /tmp
ip link set lo up
/bin/sh /run/guest/script </dev/null >/run/guest/stdout 2>/run/guest/stderr
echo $? >/run/guest/status
sync
echo o >/proc/sysrq-trigger
while :; do :; done
"""


# Does what it finds in files, one after the other, until it is told to stop.
LISTEN = """number=0
: >/run/guest/ready
while [ ! -e /run/guest/stop ]; do
    if [ -e /run/guest/do.$number ]; then
        /bin/sh /run/guest/do.$number >/run/guest/said.$number 2>&1
        echo $? >/run/guest/ended.$number.new
        mv /run/guest/ended.$number.new /run/guest/ended.$number
        number=$((number + 1))
    else
        sleep 0.05
    fi
done
"""


class GuestError(Exception):
    """The guest could not be run, or its kernel complained. The message ends with its console."""


class NoGuest(GuestError):
    """This machine lacks what a guest needs: the message says what."""


@dataclass(frozen=True)
class Result:
    """What a run left. `console` is the kernel's own words from boot to power-off."""

    exit_code: int
    stdout: str
    stderr: str
    console: str


def newest_kernel() -> str:
    """Version of the newest installed kernel that has its modules. Errors: NoGuest."""
    versions = [found.name.removeprefix("vmlinuz-") for found in BOOT.glob("vmlinuz-*")]
    complete = [version for version in versions if (MODULES / version / "modules.dep").exists()]
    if not complete:
        raise NoGuest("no kernel with modules under /boot and /lib/modules (Debian: linux-image-amd64)")
    return max(complete, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])


def programs() -> dict[str, str]:
    """Paths of the programs that a run takes. Errors: NoGuest."""
    found = {}
    for name, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("modprobe", "kmod"),
        ("timeout", "coreutils"),
    ):
        path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
        if path is None:
            raise NoGuest(f"{name} is not installed (Debian: {package})")
        found[name] = path
    # A dynamic one (with a PT_INTERP program header) would look for its loader in the initramfs.
    if b"/lib64/ld-linux" in Path(found["busybox"]).read_bytes()[:4096]:
        raise NoGuest("busybox is not the static one (Debian: busybox-static)")
    return found


def lacking() -> str:
    """What this machine lacks for a guest, "" if nothing."""
    if os.geteuid() != 0:
        return "needs root: namespaces, and the host's root file system in a guest"
    try:
        programs()
        newest_kernel()
    except NoGuest as lack:
        return f"needs a guest: {lack}"
    return ""


def module_files(modprobe: str, kernel: str, modules: Sequence[str]) -> list[Path]:
    """The files of `modules` and what they depend on, in loading order. Errors: GuestError for an unknown module."""
    files: dict[Path, None] = {}
    for module in modules:
        command = [modprobe, "--set-version", kernel, "--show-depends", module]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise GuestError(f"no module {module} in kernel {kernel}: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            verb, _, path = line.strip().partition(" ")
            if verb == "insmod":
                files[Path(path.split()[0])] = None
    return list(files)


def initramfs(busybox: str, modules: Sequence[Path]) -> bytes:
    """A cpio archive ("newc", Documentation/driver-api/early-userspace/buffer-format.rst) that the kernel unpacks."""
    parts: list[bytes] = []

    def add(name: str, mode: int, content: bytes = b"") -> None:
        path = name.encode() + b"\0"
        fields = (len(parts) + 1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        parts.append(header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4))

    for directory in ("bin", "modules", "proc", "sys", "dev", "ro", "rw", "root"):
        add(directory, 0o040755)
    add("init", 0o100755, INIT.encode())
    add("bin/busybox", 0o100755, Path(busybox).read_bytes())
    for number, module in enumerate(modules):
        add(f"modules/{number:03}-{module.name}", 0o100644, module.read_bytes())
    add("TRAILER!!!", 0)
    return b"".join(parts)


def qemu(program: str, kernel: str, directory: Path, memory: int, cpus: int) -> list[str]:
    """QEMU's command line: `memory` in MiB."""
    words = "console=ttyS0 loglevel=5 panic=-1 mitigations=off tsc=reliable nowatchdog"
    words += " rcupdate.rcu_cpu_stall_suppress=1"
    shares = []
    for name, path, more in (("root", Path("/"), ",readonly=on,multidevs=remap"), ("run", directory, "")):
        shares += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
        shares += ["-fsdev", f"local,id={name},path={path},security_model=none{more}"]
    return [
        *(program, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus), "-m", str(memory)),
        *("-nographic", "-nodefaults", "-no-reboot", "-monitor", "none", "-serial", "stdio"),
        *("-kernel", str(decompressed(BOOT / f"vmlinuz-{kernel}")), "-initrd", str(directory / "initramfs")),
        *("-append", words),
        *shares,
    ]


class Guest:
    """One that has booted and waits for commands."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self._directory = directory
        self._process = process
        self._number = 0

    def run(self, script: str, *, check: bool = True) -> str:
        """What a shell script said, stdout and stderr. Errors: GuestError, also if it fails and `check`."""
        number, self._number = self._number, self._number + 1
        unfinished = self._directory / "new"
        unfinished.write_text(script)
        unfinished.rename(self._directory / f"do.{number}")
        ended = self._directory / f"ended.{number}"
        self.until(ended, script)
        said = (self._directory / f"said.{number}").read_text(errors="replace")
        if check and ended.read_text().strip() != "0":
            raise GuestError(f"{script}: exit status {ended.read_text().strip()}\n{said}")
        return said

    def until(self, path: Path, what: str) -> None:
        try:
            until(lambda: path.exists() or self._process.poll() is not None, what, limit=MOMENTS)
            assert path.exists(), f"{what}: the guest has ended"
        except AssertionError as error:
            console = (self._directory / "console").read_text(errors="replace")
            raise GuestError(f"{error}\n--- console\n{console[-6000:]}") from None

    def kill(self) -> None:
        """SIGKILL for QEMU and what started it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def booted(
    *extra: str,
    modules: Sequence[str] = (),
    prefix: Sequence[str] = (),
    memory: int = 512,
    cpus: int = 1,
) -> Iterator[Guest]:
    """A guest that takes commands, with more words for QEMU; `prefix` is what starts it. Gone at the end."""
    found = programs()
    kernel = newest_kernel()
    files = module_files(found["modprobe"], kernel, [*NEEDED, *modules])
    with tempfile.TemporaryDirectory(prefix="ivt-guest") as name:
        directory = Path(name)
        (directory / "initramfs").write_bytes(initramfs(found["busybox"], files))
        (directory / "main").write_text(MAIN)
        (directory / "script").write_text(LISTEN)
        limit = [found["timeout"], "--signal=KILL", str(LIFE)]
        command = [*limit, *prefix, *qemu(found["qemu-system-x86_64"], kernel, directory, memory, cpus), *extra]
        with (directory / "console").open("wb") as console, _ended(command, console.fileno()) as process:
            guest = Guest(directory, process)
            guest.until(directory / "ready", "the guest boots")
            yield guest
        said = (directory / "console").read_text(errors="replace")
        if complaint := COMPLAINT.search(said):
            raise GuestError(f"the guest's kernel complained ({complaint[0].strip()})\n{said[-6000:]}")


def run_in_guest(
    script: str, *, modules: Sequence[str] = (), timeout: float = LIFE, memory: int = 1024, cpus: int = 2
) -> Result:
    """Run a shell script as root in a fresh guest; `modules` are loaded before, `timeout` is for all of it, in s.

    The script's working directory is writable and goes with the guest. Errors: NoGuest if this machine lacks
    what it takes; GuestError if the guest does not end by itself, or its kernel complains.
    """
    found = programs()
    kernel = newest_kernel()
    files = module_files(found["modprobe"], kernel, [*NEEDED, *modules])
    with tempfile.TemporaryDirectory(prefix="ivt-guest") as name:
        directory = Path(name)
        (directory / "initramfs").write_bytes(initramfs(found["busybox"], files))
        (directory / "main").write_text(MAIN)
        (directory / "script").write_text(script)
        console_file = directory / "console"
        # `timeout` outlives this process if it has to, so that the guest never does.
        limit = [found["timeout"], "--signal=KILL", str(timeout)]
        command = [*limit, *qemu(found["qemu-system-x86_64"], kernel, directory, memory, cpus)]
        for _ in range(BOOTS):
            with console_file.open("wb") as console, _ended(command, console.fileno()) as process:
                if _begins(process, directory / "stdout"):
                    process.wait()
                    break
        return _result(directory, console_file.read_text(errors="replace"), timeout)


def _begins(process: subprocess.Popen[bytes], sign: Path) -> bool:
    """Whether the guest has come to its script, or to its end."""
    with contextlib.suppress(AssertionError):
        until(lambda: sign.exists() or process.poll() is not None, "the guest boots", every=0.2, limit=MOMENTS)
        return True
    return False


@contextlib.contextmanager
def _ended(command: list[str], console: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _result(directory: Path, console: str, timeout: float) -> Result:
    said = {}
    for name in ("stdout", "stderr", "status"):
        path = directory / name
        said[name] = path.read_text(errors="replace") if path.exists() else ""
    tail = f"{said['stderr'][-2000:]}\n--- console\n{console[-6000:]}"
    if complaint := COMPLAINT.search(console):
        raise GuestError(f"the guest's kernel complained ({complaint[0].strip()})\n{tail}")
    if not said["status"].strip():
        raise GuestError(f"the guest did not come to the end of its script within {timeout} s\n{tail}")
    return Result(int(said["status"]), said["stdout"], said["stderr"], console)
