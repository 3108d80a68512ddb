"""What perf says of a process while something happens: how often it calls and switches, and where its time goes.

A sample is a stack of functions, innermost first. It belongs to the group of the first one that has a group, so what a
device's write does inside of the receiver's stack counts as delivery, and a copy made there as copying.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as File

from tests.bench.places.ground import Unavailable
from tests.support.patience import patient

FREQUENCY = 1999  # samples a second of each CPU's time, by a timer: a virtual machine has no counter of cycles
# That the data plane makes for frames, or to wait for them. libc's recv and send are recvfrom and sendto.
CALLS = (
    "io_uring_enter",
    "epoll_wait",
    "read",
    "recvfrom",
    "recvmsg",
    "write",
    "writev",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "sched_yield",
)
SWITCHES = "sched:sched_switch"
PATIENCE = 30  # seconds for perf to begin, and to end

OWN, PYTHON, OTHER = "ipvsw: parse, decide, look up, count", "the rest of the daemon: Python", "anything else"
KERNEL = {  # of the kernel's functions, by how their names begin
    "copying": "_?copy_(to|from)_iter copy_page_(to|from)_iter rep_movs copy_user memcpy simple_copy_to_iter "
    "__?skb_datagram_iter skb_copy_ __check_(object|heap) check_stack_object __virt_addr_valid",
    "scheduler and wake-ups": "__schedule schedule finish_task_switch try_to_wake ttwu_ __?wake_up sock_def_readable "
    "ep_poll_callback io_poll_wake (en|de)queue_task pick_next_task do_sched_yield sched_ pv_native_safe_halt",
    "TAP: read": "tun_chr_read tun_do_read tun_chr_poll tun_ring_recv",
    "delivery in the receiver's stack": "(__)?netif_receive process_backlog net_rx_action handle_softirqs do_softirq "
    "napi_ gro_ veth_poll veth_xdp_rcv",
    "TAP: write": "tun_chr_write tun_get_user tun_build_skb",
    "the wire's device: transmit": "(__)?dev_direct_xmit dev_hard_start_xmit __dev_queue_xmit veth_xmit",
    "packet socket": "packet_ tpacket_ __packet _*sys_(recv|sendm?)msg _*sys_sendto sock_(recv|send)msg",
    "io_uring": "(__)?io_ __do_sys_io_uring __x64_sys_io_uring",
    "epoll": "ep_ do_epoll __x64_sys_epoll",
    "system calls: entry and exit": "entry_SYSCALL do_syscall_64 syscall_ __x64_sys_ ksys_ vfs_ exit_to_user",
}
PATTERNS = {group: re.compile("|".join(f"(?:{one})" for one in words.split())) for group, words in KERNEL.items()}
GROUPS = (OWN, *KERNEL, PYTHON, OTHER)

FRAME = re.compile(r"^\s+[0-9a-f]+ (?P<symbol>.*) \((?P<object>.*)\)$")


@dataclass
class Counts:
    """How often, while it was looked at."""

    calls: dict[str, int]  # by the system call's name, and all of them as ""
    switches: int


def group_of(stack: Sequence[tuple[str, str]]) -> str:
    """Of (function, object that it is in), innermost first."""
    for symbol, where in stack:
        if where == "[kernel.kallsyms]":
            for group, pattern in PATTERNS.items():
                if pattern.match(symbol):
                    return group
        elif "/_fast." in where or "libc" in where or "[vdso]" in where:
            return OWN  # a system call's shell in libc is part of what it takes to call
        elif "python" in where:
            return PYTHON
    return OTHER


def grouped(text: str) -> Counter[str]:
    """Samples in each group, of what `perf script -F ip,sym,dso` printed."""
    found: Counter[str] = Counter()
    for block in text.split("\n\n"):
        stack = [(one["symbol"], one["object"]) for line in block.splitlines() if (one := FRAME.match(line))]
        if stack:
            found[group_of(stack)] += 1
    return found


@contextlib.contextmanager
def counted(pids: Sequence[int]) -> Iterator[Counts]:
    """The counts are there when the block has ended. Errors: Unavailable."""
    events = {f"syscalls:sys_enter_{name}": name for name in CALLS} | {"raw_syscalls:sys_enter": ""}
    result = Counts({}, 0)
    words = ["stat", "-x,", "-e", ",".join([*events, SWITCHES]), "-p", ",".join(map(str, pids))]
    with attached(*words) as perf:
        yield result
        said = ended(perf)
    for fields in (line.split(",") for line in said.splitlines()):
        if len(fields) > 2 and fields[0].isdigit():
            if fields[2] == SWITCHES:
                result.switches = int(fields[0])
            elif fields[2] in events:
                result.calls[events[fields[2]]] = int(fields[0])
    if "" not in result.calls:
        raise Unavailable(f"perf counts no system calls here: {said.strip()}")


@contextlib.contextmanager
def profiled(pids: Sequence[int], directory: File) -> Iterator[Counter[str]]:
    """Samples by group are there when the block has ended. Errors: Unavailable."""
    file, result = str(directory / "perf.data"), Counter[str]()
    clock = ("-e", "cpu-clock", "-F", str(FREQUENCY), "-g")
    with attached("record", "-q", *clock, "-o", file, "-p", ",".join(map(str, pids))) as perf:
        yield result
        ended(perf)
    script = ["perf", "script", "-i", file, "-F", "ip,sym,dso"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=patient(120), check=False)
    result.update(grouped(done.stdout))
    if not result:
        raise Unavailable(f"perf has taken no sample: {done.stderr.strip()}")


@contextlib.contextmanager
def attached(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A perf that looks at its processes already. Errors: Unavailable."""
    if shutil.which("perf") is None:
        raise Unavailable("perf (Debian: linux-perf) is not installed")
    orders_in, orders_out = os.pipe()
    answers_in, answers_out = os.pipe()
    try:
        control = (f"--control=fd:{orders_in},{answers_out}", "--delay=-1")
        perf = subprocess.Popen(
            ["perf", words[0], *control, *words[1:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(orders_in, answers_out),
        )
        try:
            os.close(answers_out)  # its end is the end of perf
            answers_out = -1
            os.write(orders_out, b"enable\n")
            if not (select.select([answers_in], [], [], PATIENCE)[0] and os.read(answers_in, 64)):
                perf.kill()
                raise Unavailable(f"perf {words[0]} doesn't begin: {perf.communicate()[1].strip()}")
            yield perf
        finally:
            perf.kill()
            perf.communicate()
    finally:
        for fd in (orders_in, orders_out, answers_in, answers_out):
            if fd >= 0:
                os.close(fd)


def ended(perf: subprocess.Popen[str]) -> str:
    """What it says when it is asked to end."""
    perf.send_signal(signal.SIGINT)
    try:
        perf.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        raise Unavailable("perf doesn't end") from None
    assert perf.stderr is not None
    return perf.stderr.read()
