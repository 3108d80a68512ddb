"""`reload`, `save` and `completion`."""

from __future__ import annotations

import contextlib
import os

from ipvsw.cli.command import Asked, Command, Failed, Option, Usage, first, read_nothing

SHELLS = ("bash", "zsh")


def _reload(asked: Asked) -> list[str]:
    return asked.client.plan() if "dry-run" in asked.options else asked.client.reload()


def _write_reload(actions: list[str], asked: Asked) -> str:
    return "\n".join(actions) or "nothing has changed"


def _read_file(words: list[str], asked: Asked) -> None:
    """[FILE|-]"""
    asked.name = words[0] if words else "-"
    read_nothing(words[1:], asked)


def _save(asked: Asked) -> str:
    """The text, or nothing when it is in the file."""
    text = asked.client.config()
    if asked.required_name == "-":
        return text
    try:
        _replace(os.path.realpath(asked.required_name), text)
    except OSError as error:
        raise Failed(f"{asked.name}: {error.strerror}") from None
    return ""


def _replace(path: str, text: str) -> None:
    """The file has either all of `text` or what it had before. Errors: OSError."""
    beside = f"{path}.{os.getpid()}"
    try:
        with open(beside, "x") as file:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(beside, os.stat(path).st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _read_shell(words: list[str], asked: Asked) -> None:
    if not words or words[0] not in SHELLS:
        raise Usage("say bash or zsh", asked.command)
    asked.name = words[0]
    read_nothing(words[1:], asked)


def _completion(asked: Asked) -> str:
    from importlib import resources  # slow to import

    return resources.files(__package__).joinpath("completions", f"ipvsw.{asked.name}").read_text()


COMMANDS = (
    Command(
        name="reload",
        summary="read the configuration file again",
        about="""\
Have the daemon read its configuration file again, do what has changed in it, and print that.
A file with a mistake changes nothing. Ports that do not change lose no frame.
""",
        read=read_nothing,
        run=_reload,
        write=_write_reload,
        options=(Option("--dry-run", "print what would be done, and do nothing"),),
    ),
    Command(
        name="save",
        summary="write what runs as a configuration file",
        operands="[FILE|-]",
        about="""\
Write what runs as a configuration file, to stdout without FILE. When ipvswd reads it, the same
runs: what `link add` and `link set` have changed is in it, comments and defaults are not. FILE is
replaced as a whole. Ports that `ip link add ... type ipvsw` has made are not in it.
""",
        read=_read_file,
        run=_save,
    ),
    Command(
        name="completion",
        summary="the completion script for bash or zsh",
        operands="bash|zsh",
        about="""\
Print the completion script of a shell. For this shell alone:

  bash:  source <(ipvsw completion bash)
  zsh:   source <(ipvsw completion zsh)

For good: write it to /etc/bash_completion.d/ipvsw, or as _ipvsw into a directory of zsh's $fpath.
""",
        read=_read_shell,
        run=_completion,
        complete=first(lambda names: SHELLS),
    ),
)
