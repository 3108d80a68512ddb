"""Metrics: what they say, that those who read them understand it, and what they cost."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from ipvsw._fast import OUTCOMES
from ipvsw.daemon.api.listener import open_sockets
from ipvsw.daemon.api.server import serve
from ipvsw.daemon.metrics import BY_OUTCOME, BY_SWITCH, TRAFFIC, exposition
from ipvsw.model import Refused
from ipvsw.status import PortState, States, SwitchStats, Traffic
from tests.support.effort import calls
from tests.support.patience import LIMIT
from tests.unit.daemon.fake_manager import STATS, Daemon

ROOT = Path(__file__).resolve().parents[3]
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
RULES = ROOT / "contrib" / "prometheus-rules.yml"
GRAFANA = ROOT / "contrib" / "grafana.json"
STATES = {"lan": States(master=PortState.UP, ports={"ipvl0": PortState.UP, "ipvl1": PortState.DOWN}, addresses=3)}


def crowd(ports: int) -> tuple[list[SwitchStats], dict[str, States]]:
    outcomes = dict.fromkeys(OUTCOMES, 0) | {"to_port": 5, "to_ports": 7, "to_master": 11, "drop_full": 1}
    traffic = Traffic(rx_frames=24, rx_bytes=9000, tx_frames=3, tx_bytes=200, outcomes=outcomes)
    names = [f"port{k}" for k in range(ports)]
    stats = SwitchStats(name="lan", master=traffic, host=traffic, ports=dict.fromkeys(names, traffic))
    return [stats], {"lan": States(master=PortState.UP, ports=dict.fromkeys(names, PortState.UP), addresses=ports)}


def read(stats: Sequence[SwitchStats], states: dict[str, States]) -> list[Metric]:
    """What the reference parser makes of the text, without the process's."""
    text, _ = exposition(stats, states, OPENMETRICS)
    return [family for family in openmetrics(text.decode()) if family.name.startswith("ipvsw")]


def test_both_formats_are_understood_by_their_reference_parsers() -> None:
    for accept, parse, kind in (("", prometheus, "text/plain"), (OPENMETRICS, openmetrics, "application/openmetrics")):
        text, content_type = exposition(STATS, STATES, accept)
        found = {sample.name: sample for family in parse(text.decode()) for sample in family.samples}
        assert content_type.startswith(kind)
        assert found["ipvsw_info"].labels["version"]
        assert found["process_open_fds"].value > 0


def test_each_counter_is_one_sample() -> None:
    every = [sample for family in read(STATS, STATES) for sample in family.samples]
    samples = {(sample.name, *sample.labels.values()): sample.value for sample in every}
    assert samples["ipvsw_frames_total", "lan", "master", "", "to_port"] == 2
    assert samples["ipvsw_frames_total", "lan", "master", "", "vlan"] == 0
    assert samples["ipvsw_frames_total", "lan", "port", "ipvl0", "to_master"] == 1
    assert samples["ipvsw_receive_bytes_total", "lan", "master", ""] == 180
    assert samples["ipvsw_transmit_frames_total", "lan", "port", "ipvl0"] == 2
    assert samples["ipvsw_duplicate_addresses_total", "lan"] == 4
    assert samples["ipvsw_port_up", "lan", "ipvl0"] == 1 and samples["ipvsw_port_up", "lan", "ipvl1"] == 0
    assert samples["ipvsw_master_up", "lan"] == 1 and samples["ipvsw_addresses", "lan"] == 3


def test_outcomes_sum_up_to_what_was_read() -> None:
    got, ended = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for family in read(*crowd(3)):
        for sample in family.samples:
            where = tuple(sample.labels[key] for key in ("switch", "kind", "port") if key in sample.labels)
            got.update({where: int(sample.value)} if sample.name == "ipvsw_receive_frames_total" else {})
            ended.update({where: int(sample.value)} if sample.name == "ipvsw_frames_total" else {})
    assert got == ended and len(got) == 5


