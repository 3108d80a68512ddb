"""Who may see the page: those who have the token that the terminal shows, and browsers that ask for this machine by a
name that is its own. Pure."""

from __future__ import annotations

import hmac
import secrets
from collections import deque
from ipaddress import ip_address
from urllib.parse import urlsplit

SESSIONS = 16  # the oldest one ends when there are more
BYTES = 24  # of chance, in a token and in a session


class Access:
    """A token opens one session; then there is a new one."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(BYTES)
        self._sessions: deque[str] = deque(maxlen=SESSIONS)

    def exchange(self, token: str) -> str | None:
        """A new session for the token, None if it is another."""
        if not _same(token, self.token):
            return None
        self.token = secrets.token_urlsafe(BYTES)
        self._sessions.append(session := secrets.token_urlsafe(BYTES))
        return session

    def knows(self, session: str) -> bool:
        return any(_same(session, one) for one in self._sessions)


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), known.encode())


def is_own_host(host: str) -> bool:
    """Whether the header Host names this machine's loopback. A page of others whose name was made to mean 127.0.0.1
    (DNS rebinding) has its own name there. The port may be another: a tunnel of ssh has one."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def is_own_page(host: str, origin: str | None, site: str | None) -> bool:
    """Whether a request comes from the page itself, or from no page (Fetch Standard: Origin, Sec-Fetch-Site). Cookies
    don't tell servers on other ports of one host apart; this does."""
    return origin in (None, f"http://{host}") and site in (None, "none", "same-origin")
