"""What `--help` prints, made from the commands' records."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from ipvsw.cli.command import Command, Option
from ipvsw.cli.commands import BY_NAME, OPTIONS, below, top_level
from ipvsw.config.keys import MODE, Key
from ipvsw.config.port_keys import MACHINES
from ipvsw.model import Kind

WIDTH = 100


def help_text(name: str) -> str:
    """Of the command `name`, or "" for the whole tool."""
    return _of_command(BY_NAME[name]) if name else _of_tool()


def _of_tool() -> str:
    return f"""\
usage: ipvsw [OPTIONS] COMMAND

Show, and change, what ipvswd switches. Commands may be shortened, as `ipvsw l a`.

Commands:
{command_list()}
A port whose name is on several switches is written SWITCH/PORT.

Options, before or after the command:
{_option_list(OPTIONS)}
Exit status: 0 done, 1 failed (one line on stderr), 2 not understood.
"""


def command_list() -> str:
    return _columns((_head(BY_NAME[name]), BY_NAME[name].summary) for name in top_level())


def _head(command: Command) -> str:
    """With its operands, unless they are many."""
    head = f"{command.name} {command.operands}".strip()
    return head if len(head) <= 24 else command.name


def _of_command(command: Command) -> str:
    inner = [BY_NAME[name] for name in dict.fromkeys(below(command.name).values())]
    words = [command.name, command.operands, *map(bracketed, command.options)]
    parts = [
        textwrap.fill(" ".join(filter(None, words)), WIDTH, initial_indent="usage: ipvsw ", subsequent_indent=" " * 13),
        command.about.rstrip(),
        _columns((one.name, one.summary) for one in inner) + "\nMore on each: ipvsw link add --help" if inner else "",
        _keyword_list(keywords) if (keywords := command.keywords()) else "",
        _option_list(command.options),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def bracketed(option: Option) -> str:
    """Its words are not torn apart at the end of a line."""
    word = str(option).replace(" ", "\N{NO-BREAK SPACE}")
    return word if option.required else f"[{word}]"


def _option_list(options: Iterable[Option]) -> str:
    return _columns(((f"{one.short}, {one}" if one.short else f"    {one}"), one.help) for one in options)


def _keyword_list(keywords: dict[str, Key]) -> str:
    of_all = {word: key for word, key in keywords.items() if Kind.NETNS in key.kinds}
    of_machines = {word: key for word, key in keywords.items() if word not in of_all}
    return (
        _columns(_keyword_rows(of_all))
        + "\nMode and flag belong to the switch; without these words one that is there keeps its own:\n\n"
        + _columns((f"{key.word} {key.operand}".strip(), _plain(key.help)) for key in MODE)
        + "\nFor type ipvtap, a virtual machine's port:\n\n"
        + _columns(_keyword_rows(of_machines))
    )


def _keyword_rows(keywords: dict[str, Key]) -> Iterator[tuple[str, str]]:
    for word, key in keywords.items():
        kinds = f"kind {', '.join(key.kinds)}: " if set(key.kinds) < set(MACHINES) else ""
        several = "; may be repeated" if key.is_list else ""
        default = "" if key.required else f" [{key.default_words}]"
        yield f"{word} {key.operand}", _plain(f"{kinds}{key.help}{several}{default}")


def _plain(text: str) -> str:
    return text.replace("`", "")


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    wide = max((len(head) for head, _ in rows), default=0) + 4
    return "".join(
        textwrap.fill(text, WIDTH, initial_indent=f"  {head}".ljust(wide), subsequent_indent=" " * wide) + "\n"
        for head, text in rows
    ).replace("\N{NO-BREAK SPACE}", " ")
