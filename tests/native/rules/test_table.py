"""The address table against a dict: growth, splitting and merging of parts, replacement, deletion by shifting back."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.native._probe import Table
from tests.native.random_frames import seed_from_environment

# Few enough to meet again; each IPv4 address comes with the IPv6 address whose key has the same 128 bits.
NUMBERS = st.integers(0, 99)
FAMILIES = st.sampled_from([4, 16])


def address(number: int, family: int) -> bytes:
    v4 = bytes([10, 0, 0, number])
    return v4 if family == 4 else bytes(8) + v4[::-1] + bytes(4)


class AgainstDict(RuleBasedStateMachine):
    """Parts are small as well as large, so that these few addresses make many of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.model = Table(0), dict[bytes, int]()

    @initialize(key=st.integers(0, 2**64 - 1), largest=st.sampled_from([16, 32, 1024]))
    def make(self, key: int, largest: int) -> None:
        self.table = Table(key, largest)

    @rule(number=NUMBERS, family=FAMILIES, port=st.integers(0, 2**31 - 1))
    def put(self, number: int, family: int, port: int) -> None:
        self.table.put(address(number, family), port)
        self.model[address(number, family)] = port

    @rule(first=st.integers(0, 90), count=st.integers(0, 40), family=FAMILIES)
    def put_many(self, first: int, count: int, family: int) -> None:
        for number in range(first, min(first + count, 100)):
            self.put(number, family, number)

    @rule(number=NUMBERS, family=FAMILIES)
    def remove(self, number: int, family: int) -> None:
        self.table.remove(address(number, family))
        self.model.pop(address(number, family), None)

    @rule(first=st.integers(0, 90), count=st.integers(0, 100), family=FAMILIES)
    def remove_many(self, first: int, count: int, family: int) -> None:
        for number in range(first, min(first + count, 100)):
            self.remove(number, family)

    @rule(number=NUMBERS, family=FAMILIES)
    def find(self, number: int, family: int) -> None:
        assert self.table.find(address(number, family)) == self.model.get(address(number, family), -1)

    @invariant()
    def same(self) -> None:
        assert dict(self.table.items()) == self.model
        assert len(self.table.items()) == len(self.table) == len(self.model)
        assert all(self.table.find(key) == port for key, port in self.model.items())

    @invariant()
    def a_search_begins_in_its_place(self) -> None:
        assert all(key in self.table.search(key) for key in self.model)

    @invariant()
    def at_most_three_quarters_full(self) -> None:
        assert all(used * 4 <= slots * 3 for used, slots, _ in self.table.parts())
        assert sum(used for used, _, _ in self.table.parts()) == len(self.table)


TestAgainstDict = AgainstDict.TestCase
TestAgainstDict.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def test_a_long_life_with_every_key() -> None:
    rng = random.Random(seed_from_environment())
    for largest in [16, 32, 128, 1024] * 5:
        table, model = Table(rng.getrandbits(64), largest), dict[bytes, int]()
        pool = [rng.randbytes(rng.choice([4, 16])) for _ in range(rng.choice([8, 12, 100, 3000]))]
        for step in range(20_000):
            key = rng.choice(pool)
            if rng.random() < (0.7 if step % 4000 < 2000 else 0.3):
                model[key] = step
                table.put(key, step)
            else:
                model.pop(key, None)
                table.remove(key)
            assert table.find(key) == model.get(key, -1)
        assert dict(table.items()) == model
        assert all(table.find(key) == model.get(key, -1) for key in pool)


def test_removing_where_the_chain_wraps_round_leaves_the_rest_to_be_found() -> None:
    """Twelve of sixteen slots used: with many keys every way of wrapping comes up."""
    rng = random.Random(1)
    for key in range(3000):
        table = Table(key)
        addresses = [rng.randbytes(4) for _ in range(12)]
        for port, a in enumerate(addresses):
            table.put(a, port)
        assert [slots for _, slots, _ in table.parts()] == [16]
        for gone in rng.sample(range(12), 12):
            table.remove(addresses[gone])
            addresses[gone] = b""
            assert all(table.find(a) == port for port, a in enumerate(addresses) if a)
        assert len(table) == 0


@pytest.mark.parametrize("family", [4, 16])
def test_ten_thousand_addresses_need_no_long_search(family: int) -> None:
    """A linear table this full has short runs unless the hash is bad."""
    table = Table(0x1234)
    for number in range(10_000):
        table.put(number.to_bytes(family, "big"), number)
    assert len(table) == 10_000
    assert all(table.find(number.to_bytes(family, "big")) == number for number in range(10_000))
    assert max(run for _, _, run in table.parts()) < 400


@pytest.mark.parametrize("family", [4, 16])
@pytest.mark.parametrize("key", [0, 0x0807060504030201, 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93])
@pytest.mark.parametrize("differs", [0, *(1 << bit for bit in range(64))])
def test_no_key_makes_addresses_alike(key: int, differs: int, family: int) -> None:
    """Not even one that is their first half, or differs in a bit from it: 0 for IPv4, and for IPv6 the prefix below as
    the machine reads it."""
    key ^= differs
    table = Table(key, 16)
    for number in range(1000):
        table.put((bytes(range(1, 9)) + number.to_bytes(8, "big"))[-family:], number)
    assert max(run for _, _, run in table.parts()) <= 12
    assert table.memory() <= 1000 * 24 * 16


def test_memory_is_bounded_at_every_size_and_given_back() -> None:
    """64 bytes an address and the directory's few, however many there are; nothing but the first part at the end."""
    table = Table(0x1234)
    rest = 24 * 16 * 2  # what an empty table has, and its double
    for number in range(60_000):
        table.put(number.to_bytes(4, "big"), number)
        if number % 97 == 0:
            assert table.memory() <= 66 * len(table) + rest
    for number in range(60_000):
        table.remove(number.to_bytes(4, "big"))
        if number % 997 == 0:
            # Parts are merged when they are far from full, so there may be four times as many as needed.
            assert table.memory() <= 4 * 66 * len(table) + 24 * 1024 * 2
    assert len(table) == 0
    assert table.memory() <= rest


def test_an_address_that_does_not_fit_splits_one_part_and_no_more() -> None:
    table = Table(7)
    for number in range(30_000):
        table.put(number.to_bytes(4, "big"), number)
    parts = len(table.parts())
    for number in range(30_000, 31_000):
        table.put(number.to_bytes(4, "big"), number)
        before, parts = parts, len(table.parts())
        assert parts - before in (0, 1)
