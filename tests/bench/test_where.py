"""What perf says is read and laid to groups; and the whole, if perf can be had, on one way through the daemon."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.bench import where
from tests.bench.commands import finished
from tests.bench.measuring import report, samples

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/benchmarks.md"
KERNEL = "[kernel.kallsyms]"
WRITE = ["tun_get_user", "tun_chr_write_iter", "io_write", "io_submit_sqes", "do_syscall_64"]


@pytest.mark.parametrize(
    ("stack", "group"),
    [
        (WRITE, "TAP: write"),
        (["udp_rcv", "netif_receive_skb", *WRITE], "delivery in the receiver's stack"),
        (["_copy_from_iter", *WRITE], "copying"),
        (["try_to_wake_up", "sock_def_readable", "tcp_v4_rcv", "netif_receive_skb", *WRITE], "scheduler and wake-ups"),
        (["kmem_cache_free", "tun_do_read", "tun_chr_read_iter", "__io_read"], "TAP: read"),
        (["fget", "io_submit_sqes", "do_syscall_64"], "io_uring"),
        (["veth_xmit", "dev_hard_start_xmit", "packet_sendmsg", "__sys_sendmmsg"], "the wire's device: transmit"),
        (["skb_recv_datagram", "packet_recvmsg", "sock_recvmsg"], "packet socket"),
        (["fget", "do_syscall_64"], "system calls: entry and exit"),
        (["a_function_of_tomorrow"], samples.OTHER),
    ],
)
def test_a_stack_belongs_to_the_innermost_group(stack: list[str], group: str) -> None:
    assert samples.group_of([(symbol, KERNEL) for symbol in stack]) == group


def test_samples_are_read() -> None:
    text = (
        "\n\tffffffff81db6bbd tun_get_user ([kernel.kallsyms])\n\t          101829 syscall (/usr/lib/libc.so.6)\n"
        "\n\t            2000 port_frame (/x/ipvsw/_fast.cpython-311-x86_64-linux-gnu.so)\n"
        "\n\t            1000 _PyEval_EvalFrameDefault (/x/libpython3.11.so.1.0)\n"
    )
    assert samples.grouped(text) == Counter({"TAP: write": 1, samples.OWN: 1, samples.PYTHON: 1})


def test_tables_say_what_was_found() -> None:
    groups = Counter({"TAP: write": 3, samples.OWN: 1})
    found = where.Found("a way", 2000.0, 60.0, 2.0, {"": 0.5, "read": 0.25}, 0.125, groups)
    whole = where.Machine("cold", [where.Shares(5.0, 2.0, 2.5)], [where.Shares(4.0, 3.5, 0)], [16.0])
    text = where.document([found], ["another: no perf"], [whole], seconds=1.0)
    assert "| TAP: write | 1500 |" in text
    assert f"| {samples.OWN} | 500 |" in text
    assert "copying" not in text, "a group without a sample is shown"
    assert "| system calls | 0.500 |" in text
    assert "| - `read` | 0.250 |" in text
    assert "Left out: another: no perf." in text
    assert "| ipvsw, cold | 5.00 | **1.25** | 2.00 | 2.50 | 0.500 | 16.0 | 0.500 |" in text
    assert "| veth + bridge, cold | 4.00 | 1 | 3.50 | 0 | 0.500 |  |  |" in text


@pytest.mark.parametrize("marks", [report.MARKS, where.MARKS])
def test_the_project_s_document_has_the_marks(marks: report.Marks) -> None:
    assert all(marks.around(DOCUMENT))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, veth, TAP, BPF")
def test_a_case_is_looked_at() -> None:
    said = finished("where", "--seconds=0.2", "--rounds=1", "port to port, TCP")
    rows = {cells[1].strip(): cells[2:-1] for line in said.splitlines() if len(cells := line.split("|")) > 2}
    assert float(rows["ipvsw, as it is"][3]) > 0, "carrying frames costs the daemon nothing"
    if "Left out: " in said:
        pytest.skip(said.partition("Left out: ")[2].partition("\n")[0])
    assert float(rows["system calls"][0]) > 0
    assert float(rows["copying"][0]) > 0
    assert 1.9 < float(rows["copies of each byte"][0]) < 2.1
