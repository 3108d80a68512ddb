"""The project's words are the field's: none of those it once made up for itself comes back.

Only words that have no other use here are listed; a reader has to find the rest.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("ipvsw", "kmod-shim", "contrib", "docs", "man", "tests/bench/README.md", "README.md", "ARCHITECTURE.md")
SUFFIXES = (".py", ".pyi", ".pyx", ".pxd", ".c", ".h", ".md", ".toml", ".service", ".5", ".8")

# What is gone (a regular expression, whole words only) -> what is said instead.
GONE = {
    r"doors?|hostdoor": "interface, device; end to end",
    r"carr(y|ies|ied|ying) ([a-z]+ ){0,2}?out|carry_out": "forward, dispatch",
    r"show_from_port|show_to_port|shown frames?": "punt",
    r"give_back|take_returned": "reinject; release, recycle",
    r"groups? frames?|drop_group": "multicast frame",
    r"super-?frames?": "GSO frame",
    r"drop_own|drop_own_mac|own_to_master|master_to_own": "MAC NAT, macnat",
    r"conversations?": "flow",
    r"turn(s|ed|ing)? ([a-z]+ ){0,2}round": "redirected to ingress",
    r"begun checksums?|left to the card": "partial checksum",
    r"(in )?everybody's name": "proxy ARP, ND proxy",
    r"(waits?|waiting|next) in line": "standby claimant",
    r"looks? on before": "adaptive busy polling",
    r"news": "event, notification",
    r"whoever": "the actor's name",
    r"world|in_closer": "Runtime, run_in_netns, run_blocking",
    r"sight|look_around": "Snapshot, netns_changed",
    r"is_upkeep|the_host": "is_link_control, HOST_PORT",
    r"hungry|polite|shorts": "starved, yielding, txring",
    r"sheaf|is_cut|make_lasting": "IovBatch, truncated, create_persistent_tap",
    r"pupils?": "SnoopedPort",
    r"waywatch": "RouteMonitor",
    r"wish|served_links": "HostPortConfig, kmod_links",
    r"leaver": "PendingDelete",
    r"litter": "GC_INTERVAL",
}


def files() -> list[Path]:
    found = [
        path for place in PLACES for path in ([ROOT / place] if place.endswith(".md") else (ROOT / place).rglob("*"))
    ]
    return sorted(path for path in found if path.suffix in SUFFIXES and "build" not in path.parts)


@pytest.mark.parametrize("word", GONE)
def test_a_word_of_our_own_is_not_used(word: str) -> None:
    pattern = re.compile(rf"(?<![a-z])({word})(?![a-z])", re.IGNORECASE)
    places = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not places, f"say {GONE[word]}:\n" + "\n".join(places)


def test_the_sources_are_found() -> None:
    assert {".py", ".pxd", ".c", ".md", ".8"} <= {path.suffix for path in files()}
