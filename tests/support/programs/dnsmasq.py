"""A real DHCP server on a lab's wire."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.patience import until
from tests.support.topology import WIRE4, Lab


class Dnsmasq:
    """Leases of two minutes, from 10.1.9.1 to .99 with a gateway, a name server and a domain."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        """`directory` has its log and its leases, which the next one goes on with."""
        self.lab, self.directory = lab, directory
        self._process: subprocess.Popen[str] | None = None

    def start(self, *more: str, net: str = "10.1.9") -> None:
        """Anew, if it runs."""
        self.stop()
        files = (f"--{word}={self.directory}/{word.rpartition('-')[2]}" for word in ("pid-file", "dhcp-leasefile"))
        self._process = self.lab.spawn(
            *(self.lab.wire, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0"),
            *(*files, f"--log-facility={self.directory}/log", "--log-dhcp", "--interface=w0", "--bind-interfaces"),
            *("--no-ping", "--dhcp-authoritative", f"--dhcp-option=option:router,{WIRE4}", "--domain=lan.test"),
            *("--dhcp-option=option:dns-server,10.1.0.53", f"--dhcp-range={net}.1,{net}.99,255.255.0.0,2m", *more),
        )
        until((self.directory / "file").exists, "dnsmasq runs")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
            (self.directory / "file").unlink(missing_ok=True)

    def forget(self) -> None:
        """What it has leased."""
        self.stop()
        (self.directory / "leasefile").unlink()

    def said(self, text: str) -> int:
        """How often."""
        log = self.directory / "log"
        return log.read_text().count(text) if log.exists() else 0
