"""A table of digests is a mapping, whatever the digests' bytes."""

import numpy as np
import pytest

from emoq_modules.dataio import digest_table
from emoq_modules.dataio.digest_table import DigestTable


def digests(number, seed=0):
    """Digests of all kinds, those among them that end in zeros."""
    rng = np.random.default_rng(seed)
    made = [rng.bytes(16) for _ in range(number)]
    return [
        digest[: 16 - index % 5] + bytes(index % 5)
        for index, digest in enumerate(made)
    ]


@pytest.fixture(params=[2, 10_000])
def few(request, monkeypatch):
    """How many are kept unsorted: nearly none, or all of these."""
    monkeypatch.setattr(digest_table, "_FEW", request.param)


def test_it_holds_what_a_dict_would(few):
    table, expected = DigestTable.empty("int32"), {}
    for seed in range(20):
        keys = digests(1 + seed % 7, seed // 2)  # many of them again
        values = range(10 * seed, 10 * seed + len(keys))
        table.update(np.array(keys, "S16"), np.array(values, "int32"))
        for key, value in zip(keys, values, strict=True):
            expected.setdefault(key, value)
        assert len(table) == len(expected)
        assert {key: table.get(key) for key in expected} == expected
    absent = digests(50, seed=99)
    assert not any(map(table.get, absent))
    asked = [*absent, *expected]
    found = table.get_all(np.array(asked, "S16"), -1)
    assert found.tolist() == [-1] * 50 + [*expected.values()]


def test_tables_are_put_together_and_the_first_value_stays(few):
    ours, theirs = digests(6), digests(4) + digests(4, seed=1)
    table, other = DigestTable.empty("S16"), DigestTable.empty("S16")
    table.update(np.array(ours, "S16"), np.array([b"ours"] * 6, "S16"))
    other.update(np.array(theirs, "S16"), np.array([b"theirs"] * 8, "S16"))
    other.merge()
    table.merge(other)
    assert [table.get(key) for key in ours] == [b"ours"] * 6
    assert [table.get(key) for key in theirs[4:]] == [b"theirs"] * 4
    assert len(table) == 10


def test_an_empty_table_holds_nothing():
    table = DigestTable.empty("int32")
    assert table.get(bytes(16)) is None
    assert table.get_all(np.array(digests(3), "S16"), -1).tolist() == [-1] * 3
