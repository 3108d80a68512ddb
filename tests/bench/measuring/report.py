"""Results as Markdown, JSON and a picture."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.measuring.rows import Row

HERE = Path(__file__).resolve().parent
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.3, 1.5, 2, 3, 5, 7, 10, 15, 20, 50)


@dataclass(frozen=True)
class Marks:
    """Two comments of a document between which a command keeps what it has found."""

    name: str

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}: begin -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}: end -->"

    def around(self, file: Path) -> tuple[str, str]:
        """What is before the first and after the second. Errors: ValueError."""
        text = file.read_text()
        if text.count(self.begin) != 1 or text.count(self.end) != 1:
            raise ValueError(f"{file}: the marks {self.begin} and {self.end} are not there, once each")
        return text.split(self.begin)[0], text.split(self.end)[1]

    def fill(self, file: Path, text: str) -> None:
        """Errors: ValueError."""
        before, after = self.around(file)
        file.write_text(f"{before}{self.begin}\n\n{text}\n\n{self.end}{after}")


MARKS = Marks("results")


@dataclass(frozen=True)
class Result:
    """A row with what was found, round by round; or with the reason why nothing was."""

    row: Row
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)  # what is judged: quotients, or `ours` where nothing is beside
    reason: str = ""

    @property
    def verdict(self) -> str:
        if self.reason or self.row.wanted is None:
            return ""
        value, wanted = median(self.values), self.row.wanted
        if wanted.aim is not None and type(wanted)(wanted.sense, wanted.aim).met(value):
            return "aim"
        return "yes" if wanted.met(value) else "**no**"


@dataclass(frozen=True)
class Circumstances:
    machine: str
    commit: str
    rounds: int
    seconds: float  # of one measurement
    took: float  # seconds
    measurements: int
    repeated: int
    disturbed: int
    foreign: float  # share of a CPU used by others that makes a measurement a disturbed one

    def sentences(self) -> str:
        disturbed = (
            f"**{self.disturbed} were taken while others used more than {self.foreign:.0%} of a CPU.**"
            if self.disturbed
            else f"Nobody else used more than {self.foreign:.0%} of a CPU during any."
        )
        return (
            f"{self.machine}; commit {self.commit}\n\nRounds: {self.rounds}, {self.seconds:g} s for each measurement; "
            f"{self.measurements} measurements in {self.took / 60:.1f} min, {self.repeated} repeated. {disturbed}"
        )


def machine() -> str:
    """When, on what, and what it did before."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    virtual = ", virtual" if any(line.startswith("flags") and "hypervisor" in line for line in lines) else ""
    return (
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}: {os.cpu_count()} x {model}{virtual}, {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, load before {os.getloadavg()[0]:.2f}"
    )


