"""Model -> TOML: a file that, read, gives the same configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tomli_w

from ipvsw.config.tables import daemon_table, port_table, switch_table
from ipvsw.model import Config


def write(config: Config) -> str:
    return "\n".join(f"{head}\n{tomli_w.dumps(table)}" for head, table in _tables(config) if table)


def _tables(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "[daemon]", daemon_table(config.daemon)
    for switch in config.switches:
        yield "[[switch]]", switch_table(switch)
        for port in switch.ports:
            yield "[[switch.port]]", port_table(port)
