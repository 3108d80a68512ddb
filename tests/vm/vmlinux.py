"""An installed kernel, decompressed here: an emulated guest takes longer for that than for the rest of its boot."""

from __future__ import annotations

import functools
import lzma
import struct
import tempfile
from pathlib import Path

XZ = b"\xfd7zXZ\0"

_directory = tempfile.TemporaryDirectory(prefix="ivt-kernel")


@functools.cache
def decompressed(image: Path) -> Path:
    """The ELF file inside a bzImage, which QEMU starts by its PVH entry; the image itself where it isn't XZ's."""
    payload = _payload(image.read_bytes())
    if not payload.startswith(XZ):
        return image
    found = Path(_directory.name, image.name)
    found.write_bytes(lzma.LZMADecompressor().decompress(payload))
    return found


def _payload(image: bytes) -> bytes:
    """What a bzImage (Documentation/arch/x86/boot.rst) decompresses: setup_sects, payload_offset, payload_length."""
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    return image[start : start + length]
