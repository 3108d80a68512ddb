"""Builds of parse and decide for fuzzing, and how to run them: a storm of mutated frames, and libFuzzer."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

from ipvsw._fast import OUTCOMES
from tests.fuzz.storm import seeds

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests/fuzz"
BUILD = ROOT / "build/fuzz"
CYTHON = ["-3", *(f"-X{name}=False" for name in ("boundscheck", "wraparound", "initializedcheck")), "-Xcdivision=True"]
SANITIZERS = "address,undefined"
NAMES = (*OUTCOMES, "to_route")  # what is to be routed ends elsewhere, but is decided


def own_directory(name: str) -> Path:
    """A build directory of this process alone, so that two runs do not meet."""
    path = BUILD / f"{name}-{os.getpid()}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def translated(source: Path, target: Path) -> Path:
    """Cython's C for `source`."""
    command = [sys.executable, "-m", "cython", *CYTHON, "-I", str(ROOT), str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def sanitized_probe(target: Path) -> Path:
    """The probe with ASan and UBSan, in `target`; returns its file."""
    c = translated(ROOT / "tests/native/_decider.pyx", target / "_decider.c")
    include = sysconfig.get_path("include")
    flags = ["-O1", "-g", "-shared", "-fPIC", f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
    library = target / f"_decider{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["gcc", *flags, f"-I{include}", str(c), "-o", str(library)], check=True)
    return library


def sanitizer_environment() -> dict[str, str]:
    """Python itself is not built for it: the runtimes come first, and leaks are not looked for."""
    names = [f"-print-file-name={name}" for name in ("libasan.so", "libubsan.so")]
    libraries = [subprocess.run(["gcc", n], check=True, capture_output=True, text=True).stdout.strip() for n in names]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def storm(frames: int, seed: int, *, sanitize: bool) -> Counter[str]:
    """Runs the storm in a process of its own. Errors: CalledProcessError with its stderr."""
    command = [sys.executable, "-m", "tests.fuzz.storm", str(frames), str(seed)]
    build = own_directory("probe")
    try:
        if sanitize:
            command.append(str(sanitized_probe(build)))
        environment = sanitizer_environment() if sanitize else dict(os.environ)
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    finally:
        shutil.rmtree(build)
    lines = (line.split() for line in done.stdout.splitlines())
    return Counter({NAMES[int(outcome)]: int(count) for outcome, count in lines})


def guided_target(build: Path) -> Path | None:
    """The libFuzzer program, or None where clang has no libFuzzer."""
    probe = build / "probe.c"
    probe.write_text("int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return 0; }\n")
    program = build / "guided"
    clang = ["clang", "-O1", "-g", f"-fsanitize=fuzzer,{SANITIZERS}", "-fno-sanitize-recover=all"]
    has_it = subprocess.run([*clang, str(probe), "-o", str(program)], check=False, capture_output=True)
    if has_it.returncode != 0:
        return None
    c = translated(HERE / "guided.pyx", build / "guided.c")
    # Cython's C mentions Python, but nothing that runs here calls it: weak symbols may stay open.
    unit = build / "guided.o"
    subprocess.run([*clang, "-w", f"-I{sysconfig.get_path('include')}", "-c", str(c), "-o", str(unit)], check=True)
    subprocess.run(["objcopy", "--weaken", str(unit)], check=True)
    subprocess.run([*clang, str(unit), "-o", str(program)], check=True)
    return program


def gso_frame(kind: int, protocol: int) -> bytes:
    """A virtio_net_hdr and a frame whose checksum is partial, and which, for a gso_type, is to be cut."""
    if kind == 4:
        packet = struct.pack("!IHBB32x", 6 << 28, 300, protocol, 64)
    else:
        packet = struct.pack("!BBHHHBBH8x", 0x45, 0, 320, 0, 0, 64, protocol, 0)
    header = struct.pack("<BBHHHH", 1, kind, 0, 100, 14 + len(packet), 6 if protocol == 17 else 16)
    ethertype = b"\x86\xdd" if kind == 4 else b"\x08\0"
    return header + bytes(12) + ethertype + packet + bytes(12) + b"\x50" + bytes(287)


def guided(seconds: int, seed: int) -> str:
    """Coverage-guided fuzzing. Returns libFuzzer's closing line, or "" where there is none. Errors:
    CalledProcessError with what was found in its stderr."""
    build = own_directory("guided")
    try:
        program = guided_target(build)
        if program is None:
            return ""
        corpus = build / "corpus"
        corpus.mkdir()
        for number, frame in enumerate(seeds()):
            (corpus / str(number)).write_bytes(bytes([number * 5 % 255]) + frame)
        for number, (kind, protocol) in enumerate([(1, 6), (4, 6), (5, 17), (0, 17)]):
            (corpus / f"super{number}").write_bytes(b"\xff" + gso_frame(kind, protocol))
        limits = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=512", f"-artifact_prefix={BUILD}/"]
        done = subprocess.run([program, *limits, corpus], check=True, capture_output=True, text=True)
        return done.stderr.strip().splitlines()[-1]
    finally:
        shutil.rmtree(build)
