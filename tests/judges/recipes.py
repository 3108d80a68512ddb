"""The recipes in docs/containers.md, as they stand there, for the network that judges have."""

from __future__ import annotations

import re

from tests.support.running import ROOT
from tests.support.topology import WIRE4

# The documents' networks and device, and what stands for them.
INSTEAD = {
    '192.0.2.1"': f'{WIRE4}"',
    "192.0.2.": "10.1.7.",
    "2001:db8::": "fd00:1::7:",
    "/24": "/16",
    "link eth0 ": "link m0 ",
}


def recipes(heading: str, language: str = "") -> list[str]:
    """The blocks of a language below a heading of the second level, in order."""
    text = (ROOT / "docs/containers.md").read_text()
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [block for word, block in blocks if word == language]


def here(recipe: str) -> str:
    for there, ours in INSTEAD.items():
        recipe = recipe.replace(there, ours)
    return recipe
