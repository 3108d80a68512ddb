"""What an OSError says of a device: that it is gone, or nothing."""

from __future__ import annotations

import errno

_GONE = frozenset({errno.EBADFD, errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.ESRCH})


def is_gone(error: OSError) -> bool:
    """Whether the device or its namespace does not exist any more. Of everything else (EMFILE, ENFILE, ENOMEM, EINTR,
    EPERM, ...) the daemon is the cause, or the machine: the device is where it was, and is asked about again."""
    return error.errno in _GONE
