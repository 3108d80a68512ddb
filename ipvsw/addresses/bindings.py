"""What is bound to which port, told to those who watch: lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import ip_address

from ipvsw.addresses.claims import Change
from ipvsw.addresses.ownership import Bind, BindAll, Unbind
from ipvsw.status import Event

log = logging.getLogger("ipvsw")


def log_bindings(switch: str, decided: Iterable[Change]) -> None:
    for each in decided:
        about: dict[str, object] = {"switch": switch}
        if isinstance(each, Bind):
            about |= {"event": Event.BOUND, "port": each.port, "address": ip_address(each.address)}
            log.debug("switch %s: port %s has %s", switch, each.port, about["address"], extra=about)
        elif isinstance(each, BindAll):
            about |= {"event": Event.BOUND, "port": each.port, "address": ip_address(each.addresses[0])}
            text = "switch %s: port %s has %d addresses from %s on"
            log.debug(text, switch, each.port, len(each.addresses), about["address"], extra=about)
        elif isinstance(each, Unbind):
            about |= {"event": Event.UNBOUND, "address": ip_address(each.address)}
            log.debug("switch %s: no port has %s any more", switch, about["address"], extra=about)
