"""Who may see the page."""

from __future__ import annotations

import pytest

from ipvsw.web.access import SESSIONS, Access, is_own_host, is_own_page


def test_a_token_is_good_for_one_session() -> None:
    access = Access()
    token = access.token
    session = access.exchange(token)
    assert session is not None and access.knows(session)
    assert access.token != token and access.exchange(token) is None
    assert not access.knows("") and not access.knows(token) and not access.knows(session + "x")


def test_what_is_no_token_opens_nothing() -> None:
    access = Access()
    for wrong in ("", access.token[:-1], access.token + "a", "\udcff", "é" * 32):
        assert access.exchange(wrong) is None
    assert access.exchange(access.token) is not None


def test_the_oldest_session_ends_when_there_are_too_many() -> None:
    access = Access()
    sessions = [access.exchange(access.token) or "" for _ in range(SESSIONS + 1)]
    assert [access.knows(one) for one in sessions] == [False] + SESSIONS * [True]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8417", "127.1.2.3:1", "localhost", "localhost:9000", "LOCALHOST:1", "[::1]:8417"]
)
def test_the_hosts_of_this_machine(host: str) -> None:
    assert is_own_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "evil.example:8417", "localhost.evil.example", "192.0.2.1:8417", "0.0.0.0:8417"),
        *("127.0.0.1.nip.io", "::1", "[::2]:1", "[::1", "user@evil.example", "127.0.0.1@evil.example", "127.0.0.1 a"),
    ],
)
def test_other_hosts(host: str) -> None:
    """Among them those that a page of others has after DNS rebinding."""
    assert not is_own_host(host)


@pytest.mark.parametrize(
    ("origin", "site", "own"),
    [
        (None, None, True),  # a program
        (None, "none", True),  # an address that a user has typed
        ("http://localhost:8417", "same-origin", True),
        ("http://localhost:3000", "same-site", False),  # which would get the cookie
        (None, "same-site", False),
        (None, "cross-site", False),
        ("https://evil.example", None, False),
        ("null", None, False),
    ],
)
def test_requests_of_other_pages(origin: str | None, site: str | None, own: bool) -> None:
    assert is_own_page("localhost:8417", origin, site) == own
