"""The records of the keys, against everything that repeats one of their facts."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from ipvsw.config.file import ATTACH, parse
from ipvsw.config.keys import DAEMON, KINDS, SWITCH, Change, Key
from ipvsw.config.port_keys import PORT
from ipvsw.config.values import ConfigError
from ipvsw.daemon.api.bodies import AddPort
from ipvsw.model import DaemonConfig, PortConfig, SwitchConfig

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "contrib" / "ipvsw.toml"
TABLES = [(DAEMON, DaemonConfig), (SWITCH, SwitchConfig), (PORT, PortConfig)]
EVERY = [key for keys, _ in TABLES for key in keys]


@pytest.mark.parametrize(("keys", "struct"), TABLES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_model_has_the_keys_and_their_defaults(keys: tuple[Key, ...], struct: type[msgspec.Struct]) -> None:
    fields = {
        field.name: msgspec.UNSET if field.default is msgspec.NODEFAULT else field.default
        for field in msgspec.structs.fields(struct)
        if field.name != "ports"
    }
    assert {key.name: key.default for key in keys} == fields


@pytest.mark.parametrize("key", EVERY, ids=lambda key: key.name)
def test_a_record_can_be_printed_everywhere(key: Key) -> None:
    assert 0 < len(key.help) <= 76 and not key.help.endswith(".")
    assert not key.more or key.more.endswith(".")
    assert set(key.kinds) <= set(KINDS)


@pytest.mark.parametrize("key", PORT, ids=lambda key: key.name)
def test_a_key_is_refused_for_other_kinds(key: Key) -> None:
    for kind in set(KINDS) - set(key.kinds):
        value = key.example or ("true" if key.type is bool else "1")
        with pytest.raises(ConfigError, match=rf"\.{key.name}: is for ports of kind .*; this one is of kind {kind}$"):
            parse(f'[[switch]]\nmaster = "m0"\n[[switch.port]]\nname = "a"\nkind = "{kind}"\n{key.name} = {value}\n')


def test_what_a_change_can_do() -> None:
    assert {key.change for key in DAEMON} == {Change.RESTART}
    assert {key.change for key in (*SWITCH, *PORT)} == {Change.IN_PLACE, Change.ANEW}


def test_the_api_takes_what_it_must() -> None:
    fields = {field.name: field for field in msgspec.structs.fields(AddPort)}
    assert list(fields) == [key.name for key in ATTACH]
    assert {name for name, field in fields.items() if field.default is msgspec.NODEFAULT} == {"master", "name"}


def test_the_documents_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reference", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def settings() -> dict[str, list[str]]:
    """The example's lines by their tables, what is a comment too."""
    found: dict[str, list[str]] = {}
    for line in EXAMPLE.read_text().splitlines()[2:]:
        if line.startswith("["):
            found.setdefault(table := line.strip("[]"), [])
        elif line:
            found[table].append(line.removeprefix("# "))
    return found


def test_the_example_has_every_key() -> None:
    found = settings()
    for table, keys in (("daemon", DAEMON), ("switch", SWITCH), ("switch.port", PORT)):
        assert {line.split(" = ")[0] for line in found[table]} == {key.name for key in keys}
    assert all(len(line) <= 120 for line in EXAMPLE.read_text().splitlines())


def test_every_line_of_the_example_is_toml_that_its_reader_takes() -> None:
    readers = {"daemon": DAEMON, "switch": SWITCH, "switch.port": PORT}
    for table, lines in settings().items():
        by_name = {key.name: key for key in readers[table]}
        for line in lines:
            ((name, value),) = tomllib.loads(line).items()
            by_name[name].read(value, name)
