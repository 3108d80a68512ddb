"""Every frame of the corpus, and others of the same kinds, end where the kernel's driver puts them, byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conformance import generate, run
from tests.conformance.compare import improved, sightings
from tests.reference import l2

HERE = Path(__file__).resolve().parent

SEEDS = (1, 2)
COUNT = 300

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, veth, TAP, BPF")


@pytest.mark.parametrize("pair", [pair for pair in run.PAIRS if pair.startswith("l2-")])
def test_the_model_of_l2_agrees_with_the_kernel(pair: str) -> None:
    corpus = json.loads((HERE / "corpus.json").read_text())
    expected = improved(json.loads((HERE / "expected" / f"{pair}.json").read_text()))
    handled = l2.handled_by(corpus)
    for case in corpus:
        seen = l2.expect(case, pair.removeprefix("l2-"), handled)
        assert sightings(seen) == sightings(expected[case["id"]]), case["id"]


@as_root
@pytest.mark.parametrize("device", ["tap", "veth"])
@pytest.mark.parametrize("pair", run.PAIRS)
def test_corpus(pair: str, device: str) -> None:
    agree, words = run.compare(pair, device=device)
    assert agree, words


@as_root
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pair", [pair for pair in run.PAIRS if pair.startswith("l2-")])
def test_other_frames_of_the_same_kinds(pair: str, seed: int, tmp_path: Path) -> None:
    agree, words = run.compare(pair, generate.generate(seed, COUNT, tmp_path), tmp_path)
    assert agree, words
