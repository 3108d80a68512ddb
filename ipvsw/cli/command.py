"""A command of the tool: one record with its words, its help, what it does, prints and is completed by.

The tool starts on every TAB of a shell. So the commands know the model and the configuration's keys by type alone, and
import the little that one of them needs when it runs: msgspec's import takes longer than the daemon's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ipvsw import DEFAULT_SOCKET

if TYPE_CHECKING:
    from ipvsw.cli.complete import Names
    from ipvsw.client import Client
    from ipvsw.config.keys import Key


class Usage(Exception):
    """The words were not understood; `command` is how far they were."""

    def __init__(self, text: str, command: str = "") -> None:
        super().__init__(f"{command}: {text}" if command else text)
        self.command = command


class Failed(Exception):
    """One line for stderr."""


class Option(NamedTuple):
    name: str
    help: str
    operand: str = ""  # what follows it; "" for nothing
    short: str = ""
    required: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.operand}" if self.operand else self.name


class Asked:
    """One command line."""

    def __init__(self) -> None:
        self.command = ""
        self.name: str | None = None  # of a switch, a port or a shell; for "help", of the command
        self.socket = DEFAULT_SOCKET
        self.json = False
        self.argv: list[str] = []  # the command that `exec` runs
        self.options: dict[str, str] = {}  # of the command alone, without their dashes; "" without an operand
        self.port: dict[str, Any] = {}  # the API's keys
        self.mode: str | None = None
        self.flag: str | None = None

    @property
    def client(self) -> Client:
        from ipvsw.client import Client  # help needs none, and pays for none

        return Client(self.socket)

    @property
    def required_name(self) -> str:
        assert self.name is not None, "the command's `read` sees to it"
        return self.name


def silent(result: Any, asked: Asked) -> str:
    return ""


class Command(NamedTuple):
    """`read` takes the words after the name; errors: Usage. `run` returns what --json prints, as the API gave it;
    `write` makes text of that, unless it is None: then everything is said. Without `write` the result is the text, or
    None. `complete` gives what may stand after
    the words that are there."""

    name: str  # as it is typed, "link add"
    summary: str
    about: str  # the help, after the usage
    read: Callable[[list[str], Asked], None]
    run: Callable[[Asked], Any]
    operands: str = ""
    write: Callable[[Any, Asked], str] | None = None
    complete: Callable[[list[str], Names], Iterable[str]] = lambda words, names: ()
    options: tuple[Option, ...] = ()
    aliases: tuple[str, ...] = ()
    keywords: Callable[[], dict[str, Key]] = dict  # of the configuration, that it takes
    argv: bool = False  # whether "--" and a command line may follow
    code: Callable[[Any], int] = lambda result: 0  # the exit code for a result


# ---------------------------------------------------------------------------- words that many commands have


def read_nothing(words: list[str], asked: Asked) -> None:
    if words:
        raise Usage(f"{words[0]}: one word too many", asked.command)


def read_name(words: list[str], asked: Asked) -> None:
    """[dev] [NAME]"""
    if words and words[0] == "dev" and len(words) > 1:
        words = words[1:]
    if words:
        asked.name = words[0]
    read_nothing(words[1:], asked)


def read_show_name(words: list[str], asked: Asked) -> None:
    """[show|list] [dev] [NAME]"""
    read_name(words[1:] if words and words[0] in ("show", "list") else words, asked)


def read_port(words: list[str], asked: Asked) -> None:
    """[dev] PORT"""
    read_name(words, asked)
    if asked.name is None:
        raise Usage("the name of a port is missing", asked.command)


# ---------------------------------------------------------------------------- what may stand there


def first(choices: Callable[[Names], Iterable[str]]) -> Callable[[list[str], Names], Iterable[str]]:
    """One word of `choices`, after `dev` too."""
    return lambda words, names: () if words and words != ["dev"] else choices(names)
