"""Reading options, choosing rows, judging what was found and writing it down: no device, no clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import options
from tests.bench.measuring import report, turns
from tests.bench.measuring.rows import ROWS, Row, Sample, Wanted, chosen
from tests.bench.places.places import PLACES

OURS, THEIRS = Sample("ipvsw", "tcp"), Sample("bridge", "tcp")
ROW = Row("X1", "a stream", "Gbit/s", "gbit", OURS, "a bridge", THEIRS, Wanted(">=", 0.8, 0.95))
ALONE = Row("X2", "time | for it", "ms", "gbit", OURS, wanted=Wanted("<=", 5))
WHERE = report.Circumstances("a machine", "abc", 3, 1.0, 60.0, 6, 0, 0, 0.1)


def found(ours: list[float], theirs: list[float]) -> turns.Taken:
    taken = turns.Taken()
    for sample, values in ((OURS, ours), (THEIRS, theirs)):
        taken.figures[sample] = {number: {"gbit": value} for number, value in enumerate(values)}
    return taken


def test_every_row_can_be_measured() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    for row in ROWS:
        for sample in (row.ours, row.theirs):
            assert sample is None or (sample.path.split()[0] in PLACES and sample.measure in turns.MEASURES), row.id


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["T1"], ["T1", "T1-9000"]),
        (["P1", "T3-9000"], ["T3-9000", "P1"]),
        (["F*"], ["F1", "F16", "F256"]),
    ],
)
def test_rows_are_chosen_by_name(words: list[str], ids: list[str]) -> None:
    assert [row.id for row in chosen(words)] == ids
    assert chosen([]) == list(ROWS)


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(ValueError, match="no row T99"):
        chosen(["T1", "T99"])


@pytest.mark.parametrize("word", ["--rounds=0", "--rounds=x", "--seconds=0.05", "--seconds=x"])
def test_options_that_measure_nothing_are_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parser("a command", 7, "measurements", "the results").parse_args([word])
    assert word.partition("=")[0] in capsys.readouterr().err


def test_a_ratio_is_of_one_round() -> None:
    """Not of medians: what disturbs a round disturbs both of its sides."""
    result = turns.result(ROW, found([1, 10, 100], [2, 10, 400]))
    assert result.values == [0.5, 1.0, 0.25]
    assert "**0.500** [0.250..1.00]" in report.table([result])


@pytest.mark.parametrize(("value", "verdict"), [(0.7, "**no**"), (0.8, "yes"), (0.95, "aim"), (2.0, "aim")])
def test_what_is_wanted_is_judged_by_the_median(value: float, verdict: str) -> None:
    assert turns.result(ROW, found([0.01, value, 100], [1, 1, 1])).verdict == verdict


def test_a_round_that_one_side_missed_is_left_out() -> None:
    taken = found([1, 2, 3], [2, 2, 2])
    del taken.figures[THEIRS][1]
    assert turns.result(ROW, taken).values == [0.5, 1.5]


def test_what_is_missing_has_its_reason() -> None:
    taken = found([1], [1])
    taken.reasons[THEIRS] = "bridge: there is\nnone | at all"
    result = turns.result(ROW, taken)
    assert result.verdict == ""
    assert "not measured: bridge: there is none / at all" in report.table([result])
    assert report.document([result], WHERE)["missing"] == [
        {"id": "X1", "what": "a stream", "reason": "bridge: there is\nnone | at all"}
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0512, "0.0512"), (0.956, "0.956"), (1, "1.00"), (12.34, "12.3"), (99.96, "100.0"), (171, "171"),
     (12345.6, "12346"), (0.00001, "1.0e-05"), (float("nan"), "-")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    file, marks = tmp_path / "notes.md", report.Marks("some")
    file.write_text("before\n<!-- some: begin -->\nold\n<!-- some: end -->\nafter\n")
    for text in ("newer", "new"):
        marks.fill(file, text)
    assert file.read_text() == "before\n<!-- some: begin -->\n\nnew\n\n<!-- some: end -->\nafter\n"


def test_results_are_kept_between_the_marks(tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text(f"before\n{report.MARKS.begin}\nold\n{report.MARKS.end}\nafter\n")
    results = [turns.result(row, found([1, 1], [2, 2])) for row in (ROW, ALONE)]
    for _ in range(2):
        report.keep(results, WHERE, file)
    text = file.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("| X1 |") == 1 and "a machine" in text
    written = json.loads((tmp_path / "notes-results.json").read_text())
    assert [(row["id"], row["median"], row["met"]) for row in written["rows"]] == [("X1", 0.5, False), ("X2", 1, True)]


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text("nothing here\n")
    with pytest.raises(ValueError, match=r"notes\.md: the marks"):
        report.keep([], WHERE, file)
    assert file.read_text() == "nothing here\n"
    assert list(tmp_path.iterdir()) == [file]
