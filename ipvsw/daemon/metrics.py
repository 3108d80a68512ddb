"""The counters and states as metrics of Prometheus. The only user of prometheus_client.

How many samples there are: for each port at most as many as outcomes, of which those that are 0 are left out, and seven
more; for each switch a fixed number. docs/reference/metrics.md has the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from ipvsw import __version__
from ipvsw.status import PortState, States, SwitchStats, Traffic

INTERFACE = ("switch", "kind", "port")
"""Labels of what an interface has: `kind` is port, master or host; of the last two `port` is empty."""

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


def exposition(stats: Sequence[SwitchStats], states: Mapping[str, States], accept: str) -> tuple[bytes, str]:
    """The text and its type, as the scraper's header Accept wants it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Collected([*families(stats, states)]))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collected:
    def __init__(self, found: Sequence[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def families(stats: Sequence[SwitchStats], states: Mapping[str, States]) -> Iterator[Metric]:
    yield InfoMetricFamily("ipvsw", "The daemon", value={"version": __version__})
    for field, name, text in TRAFFIC:
        family = CounterMetricFamily(name, text, labels=INTERFACE)
        for labels, traffic in _interfaces(stats):
            family.add_metric(labels, getattr(traffic, field))
        yield family
    family = CounterMetricFamily("ipvsw_frames", "How frames that were read ended", labels=(*INTERFACE, "outcome"))
    for labels, traffic in _interfaces(stats):
        for outcome, count in traffic.outcomes.items():
            if count or labels[1] != "port":
                family.add_metric((*labels, outcome), count)
    yield family
    for field, name, text in BY_SWITCH:
        family = CounterMetricFamily(name, text, labels=("switch",))
        for one in stats:
            family.add_metric((one.name,), getattr(one, field))
        yield family
    for field, name, label, text in BY_OUTCOME:
        family = CounterMetricFamily(name, text, labels=("switch", label))
        for one in stats:
            for key, count in getattr(one, field).items():
                family.add_metric((one.name, key), count)
        yield family
    yield from _states(states)


def _states(states: Mapping[str, States]) -> Iterator[Metric]:
    ports = GaugeMetricFamily("ipvsw_port_up", "Whether the port is up", labels=("switch", "port"))
    masters = GaugeMetricFamily("ipvsw_master_up", "Whether the switch's master is up", labels=("switch",))
    addresses = GaugeMetricFamily("ipvsw_addresses", "Addresses in the switch's table", labels=("switch",))
    for switch, found in states.items():
        masters.add_metric((switch,), found.master is PortState.UP)
        addresses.add_metric((switch,), found.addresses)
        for port, state in found.ports.items():
            ports.add_metric((switch, port), state is PortState.UP)
    yield from (masters, ports, addresses)


def _interfaces(stats: Sequence[SwitchStats]) -> Iterator[tuple[tuple[str, str, str], Traffic]]:
    for one in stats:
        yield (one.name, "master", ""), one.master
        yield (one.name, "host", ""), one.host
        for port, traffic in one.ports.items():
            yield (one.name, "port", port), traffic
