"""Measuring by turns: every sample once a round, each round in an order of its own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench import instructions, pauses
from tests.bench.measuring import measures, quiet
from tests.bench.measuring.measures import Figures
from tests.bench.measuring.report import Result
from tests.bench.measuring.rows import Row, Sample
from tests.bench.places import crowd, tables
from tests.bench.places.ground import Ground, Path, Unavailable
from tests.bench.places.places import PLACES

PATIENCE = 0.15  # for so much of the time that the measurements themselves take


def count_instructions(_: Ground, __: Path) -> Figures:
    """By callgrind: no clock, no devices."""
    try:
        bare = instructions.per_frame()
        return {"instructions": bare, "guards": instructions.per_frame(guarded=True) - bare}
    except instructions.Unavailable as reason:
        raise Unavailable(str(reason)) from None


def count_pauses(_: Ground, __: Path, addresses: int) -> Figures:
    """By the worker's own CPU time: no devices."""
    return pauses.pauses(addresses)


MEASURES: dict[str, Callable[..., Figures]] = {
    **measures.MEASURES,
    "add_and_delete": crowd.add_and_delete,
    "learn_address": crowd.learn_address,
    "remove_all": crowd.remove_all,
    "scattered": tables.scattered,
    "edits": tables.edits,
    "pauses": count_pauses,
    "instructions": count_instructions,
}


@dataclass
class Taken:
    """What was found so far. A sample has an entry for each round that it was taken in, or a reason why it hasn't."""

    figures: dict[Sample, dict[int, Figures]] = field(default_factory=dict)
    reasons: dict[Sample, str] = field(default_factory=dict)
    number: int = 0
    repeated: int = 0
    disturbed: int = 0  # of those kept, with more than quiet.FOREIGN of others' CPU time
    measuring: float = 0.0  # seconds, first tries
    repeating: float = 0.0  # seconds, further ones


def take(ground: Ground, sample: Sample, number: int, taken: Taken) -> None:
    """One measurement; again while others disturb it, as far as patience goes. The least disturbed counts. One that
    fails has a second chance."""
    best: tuple[float, Figures] | None = None
    failed = False
    while True:
        before = quiet.look()
        try:
            found = MEASURES[sample.measure](ground, ground.path(sample.path), *sample.args)
        except Exception as reason:  # whatever it was: the other rows are worth having
            if best is not None:
                break  # it was a further try
            if not failed and not sample.last:
                failed = True
                continue
            taken.reasons.setdefault(sample, str(reason) or type(reason).__name__)
            return
        after = quiet.look()
        share, took = quiet.foreign_share(before, after), after.at - before.at
        if best is None:
            taken.measuring += took
            best = share, found
        else:
            taken.repeated += 1
            taken.repeating += took
            best = min(best, (share, found), key=lambda one: one[0])
        tired = taken.repeating > PATIENCE * taken.measuring
        if best[0] <= quiet.FOREIGN or tired or sample.last or sample.once:
            break
    taken.number += 1
    taken.disturbed += best[0] > quiet.FOREIGN
    taken.figures.setdefault(sample, {})[number] = best[1]


def stage(rows: Sequence[Row], rounds: int, seconds: float, taken: Taken, say: Callable[[str], None]) -> None:
    """Build what these rows need, measure every sample once a round, and take all down. `say` hears how it goes."""
    samples = list(dict.fromkeys(one for row in rows for one in (row.ours, row.theirs) if one is not None))
    with Ground(PLACES, seconds) as ground:
        for sample in samples:
            try:
                ground.path(sample.path)
            except Unavailable as reason:
                taken.reasons[sample] = str(reason)
        for number in range(rounds):
            turn = [one for one in samples if not one.last and (number == 0 or not one.once)]
            say(f"round {number + 1} of {rounds}, {len(turn)} measurements")
            for sample in random.sample(turn, len(turn)):
                if sample not in taken.reasons:
                    take(ground, sample, number, taken)
        for sample in samples:
            if sample.last and sample not in taken.reasons:
                take(ground, sample, 0, taken)


def result(row: Row, taken: Taken) -> Result:
    """What a row says: values of both sides and their quotients, round by round."""
    samples = [one for one in (row.ours, row.theirs) if one is not None]
    if reason := next((taken.reasons[one] for one in samples if one in taken.reasons), ""):
        return Result(row, reason=reason)
    ours = taken.figures[row.ours]
    if row.theirs is None:
        values = [found[row.figure] for found in ours.values()]
        return Result(row, ours=values, values=values)
    theirs = taken.figures[row.theirs]
    both = [number for number in ours if number in theirs]
    mine, others = ([side[n][row.figure] for n in both] for side in (ours, theirs))
    quotients = [a / b if b else math.nan for a, b in zip(mine, others, strict=True)]
    return Result(row, ours=mine, theirs=others, values=quotients)
