"""The command line tool `ipvsw`: words -> API calls; tables, --json, exit codes (0 done, 1 failed, 2 usage).

It starts on every TAB of a shell, so it imports little: no event loop, no HTTP server, and what one command alone needs
only there (see `command`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from ipvsw import __version__
from ipvsw.cli.command import Failed, Usage
from ipvsw.cli.commands import BY_NAME, understand
from ipvsw.cli.complete import candidates
from ipvsw.cli.record import OtherVersion
from ipvsw.client import ApiError, Unreachable


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        words = arguments[:2] == ["completion", "words"]
        text, code = ("\n".join(candidates(arguments[2:])), 0) if words else _run(arguments)
        if text:
            print(text.rstrip("\n"))
        sys.stdout.flush()
        return code
    except Usage as error:
        hint = f"ipvsw {error.command} --help" if error.command else "ipvsw --help"
        print(f"ipvsw: {error} (see {hint})", file=sys.stderr)
        return 2
    except (Failed, ApiError, Unreachable) as error:
        print(f"ipvsw: {error}", file=sys.stderr)
        return 1
    except OtherVersion as error:
        print(f"ipvsw: the daemon's answer is of another version than {__version__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 1
    except KeyboardInterrupt:
        return 1


def _run(arguments: Sequence[str]) -> tuple[str, int]:
    """What to print, and the exit code."""
    asked = understand(arguments)
    command = BY_NAME[asked.command]
    result = command.run(asked)
    if command.write is None or result is None:
        return result or "", 0
    return json.dumps(result, indent=2) if asked.json else command.write(result, asked), command.code(result)
