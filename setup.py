"""The native parts: the hot loop (Cython), the kernel-side part (BPF), and on demand the tests' probes.

What is declarative stands in pyproject.toml. Environment: IPVSW_PROBE=1 builds those of tests/native
as well, IPVSW_SANITIZE=1 compiles everything with ASan and UBSan.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# One place for every unit: the hot loop does its own checks, so that Cython's would be paid for twice.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "annotation_typing": False,
    "warn.deprecated.DEF": True,
}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function"]
if os.environ.get("IPVSW_SANITIZE") == "1":
    COMPILE = ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS, *WARNINGS]
    LINK = SANITIZERS
else:
    # The hot loop is one function made of many small ones, each used once or twice: gcc's limits for the growth of
    # ordinary code would leave calls in it (308 instructions for a unicast frame instead of 236).
    INLINE = ["max-inline-insns-single=1000", "inline-unit-growth=400", "large-function-insns=20000"]
    INLINE += ["large-function-growth=2000", "large-stack-frame-growth=10000"]
    COMPILE = ["-O2", *(f"--param={limit}" for limit in INLINE), *WARNINGS]
    LINK = []

BPF_SOURCES = [f"kmod-shim/bpf/{name}.bpf.c" for name in ("host", "master", "port", "spread", "traced")]
BPF = "ipvsw.bpf_object"  # the name under which setuptools knows it; the file is ipvsw/ipvsw.bpf.o


def outcomes() -> str:
    """The names of rules/outcome.pxd in their order, as the C string that `_fast` makes its OUTCOMES of."""
    text = Path("ipvsw/datapath/rules/outcome.pxd").read_text()
    names = re.findall(r"^    ([A-Z_]+)\b", text.split("N_OUTCOMES", 1)[0], re.MULTILINE)
    return f'"{" ".join(names).lower()}"'


def unit(name: str) -> Extension:
    """The Cython extension `name`, from the .pyx of that name."""
    source = name.replace(".", "/") + ".pyx"
    names = [("IPVSW_OUTCOMES", outcomes())]
    return Extension(name, [source], define_macros=names, extra_compile_args=COMPILE, extra_link_args=LINK)


class Build(build_ext):
    """Translates Cython when it builds, not when metadata is asked for; and knows one more kind of
    extension: an object for the kernel, compiled by clang."""

    def finalize_options(self) -> None:
        units = [extension for extension in self.distribution.ext_modules if extension.name != BPF]
        others = [extension for extension in self.distribution.ext_modules if extension.name == BPF]
        translated = cythonize(units, compiler_directives=DIRECTIVES, build_dir="build/cython", include_path=["."])
        self.distribution.ext_modules[:] = [*translated, *others]
        super().finalize_options()

    def get_ext_filename(self, fullname: str) -> str:
        *rooms, name = fullname.split(".")  # asked with and without the package
        if name == BPF.split(".")[-1]:
            return "/".join([*rooms, "ipvsw.bpf.o"])
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        if ext.name == BPF:
            build_bpf(ext.sources, Path(self.get_ext_fullpath(ext.name)))
        else:
            super().build_extension(ext)


def build_bpf(sources: list[str], target: Path) -> None:
    """clang compiles each of `sources`, libbpf links them into `target`. Errors: SystemExit with what is missing."""
    clang = shutil.which("clang")
    if clang is None:
        raise SystemExit("clang is needed to build the BPF programs (Debian: apt install clang)")
    if not Path("/usr/include/bpf/bpf_helpers.h").exists():
        raise SystemExit("libbpf's headers are needed to build the BPF programs (Debian: apt install libbpf-dev)")
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-g", "-Wall", "-Wextra", "-target", "bpf", *kernel_headers()]
    with tempfile.TemporaryDirectory() as directory:
        objects = [Path(directory, Path(source).name).with_suffix(".o") for source in sources]
        for source, compiled in zip(sources, objects, strict=True):
            if subprocess.run([clang, *flags, "-c", source, "-o", compiled], check=False).returncode:
                raise SystemExit(f"clang could not build {source}: its errors are above")
        link_bpf(objects, target)


def link_bpf(objects: list[Path], target: Path) -> None:
    """What `bpftool gen object` does: bpf_linker of libbpf, which prints its errors."""
    try:
        lib = ctypes.CDLL("libbpf.so.1")
    except OSError:
        raise SystemExit("libbpf.so.1 is needed to link the BPF programs (Debian: apt install libbpf1)") from None
    lib.bpf_linker__new.restype = ctypes.c_void_p
    linker = ctypes.c_void_p(lib.bpf_linker__new(os.fsencode(target), None))
    failed = not linker or any(lib.bpf_linker__add_file(linker, os.fsencode(each), None) for each in objects)
    if failed or lib.bpf_linker__finalize(linker):
        raise SystemExit(f"libbpf could not link {target}: its errors are above")
    lib.bpf_linker__free(linker)


def kernel_headers() -> list[str]:
    """Where asm/types.h is: clang does not look in the host's directory when it builds for another target."""
    names = [sysconfig.get_config_var("MULTIARCH")]
    gcc = shutil.which("gcc")
    if gcc is not None:
        names.append(subprocess.run([gcc, "-print-multiarch"], capture_output=True, text=True, check=False).stdout)
    paths = [Path("/usr/include", name.strip()) for name in names if name and name.strip()]
    return next(([f"-I{path}"] for path in paths if (path / "asm/types.h").exists()), [])


names = ["ipvsw._fast"]
if os.environ.get("IPVSW_PROBE") == "1":
    names += ["tests.native._decider", "tests.native._hot", "tests.native._probe"]
setup(
    ext_modules=[*map(unit, names), Extension(BPF, BPF_SOURCES)],
    cmdclass={"build_ext": Build},
)
