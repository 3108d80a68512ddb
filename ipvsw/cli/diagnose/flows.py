"""The busiest flows for `top`: frames of all switches captured and counted, for as long as somebody looks."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from ipvsw.capture.flows import Flow, Flows

if TYPE_CHECKING:
    from ipvsw.client import Client


class Seen(NamedTuple):
    """Between two readings."""

    flows: list[Flow]  # the busiest first
    share: float  # of the frames those that were counted; the others came faster than they could be
    problem: str = ""  # why there is nothing


class FlowWatch:
    """Captures from the start until `stop`, a thread for each switch."""

    def __init__(self, client: Client, switches: list[str]) -> None:
        self._client = client
        self._flows = Flows()
        self._lock = threading.Lock()
        self._counted, self._lost = 0, dict.fromkeys(switches, 0)
        self._before = time.monotonic(), 0  # when was read, and what had been lost by then
        self._stopping = threading.Event()
        self._problem = ""
        self._threads = [threading.Thread(target=self._run, args=(name,), daemon=True) for name in switches]
        for thread in self._threads:
            thread.start()

    def read(self, most: int) -> Seen:
        now = time.monotonic()
        with self._lock:
            began, lost = self._before
            self._before = now, sum(self._lost.values())
            counted, self._counted = self._counted, 0
            found = self._flows.take(max(now - began, 0.001), most)
        lost = self._before[1] - lost
        return Seen(found, counted / (counted + lost) if counted else 1.0, self._problem)

    def stop(self) -> None:
        """When this returns nothing is captured for it any more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, switch: str) -> None:
        from ipvsw.capture.ring import RX
        from ipvsw.capture.session import Ended, session
        from ipvsw.client import ApiError, Unreachable

        try:
            with session(self._client, switch) as frames:
                for one in frames.frames(stop=self._stopping.is_set):
                    if one.direction == RX and not one.again:
                        with self._lock:
                            self._flows.add(frames.name(one.interface), one.frame)
                            self._counted += 1
                            self._lost[switch] = frames.lost
        except (ApiError, Unreachable, OSError) as error:
            self._problem = str(error)
        except Ended:
            pass  # `top` is told as well
