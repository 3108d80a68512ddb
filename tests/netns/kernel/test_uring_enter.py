"""A kernel that is short of memory takes only a part of what is queued in an io_uring, or nothing. Frames must not
suffer: what a queued write names stays where it is until the kernel has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipvsw._fast import uring_error

ROOT = Path(__file__).parents[3]
UNLOADED = "libasan" not in os.environ.get("LD_PRELOAD", "")

# Every third call fails, the others take half: what io_submit_sqes() does when it gets no request.
SHORT_OF_MEMORY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    static _Thread_local unsigned calls;
    long a[6];
    va_list rest;

    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_io_uring_enter && a[1] > 0) {
        if (++calls % 3 == 0) {
            errno = EAGAIN;
            return -1;
        }
        if (a[1] > 1) /* and then it neither waits nor reads */
            return real(number, a[0], a[1] / 2, 0L, 0L, 0L, 0L);
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""


@pytest.mark.skipif(uring_error() != 0, reason="the kernel grants no io_uring")
@pytest.mark.skipif(not UNLOADED, reason="another library is preloaded already")
@pytest.mark.parametrize(
    "tests",
    [
        "tests/netns/kernel/test_packetring.py::test_every_kind_of_frame_comes_in_order_round_the_ring",
        "tests/native/backends/test_uring.py",
    ],
    ids=["master", "ports"],
)
def test_frames_survive_partial_submission(tmp_path: Path, tests: str) -> None:
    source, library = tmp_path / "short.c", tmp_path / "short.so"
    source.write_text(SHORT_OF_MEMORY)
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
