"""`reload` and `completion`."""

from __future__ import annotations

from ipvsw.cli.command import Asked, Command, Usage, first, read_nothing

SHELLS = ("bash", "zsh")


def _write_reload(actions: list[str], asked: Asked) -> str:
    return "\n".join(actions) or "nothing has changed"


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
A file with a mistake changes nothing.
""",
        read=read_nothing,
        run=lambda asked: asked.client.reload(),
        write=_write_reload,
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
