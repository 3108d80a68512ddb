"""How tests are dealt out to workers: module by module, in the order in which they were collected."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

GUESTS = ("tests/vm/", "tests/field/")


class ByModule(LoadScopeScheduling):
    def __init__(self, config: Any, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        """The module; what follows may be a parameter such as "::1". Guests are emulated and take a core and more: they
        go to one worker, beside tests that wait most of their time."""
        return GUESTS[0] if nodeid.startswith(GUESTS) else nodeid.partition("::")[0]
