"""What runs, and what of it the configuration file has: as a configuration, and in the records for a successor."""

from __future__ import annotations

from ipvsw.daemon.state import VERSION, Moving, PortTables, Structure, describe, lasting
from ipvsw.daemon.switches import Switches
from ipvsw.model import Config, DaemonConfig


class Running:
    """All switches, with what a reload and a successor must know besides."""

    def __init__(self) -> None:
        self.switches = Switches()
        self.settings = DaemonConfig()  # of the process, until it is started anew
        self.filed = Config()  # what the file has; the rest was added by the API
        self._filed_names: set[tuple[str, str]] = set()  # of its switches and ports
        self._tables, self._lasting_tables = PortTables(), PortTables()

    @property
    def config(self) -> Config:
        """The file's switches and ports as they were changed since, and those that the API has added."""
        return Config(daemon=self.settings, switches=tuple(switch.config for switch in self.switches.values()))

    def set_filed(self, config: Config) -> None:
        self.filed = config
        self._filed_names = {(switch.name, port.name) for switch in config.switches for port in switch.ports}

    def is_filed(self, switch: str, port: str) -> bool:
        return (switch, port) in self._filed_names

    # ------------------------------------------------------------------------ for a successor

    def describe(self) -> Structure:
        """For one that goes on with everything."""
        ports = {f"{name}/{port}": left for name, one in self.switches.items() for port, left in one.left().items()}
        masters = {name: left for name, one in self.switches.items() if (left := one.master.left) is not None}
        return describe(self.config, self.filed, ports, masters, self._tables, self._births())

    def lasting(self) -> Structure | None:
        """For one after an orderly stop; None if the file says it."""
        kept = lasting(self.config, self.filed)
        return None if kept is None else describe(kept, self.filed, {}, {}, self._lasting_tables, self._births())

    def _births(self) -> dict[str, str]:
        """Of the namespaces of the ports that were added at run time."""
        return {
            f"{name}/{port.config.name}": port.namespace.birth
            for name, switch in self.switches.items()
            for port in switch.ports.values()
            if port.namespace.birth and not self.is_filed(name, port.config.name)
        }

    def count(self) -> Moving:
        """What frames change."""
        counted = {name: switch.counted() for name, switch in self.switches.items()}
        return Moving(
            version=VERSION,
            counters={name: own for name, (own, _) in counted.items()},
            forwarded={name: by_kernel for name, (_, by_kernel) in counted.items() if by_kernel},
            snooped={name: switch.snooped() for name, switch in self.switches.items()},
        )

    def progress(self) -> int:
        """Another number when a frame has come since."""
        return sum(switch.frames_read for switch in self.switches.values())
