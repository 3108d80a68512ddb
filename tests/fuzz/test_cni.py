"""The CNI plugin against configurations, environments and IPAM plugins that nobody would have: whatever it is given, it
answers with a result or with an error of the specification's form, and never with one of its own making."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.test_api import JSON
from tests.support.running import ROOT
from tests.unit.daemon.fake_manager import Daemon

BROKEN = 101  # the plugin's own code for what it did not foresee
ANSWERS = {"ips": [{"address": "10.1.0.2/16", "gateway": "10.1.0.254"}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}}
FUZZ = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Plugin = Callable[[bytes, dict[str, str]], tuple[int, str]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cni")


@pytest.fixture(scope="module")
def plugin(directory: Path) -> Plugin:
    """Exit code and words of the plugin as it is installed, run in this process."""
    subprocess.run([ROOT / "scripts/plugin", "cni", directory / "ipvsw"], check=True)
    main = runpy.run_path(str(directory / "ipvsw"))["main"]

    def run(content: bytes, environment: dict[str, str]) -> tuple[int, str]:
        said = io.StringIO()
        given = io.TextIOWrapper(io.BytesIO(content))
        environ = mock.patch.dict(os.environ, environment)
        with mock.patch.object(sys, "stdin", given), environ, contextlib.redirect_stdout(said):
            return main(), said.getvalue()

    return run


@pytest.fixture(scope="module")
def config(directory: Path) -> Iterator[dict[str, Any]]:
    """One that would do, with a daemon, and an IPAM plugin that says what the file `answer` has."""
    ipam = directory / "ipam"
    ipam.write_text(f"#!/bin/sh\nexec cat {directory}/answer\n")
    ipam.chmod(0o755)
    daemon = Daemon(directory / "api.sock")
    yield {
        "cniVersion": "1.1.0",
        "name": "net",
        "master": "eth0",
        "mode": "l2",
        "mtu": 1400,
        "ipam": {"type": "ipam"},
        "dns": {"nameservers": ["10.1.0.254"]},
        "runtimeConfig": {"ips": ["10.1.0.2/16"], "mac": "02:00:00:00:00:05", "bandwidth": {"egressRate": 1000}},
        "prevResult": {"interfaces": [{"name": "eth0", "sandbox": "/x"}], **ANSWERS},
        "ipvsw": {"socket": str(directory / "api.sock"), "guard": "strict", "routes": ["198.51.100.0/24"]},
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
    }
    daemon.close()


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in it something stands."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*above, key)
        yield from places(value[key], (*above, key))


def changed(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    copy = json.loads(json.dumps(value))
    inside = copy
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = other
    return copy


def judge(code: int, said: str) -> None:
    assert code in (0, 1), said
    answer = json.loads(said) if said else None
    if code:
        assert isinstance(answer["code"], int) and answer["code"] not in (0, BROKEN), said
        assert isinstance(answer["msg"], str) and answer["msg"] and isinstance(answer["cniVersion"], str)


VERBS = st.sampled_from(["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"])


def environment(verb: str, directory: Path) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(directory),
    }


@FUZZ
@given(data=st.data(), verb=VERBS, other=JSON)
def test_a_configuration_with_something_odd_in_it(
    plugin: Plugin, config: dict[str, Any], directory: Path, data: st.DataObject, verb: str, other: Any
) -> None:
    (directory / "answer").write_text(json.dumps(ANSWERS))
    place = data.draw(st.sampled_from(list(places(config))))
    without = data.draw(st.sampled_from([(), ("ipam",), ("prevResult",), ("ipam", "prevResult")]))
    odd = {key: value for key, value in changed(config, place, other).items() if key not in without}
    judge(*plugin(json.dumps(odd).encode(), environment(verb, directory)))


@FUZZ
@given(data=st.data(), other=JSON)
def test_an_ipam_plugin_that_says_something_odd(
    plugin: Plugin, config: dict[str, Any], directory: Path, data: st.DataObject, other: Any
) -> None:
    place = data.draw(st.sampled_from([(), *places(ANSWERS)]))
    (directory / "answer").write_text(json.dumps(changed(ANSWERS, place, other) if place else other))
    judge(*plugin(json.dumps(config).encode(), environment("ADD", directory)))


@FUZZ
@given(content=st.binary(max_size=40), verb=VERBS | st.text(max_size=5).filter(lambda one: "\0" not in one))
def test_what_is_no_configuration(plugin: Plugin, directory: Path, content: bytes, verb: str) -> None:
    judge(*plugin(content, environment(verb, directory)))


VARIABLES = st.sampled_from(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"])
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=20)


@FUZZ
@given(
    name=st.sampled_from(["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"]), value=TEXT, verb=VERBS
)
def test_an_environment_with_something_odd_in_it(
    plugin: Plugin, config: dict[str, Any], directory: Path, name: str, value: str, verb: str
) -> None:
    (directory / "answer").write_text(json.dumps(ANSWERS))
    value = os.fsdecode(value.encode(errors="replace"))
    judge(*plugin(json.dumps(config).encode(), environment(verb, directory) | {name: value}))
