"""The defaults are those that are promised, and no bound is missing or without effect."""

from __future__ import annotations

import dataclasses
import json

import pytest

from paligemma.errors import OptionError
from paligemma.server.settings import Limits


def test_the_defaults_are_those_of_the_table() -> None:
    found = Limits().to_dict()
    expected = {
        "max_header_bytes": 16 * 1024,
        "max_headers": 100,
        "max_body_bytes": 32 * 2**20,
        "body_seconds": 30,
        "idle_seconds": 10,
        "max_image_bytes": 16 * 2**20,
        "max_images": 1,
        "max_pixels": 50_000_000,
        "max_side": 20_000,
        "max_prompt_characters": 16_384,
        "max_tokens": 1024,
        "max_n": 8,
        "max_stops": 4,
        "max_stop_characters": 64,
        "max_logprobs": 20,
        "max_queued": 64,
        "queue_seconds": 30,
        "request_seconds": 120,
        "streams_per_client": 32,
        "fetch_seconds": 10,
    }
    assert {name: found[name] for name in expected} == expected
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("field", dataclasses.fields(Limits), ids=lambda field: field.name)
def test_a_bound_must_bound_something(field: dataclasses.Field[object]) -> None:
    wrong: list[object] = [-1, True, None, "1", float("nan"), float("inf")]
    if field.name not in ("image_cache_bytes", "prefix_cache_bytes"):
        wrong.append(0)
    if field.type == "int":
        wrong.append(1.5)
    for value in wrong:
        with pytest.raises(OptionError, match=field.name):
            Limits(**{field.name: value})  # type: ignore[arg-type]


def test_caches_may_be_off() -> None:
    limits = Limits(image_cache_bytes=0, prefix_cache_bytes=0)
    assert limits.image_cache_bytes == limits.prefix_cache_bytes == 0