def commit() -> str:
    """Of what is measured; "-dirty" if something has been changed since."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        said = subprocess.run(describe, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        said = ""
    return said or "unknown"


# ---------------------------------------------------------------------------- Markdown and JSON


def number(value: float) -> str:
    """Three significant digits."""
    if math.isnan(value):
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 0.001 else f"{value:.1e}"


def spread(values: Sequence[float], unit: str = "") -> str:
    text = number(median(values)) + (f" {unit}" if unit else "")
    return f"{text} [{number(min(values))}..{number(max(values))}]" if len(values) > 1 else text


def table(results: Sequence[Result]) -> str:
    lines = [
        "| | | ipvsw | beside | | ratio | wanted | is it |",
        "|---|---|--:|---|--:|--:|---|---|",
    ]
    for one in results:
        row, wanted = one.row, str(one.row.wanted or "")
        if one.reason:
            reason = " ".join(one.reason.split())[:120].replace("|", "/")
            cells = [row.id, row.what, "", row.beside, "", f"not measured: {reason}", wanted, ""]
        elif row.theirs is None:
            cells = [row.id, row.what, spread(one.ours, row.unit), "", "", "", wanted, one.verdict]
        else:
            sides = [spread(side, row.unit) for side in (one.ours, one.theirs)]
            ratio = f"**{number(median(one.values))}** [{number(min(one.values))}..{number(max(one.values))}]"
            cells = [row.id, row.what, sides[0], row.beside, sides[1], ratio, wanted, one.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(results: Sequence[Result], circumstances: Circumstances) -> str:
    return f"{circumstances.sentences()}\n\n{table(results)}"


def document(results: Sequence[Result], circumstances: Circumstances) -> dict[str, Any]:
    return {
        **asdict(circumstances),
        "rows": [
            {
                "id": one.row.id,
                "what": one.row.what,
                "unit": one.row.unit,
                "ipvsw": one.ours,
                "beside": one.row.beside,
                "other": one.theirs,
                "ratios" if one.row.theirs else "values": one.values,
                "median": median(one.values),
                "spread": [min(one.values), max(one.values)],
                "wanted": str(one.row.wanted or ""),
                "met": None if one.row.wanted is None else one.row.wanted.met(median(one.values)),
            }
            for one in results
            if not one.reason
        ],
        "missing": [{"id": one.row.id, "what": one.row.what, "reason": one.reason} for one in results if one.reason],
    }


# ---------------------------------------------------------------------------- the picture


def picture(results: Sequence[Result], circumstances: Circumstances, file: Path) -> str:
    """Ratios with their spread, beside what is wanted. Returns the reason if it can't be drawn."""
    shown = [one for one in reversed(results) if one.theirs and not any(math.isnan(value) for value in one.values)]
    if not shown:
        return "there is no ratio to draw"
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return "matplotlib is not installed"
    figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.28 * len(shown)), layout="constrained")
    for at, one in enumerate(shown):
        middle, wanted = median(one.values), one.row.wanted
        colour = "tab:gray" if wanted is None else "tab:green" if wanted.met(middle) else "tab:red"
        axes.plot([min(one.values), max(one.values)], [at, at], color=colour, linewidth=2)
        axes.plot([middle], [at], "o", color=colour)
        if wanted is not None:
            axes.plot([wanted.least], [at], ">" if wanted.sense == ">=" else "<", color="black", markersize=4)
    axes.axvline(1.0, color="black", linewidth=0.5)
    axes.set_yticks(
        range(len(shown)), [f"{one.row.id}: {one.row.what} / {one.row.beside}" for one in shown], fontsize=7
    )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", linewidth=0.3)
    figure.supxlabel(
        "ratio: median and spread over the rounds; a triangle is what is wanted, and points to what is better",
        fontsize=8,
    )
    figure.suptitle(f"{circumstances.machine}; commit {circumstances.commit}", fontsize=7)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return ""


# ---------------------------------------------------------------------------- files


def write(results: Sequence[Result], circumstances: Circumstances, where: Path, name: str = "bench") -> str:
    """NAME.md, NAME.json and NAME.png in a directory. Returns the reason if there is no picture."""
    where.mkdir(parents=True, exist_ok=True)
    reason = picture(results, circumstances, where / f"{name}.png")
    text = markdown(results, circumstances) + (f"\n\nNo picture: {reason}." if reason else "")
    (where / f"{name}.md").write_text(text + "\n")
    (where / f"{name}.json").write_text(json.dumps(document(results, circumstances), indent=1) + "\n")
    return reason


def keep(results: Sequence[Result], circumstances: Circumstances, file: Path) -> None:
    """In the document, between its marks; JSON and picture beside it under the same name. Errors: ValueError."""
    MARKS.around(file)  # before anything is written
    reason = write(results, circumstances, file.parent, file.stem + "-results")
    (file.parent / f"{file.stem}-results.md").unlink()
    drawn = f"No picture: {reason}." if reason else f"![ratios]({file.stem}-results.png)"
    links = f"{drawn}\n\nEvery single measurement: [{file.stem}-results.json]({file.stem}-results.json)."
    MARKS.fill(file, f"{markdown(results, circumstances)}\n\n{links}")
