"""Every command, and how a command line is parsed: as by ip, where every word may be shortened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ipvsw import DEFAULT_SOCKET, __version__
from ipvsw.cli import admin, link, stats, status, vm, watch
from ipvsw.cli.command import Asked, Command, Option, Usage, first, read_nothing
from ipvsw.cli.diagnose import capture, doctor, top, trace, web

OPTIONS = (
    Option("--json", "print JSON", short="-j"),
    Option("--socket", f"the daemon's socket [{DEFAULT_SOCKET}]", operand="PATH"),
    Option("--help", "help, also on what follows: ipvsw link add --help", short="-h"),
    Option("--version", "the version", short="-V"),
)
"""Of every command."""


def _read_help(words: list[str], asked: Asked) -> None:
    command, rest = find_command(words)
    asked.name = command.name if command else None
    read_nothing(rest, asked)


def _help(asked: Asked) -> str:
    from ipvsw.cli.help import help_text

    return help_text(asked.name or "")


HELP = Command(
    name="help",
    summary="what a command does",
    operands="[COMMAND]",
    about="What COMMAND does, or which commands there are.\n",
    read=_read_help,
    run=_help,
    complete=first(lambda names: top_level()),
)
VERSION = Command(
    name="--version",
    summary="the version",
    about="",
    read=read_nothing,
    run=lambda asked: f"ipvsw {__version__}",
)
COMMANDS = (
    *link.COMMANDS,
    *status.COMMANDS,
    *stats.COMMANDS,
    *watch.COMMANDS,
    *top.COMMANDS,
    *trace.COMMANDS,
    *capture.COMMANDS,
    *doctor.COMMANDS,
    *web.COMMANDS,
    *vm.COMMANDS,
    *admin.COMMANDS,
    HELP,
)
"""In the order in which a shortened word is looked for, and in which help lists them."""

BY_NAME = {command.name: command for command in (*COMMANDS, VERSION)}


def top_level() -> list[str]:
    return [command.name for command in COMMANDS if " " not in command.name]


def below(command: str) -> dict[str, str]:
    """The words after `command`, and what they stand for."""
    every = {alias: one.name for one in COMMANDS for alias in (one.name, *one.aliases)}
    return {alias.split()[1]: name for alias, name in every.items() if alias.startswith(command + " ")}


def understand(arguments: Iterable[str]) -> Asked:
    """Errors: Usage."""
    asked = Asked()
    words = list(arguments)
    if "--" in words:
        at = words.index("--")
        words, asked.argv = words[:at], words[at + 1 :]
    words, options = _take_options(words)
    if "version" in options:
        asked.command = VERSION.name
        return asked
    command, words = find_command(words)
    if "help" in options:
        asked.command, asked.name = HELP.name, command.name if command else None
        return asked
    if command is None:
        raise Usage(f"a command is missing; they are {', '.join(top_level())}")
    asked.command = command.name
    asked.json = "json" in options
    asked.socket = options.get("socket", asked.socket)
    asked.options = {name: value for name, value in options.items() if all(name != one.name[2:] for one in OPTIONS)}
    _check_options(asked, command)
    command.read(words, asked)
    for option in command.options:
        if option.required and option.name[2:] not in asked.options:
            raise Usage(f"{option} is missing", command.name)
    return asked


def _check_options(asked: Asked, command: Command) -> None:
    known = [option.name for option in command.options]
    for option in (f"--{name}" for name in asked.options):
        if option not in known:
            owners = [one.name for one in COMMANDS if any(option == each.name for each in one.options)]
            raise Usage(f"{option} is for {' and '.join(owners)}", command.name)
    if asked.argv and not command.argv:
        raise Usage(f"-- is for {' and '.join(one.name for one in COMMANDS if one.argv)}", command.name)


def _take_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words, and the options without their dashes."""
    known = {spelling: option for option in every_option() for spelling in (option.name, option.short)}
    words: list[str] = []
    options: dict[str, str] = {}
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        option = known.get(name)
        if not word.startswith("-") or word == "-":
            words.append(word)
        elif option is None or (equals and not option.operand):
            raise Usage(f"{word}: no such option")
        elif option.operand and not equals:
            following = next(rest, None)
            if following is None:
                raise Usage(f"{option.name}: {option.operand} is missing")
            options[option.name[2:]] = following
        else:
            options[option.name[2:]] = value
    return words, options


def every_option() -> Iterable[Option]:
    return (*OPTIONS, *(option for command in COMMANDS for option in command.options))


def find_command(words: Sequence[str]) -> tuple[Command | None, list[str]]:
    """The command that `words` begin with, None for no words, and the words after it. Errors: Usage."""
    if not words:
        return None, []
    name = _spelled_out(words[0], {name: name for name in top_level()})
    if name is None:
        raise Usage(f"{words[0]}: no such command; they are {', '.join(top_level())}")
    rest = list(words[1:])
    inner = below(name)
    if not rest or not inner:
        return BY_NAME[name], rest
    if rest[0] == "help":
        return HELP, [name]
    second = _spelled_out(rest[0], inner)
    if second is None:
        known = ", ".join(alias for alias, one in inner.items() if one == f"{name} {alias}")
        raise Usage(f"{rest[0]}: no such command; they are {known}", name)
    return BY_NAME[second], rest[1:]


def _spelled_out(word: str, names: dict[str, str]) -> str | None:
    """What `word` stands for, written out or shortened; the first one wins, as with ip."""
    if word in names:
        return names[word]
    return next((command for name, command in names.items() if word and name.startswith(word)), None)
