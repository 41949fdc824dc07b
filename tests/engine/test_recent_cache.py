from __future__ import annotations

import copy

import pytest

from paligemma.engine.image_cache import RecentCache
from paligemma.errors import OptionError


def test_the_longest_unused_go_first() -> None:
    cache: RecentCache[str] = RecentCache(max_bytes=30)
    for name in "abc":
        cache.keep(name, name.upper(), 10)
    assert cache.get("a") == "A"  # used now, so that b is the oldest
    cache.keep("d", "D", 15)
    assert [cache.get(name) for name in "abcd"] == ["A", None, None, "D"]
    assert (cache.num_bytes, len(cache)) == (25, 2)
    assert (cache.num_hits, cache.num_misses) == (3, 2)


def test_what_is_kept_anew_counts_once() -> None:
    cache: RecentCache[str] = RecentCache(max_bytes=30)
    cache.keep("a", "old", 20)
    cache.keep("a", "new", 25)
    assert (cache.get("a"), cache.num_bytes) == ("new", 25)


def test_what_is_larger_than_the_cache_pushes_nothing_out() -> None:
    cache: RecentCache[str] = RecentCache(max_bytes=30)
    cache.keep("a", "A", 30)
    cache.keep("b", "B", 31)
    assert (cache.get("a"), cache.get("b")) == ("A", None)


def test_a_copy_begins_empty() -> None:
    cache: RecentCache[str] = RecentCache(max_bytes=30)
    cache.keep("a", "A", 1)
    copied = copy.deepcopy(cache)
    assert (len(copied), copied.num_bytes, copied.max_bytes) == (0, 0, 30)


@pytest.mark.parametrize("value", [-1, 1.5, True, None])
def test_no_number_of_bytes_is_refused(value: object) -> None:
    with pytest.raises(OptionError, match="max_bytes"):
        RecentCache(value)  # type: ignore[arg-type]
