"""The counters and states as metrics of Prometheus. The only user of prometheus_client.

The library says which format a scraper gets, and what there is of the process. The lines of ports are written here: it
looks at each label of each of 12,000 samples, which takes ten times as long as to write a port's labels once.

How many samples there are: for each port at most as many as outcomes, of which those that are 0 are left out, and seven
more; for each switch a fixed number. docs/reference/metrics.md has the list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from ipvsw import __version__
from ipvsw.status import PortState, States, SwitchStats, Traffic

SUFFIXES = {"counter": "_total", "info": "_info", "gauge": ""}  # of a sample's name, by the family's kind

TRAFFIC = (
    ("rx_frames", "ipvsw_receive_frames", "Frames read from the interface's device"),
    ("rx_bytes", "ipvsw_receive_bytes", "Bytes read from the interface's device"),
    ("tx_frames", "ipvsw_transmit_frames", "Frames written to the interface's device"),
    ("tx_bytes", "ipvsw_transmit_bytes", "Bytes written to the interface's device"),
    (
        "kernel_frames",
        "ipvsw_kernel_forwarded_frames",
        "Of the frames read: forwarded by the kernel alone",
    ),
    ("offload_fixed", "ipvsw_offloads_fixed", "Frames read that were segmented or completed for want of a header"),
    ("tx_errors", "ipvsw_transmit_errors", "Frames that the interface's device did not take"),
)
BY_SWITCH = (
    ("duplicates", "ipvsw_duplicate_addresses", "Addresses refused because another port or the master has them"),
    ("refused", "ipvsw_refused_addresses", "Addresses refused because the port may not claim them"),
)
BY_OUTCOME = (
    (
        "learned",
        "ipvsw_learned_addresses",
        "outcome",
        "Addresses learned from virtual machines, by how it went",
    ),
    ("routed", "ipvsw_routed_packets", "outcome", "Packets handed to the router, by what became of them"),
    ("repaired", "ipvsw_repairs", "subject", "What others had changed and was put back"),
)


class Family(NamedTuple):
    """A metric: its samples are labels, as they are written, and a value."""

    name: str
    kind: str  # one of SUFFIXES
    text: str
    samples: list[tuple[str, int]]


def exposition(stats: Sequence[SwitchStats], states: Mapping[str, States], accept: str) -> tuple[bytes, str]:
    """The text and its type, as the scraper's header Accept wants it."""
    encode, content_type = choose_encoder(accept)
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    openmetrics = content_type.startswith("application/openmetrics-text")
    ours = "".join([_written(family, openmetrics) for family in families(stats, states)])
    return ours.encode() + encode(process), content_type  # in OpenMetrics with the end


def _written(family: Family, openmetrics: bool) -> str:
    """The text format has suffixes in the head too, and doesn't know of `info`."""
    sample = family.name + SUFFIXES[family.kind]
    head, kind = (family.name, family.kind) if openmetrics else (sample, family.kind.replace("info", "gauge"))
    lines = [f"{sample}{{{labels}}} {value}\n" for labels, value in family.samples]
    return f"# HELP {head} {family.text}\n# TYPE {head} {kind}\n{''.join(lines)}"


def families(stats: Sequence[SwitchStats], states: Mapping[str, States]) -> Iterator[Family]:
    yield Family("ipvsw", "info", "The daemon", [(_labels(version=__version__), 1)])
    interfaces = [*_interfaces(stats)]
    for field, name, text in TRAFFIC:
        yield Family(name, "counter", text, [(labels, getattr(traffic, field)) for labels, traffic, _ in interfaces])
    ended = [
        (f'{labels},outcome="{outcome}"', count)
        for labels, traffic, every in interfaces
        for outcome, count in traffic.outcomes.items()
        if count or every
    ]
    yield Family("ipvsw_frames", "counter", "How frames that were read ended", ended)
    for field, name, text in BY_SWITCH:
        yield Family(name, "counter", text, [(_labels(switch=one.name), getattr(one, field)) for one in stats])
    for field, name, label, text in BY_OUTCOME:
        counts = [(one.name, key, count) for one in stats for key, count in getattr(one, field).items()]
        samples = [(_labels(**{"switch": switch, label: key}), count) for switch, key, count in counts]
        yield Family(name, "counter", text, samples)
    yield from _states(states)


def _states(states: Mapping[str, States]) -> Iterator[Family]:
    up = [
        (_labels(switch=switch, port=port), int(state is PortState.UP))
        for switch, found in states.items()
        for port, state in found.ports.items()
    ]
    masters = [(_labels(switch=switch), int(found.master is PortState.UP)) for switch, found in states.items()]
    addresses = [(_labels(switch=switch), found.addresses) for switch, found in states.items()]
    yield Family("ipvsw_master_up", "gauge", "Whether the switch's master is up", masters)
    yield Family("ipvsw_port_up", "gauge", "Whether the port is up", up)
    yield Family("ipvsw_addresses", "gauge", "Addresses in the switch's table", addresses)


def _interfaces(stats: Sequence[SwitchStats]) -> Iterator[tuple[str, Traffic, bool]]:
    """Labels, and whether outcomes are shown that are 0. `kind` is port, master or host; of the last two `port` is
    empty."""
    for one in stats:
        yield _labels(switch=one.name, kind="master", port=""), one.master, True
        yield _labels(switch=one.name, kind="host", port=""), one.host, True
        for port, traffic in one.ports.items():
            yield _labels(switch=one.name, kind="port", port=port), traffic, False


def _labels(**values: str) -> str:
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in values.items()])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
