"""`make soak`: the daemon under traffic for MINUTES, while everything around it is changed at random.

    python -m tests.soak.run [--minutes 30] [--seed 1] [--out build/soak]

In the first fifth daemons are killed, restarted and taken over too. The last of them then lives to the end, so that the
slope of its memory says something: some hundred changes of each kind follow each other without a pause, after which its
heaps and buffers have been used as far as they ever are. Every few seconds memory and descriptors of daemon and keeper
are recorded. A table and, where matplotlib is installed, a picture are left in the folder; the exit status is 1 if
anything went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support import leftovers
from tests.support.outage import LinkEvents, Numbered
from tests.support.patience import until
from tests.support.running import Daemon, again, port, switch, take_over
from tests.support.topology import WIRE4, Lab, batch, port4, run
from tests.support.traffic import Stream

RATE = 200  # datagrams a second on each of the flows
PAUSE = 0.0, 2.0  # seconds between two changes
EVERY = 5.0  # seconds between two samples
WARM = 350  # rounds of changes: what memory does before is not in the slope


class Soak:
    """One run. `changes` counts what was done, `errors` says what went wrong."""

    def __init__(self, lab: Lab, daemon: Daemon, dice: random.Random) -> None:
        self.lab, self.daemon, self.dice = lab, daemon, dice
        self.changes: Counter[str] = Counter()
        self.errors: list[str] = []
        self.samples: list[tuple[float, int, int, int]] = []  # seconds, pid, memory in KiB, descriptors
        self.start = self._sampled = time.monotonic()
        self.good = daemon.config.read_text()
        self.warm_at = 0.0  # seconds

    def request(self, method: str, path: str, body: object = None) -> None:
        status, answer = self.daemon.call(method, path, body)
        assert status < 300, f"{method} {path}: {status}: {answer}"

    def churn_port(self) -> None:
        wanted = {"master": "m0", "name": "churn", "netns": self.lab.ports[2], "addresses": [f"{port4(9)}/16"]}
        self.request("POST", "/v1/ports", wanted)
        self.lab.reachable(self.lab.ports[2], port4(1))
        self.request("DELETE", "/v1/ports/churn")

    def churn_addresses(self) -> None:
        addresses = [f"10.1.{100 + self.dice.randrange(90)}.{k}/32" for k in range(1, 50)]
        batch((f"addr add {address} dev ipvl2" for address in addresses), self.lab.ports[1])
        self.lab.reachable(self.lab.ports[0], addresses[-1].partition("/")[0])
        batch((f"addr del {address} dev ipvl2" for address in addresses), self.lab.ports[1])

    def reload(self) -> None:
        added = f'\n[[switch.port]]\nname = "filed"\nnetns = "{self.lab.ports[2]}"\naddresses = ["{port4(8)}/16"]\n'
        for text in (self.good + added, self.good):
            self.daemon.config.write_text(text)
            self.request("POST", "/v1/reload")

    def flap_master(self) -> None:
        self.lab.ip(self.lab.host, "link", "set", "m0", "down")
        self.lab.ip(self.lab.host, "link", "set", "m0", "up")

    def remove_filters(self) -> None:
        before = self.daemon.stats()[0]["repaired"].get("filters", 0)
        run("tc", "-n", self.lab.host, "qdisc", "del", "dev", "m0", "clsact")
        until(lambda: self.daemon.stats()[0]["repaired"].get("filters", 0) > before, "the filters are put back")

    def kill(self) -> None:
        again(self.daemon)

    def take_over(self) -> None:
        take_over(self.daemon)

    def hang_up(self) -> None:
        os.kill(self.daemon.pid, signal.SIGHUP)

    def sample(self) -> None:
        now = time.monotonic()
        if now >= self._sampled + EVERY:
            self._sampled = now
            self.samples.append((now - self.start, self.daemon.pid, self.daemon.rss() // 1024, self.daemon.fds()))

    def run(self, minutes: float, flows: list[Numbered], streams: list[Stream]) -> None:
        end = self.start + minutes * 60
        gentle: list[Callable[[], None]] = [
            self.churn_port, self.churn_addresses, self.reload, self.flap_master, self.remove_filters, self.hang_up,
        ]  # fmt: skip
        rough = self.start + minutes * 60 / 5
        while time.monotonic() < end:
            if time.monotonic() > rough and not self.warm_at:
                self.warm_up()
            change = self.dice.choice(gentle if self.warm_at else [*gentle, self.kill, self.take_over])
            self.changes[change.__name__] += 1
            try:
                change()
                for flow in flows:
                    flow.goes_on()
                for stream in streams:
                    stream.flows()
            except Exception as error:
                self.errors.append(f"{time.monotonic() - self.start:.0f} s, {change.__name__}: {error}")
            self.sample()
            time.sleep(self.dice.uniform(*PAUSE))

    def warm_up(self) -> None:
        for _ in range(WARM):
            for change in (self.churn_port, self.churn_addresses, self.reload, self.flap_master):
                change()
                self.changes[change.__name__] += 1
            self.sample()
        self.warm_at = time.monotonic() - self.start

    def of_last(self) -> list[tuple[float, int, int]]:
        """Seconds, memory and descriptors of the daemon that has lived to the end, once it was warm."""
        return [(at, rss, fds) for at, _, rss, fds in self.samples if at >= self.warm_at]


def slope(points: list[tuple[float, int]]) -> float:
    """Of a straight line through them, by least squares; a minute."""
    if len(points) < 2:
        return 0.0
    return 60 * statistics.linear_regression(*zip(*points, strict=True)).slope


def picture(path: Path, samples: list[tuple[float, int, int, int]]) -> None:
    """Nothing where there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True)
    minutes = [at / 60 for at, *_ in samples]
    above.plot(minutes, [rss / 1024 for _, _, rss, _ in samples], ".")
    above.set_ylabel("memory, MiB")
    below.plot(minutes, [fds for *_, fds in samples], ".")
    below.set_ylabel("descriptors")
    below.set_xlabel("minutes")
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with Lab(3) as lab, contextlib.ExitStack() as stack:
        before = leftovers.network(lab)
        ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports[:2], 1)]
        daemon = stack.enter_context(Daemon(switch("m0", lab.host, ports), home=lab.home))
        daemon.wait()
        soak = Soak(lab, daemon, random.Random(arguments.seed))
        with (
            LinkEvents(lab, lab.ports[2]),
            Stream(lab.ports[0], lab.ports[1], port4(2)) as stream,
            Numbered(lab.ports[0], lab.ports[1], port4(2), rate=RATE) as between,
            Numbered(lab.wire, lab.ports[0], port4(1), rate=RATE) as inwards,
            Numbered(lab.ports[1], lab.wire, WIRE4, rate=RATE) as outwards,
        ):
            flows = {"port to port": between, "from the wire": inwards, "to the wire": outwards}
            soak.run(arguments.minutes, list(flows.values()), [stream])
        lines = [
            f"{name}: {flow.sent} sent, {flow.lost} lost, {flow.doubled} doubled, longest gap {flow.gap:.3f} s"
            for name, flow in flows.items()
        ]
        tracebacks = daemon.said().count("Traceback")
        daemon.stop()
        until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)
    last = soak.of_last()
    memory, descriptors = slope([(at, rss) for at, rss, _ in last]), slope([(at, fds) for at, _, fds in last])
    lines += [
        f"changes: {', '.join(f'{name} {count}' for name, count in sorted(soak.changes.items()))}",
        f"memory: {last[0][1]} KiB to {last[-1][1]} KiB, {memory:+.2f} KiB a minute",
        f"descriptors: {last[0][2]} to {last[-1][2]}, {descriptors:+.3f} a minute",
        f"tracebacks in the log: {tracebacks}",
        f"errors: {len(soak.errors)}",
        *soak.errors,
    ]
    table = "\n".join("\t".join(map(str, sample)) for sample in soak.samples)
    (arguments.out / "samples.tsv").write_text(f"seconds\tpid\tmemory KiB\tdescriptors\n{table}\n")
    (arguments.out / "report.txt").write_text("\n".join(lines) + "\n")
    picture(arguments.out / "soak.png", soak.samples)
    print("\n".join(lines))
    return 1 if soak.errors or tracebacks or abs(descriptors) > 1 else 0


if __name__ == "__main__":
    raise SystemExit(main())