def test_names_that_need_escapes_are_read_as_they_are() -> None:
    name = 'a "b" \\ c'
    stats = SwitchStats(name=name, master=Traffic(outcomes={"to_port": 1}))
    for accept, parse in (("", prometheus), (OPENMETRICS, openmetrics)):
        text, _ = exposition([stats], {}, accept)
        samples = [sample for family in parse(text.decode()) for sample in family.samples]
        assert {sample.labels["switch"] for sample in samples if "switch" in sample.labels} == {name}


def test_every_counter_of_a_switch_is_there() -> None:
    others = {"name", "master", "host", "ports", "workers"}  # the load of threads is for `top`
    fields = {field.name for field in msgspec.structs.fields(SwitchStats)} - others
    assert {one[0] for one in (*BY_SWITCH, *BY_OUTCOME)} == fields
    assert {one[0] for one in TRAFFIC} | {"outcomes"} == {field.name for field in msgspec.structs.fields(Traffic)}


def test_a_scrape_is_bounded_and_its_work_grows_as_the_ports() -> None:
    work = {}
    for ports in (128, 1024):
        found = crowd(ports)
        text, _ = exposition(*found, "")
        work[ports] = calls(lambda found=found: exposition(*found, ""))
    samples = [line for line in text.decode().splitlines() if not line.startswith("#")]
    assert len(samples) < 1024 * (8 + 4) + 2 * (7 + len(OUTCOMES)) + 30, "bounded, as the document says"
    assert work[1024] < 8 * work[128]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_is_content() -> None:
    text, _ = exposition(*crowd(2), "")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    said = [line for line in (done.stdout + done.stderr).decode().splitlines() if "process_" not in line]
    assert said == []
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_rules_and_dashboard_use_metrics_that_exist() -> None:
    known = {sample.name for family in read(*crowd(2)) for sample in family.samples}
    known |= {f"{name}_total" for _, name, *_ in (*BY_SWITCH, *BY_OUTCOME)} | {"ipvsw_up"}
    dashboard = json.loads(GRAFANA.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = re.findall(r"^ +expr: (.*)$", RULES.read_text(), re.MULTILINE)
    assert len(asked) >= 8 and len(rules) >= 5
    assert {name for text in (*asked, *rules) for name in re.findall(r"\bipvsw_\w+", text)} <= known


def test_served_on_a_socket_and_on_tcp(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "api.sock")
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        sockets = open_sockets(tmp_path / "other.sock", f"127.0.0.1:{port}")
        server = daemon.run(serve(daemon.manager, sockets))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        connection.request("GET", "/metrics", headers={"Accept": OPENMETRICS})
        answer = connection.getresponse()
        assert answer.status == 200 and list(openmetrics(answer.read().decode()))
        for path in ("/v1/switches", "/v1/events"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
            connection.request("GET", path)
            assert connection.getresponse().status == 404, "metrics alone"
        with pytest.raises(Refused, match=rf"^daemon.metrics: 127.0.0.1:{port}: Address already in use$"):
            open_sockets(tmp_path / "third.sock", f"127.0.0.1:{port}")
        assert not (tmp_path / "third.sock").exists()
        daemon.run(server.close())
        assert status_of(tmp_path / "api.sock") == 200
        assert status_of(tmp_path / "api.sock.fd") == 404, "open to every user"
    finally:
        daemon.close()


def status_of(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMIT)
        connection.connect(str(path))
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return int(connection.recv(100).split()[1])


def test_the_document_has_every_metric() -> None:
    text = (ROOT / "docs/reference/metrics.md").read_text()
    every = {family.name + ("_total" if family.type == "counter" else "") for family in read(*crowd(1))}
    every = {"ipvsw_info" if name == "ipvsw" else name for name in every}
    assert set(re.findall(r"`(ipvsw_\w+)`", text)) == every
