"""keras-hub is asked for the same work; skipped where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from paligemma.config import count_parameters
from tests.tiny import tiny_config

pytestmark = [
    pytest.mark.skipif(find_spec("keras_hub") is None, reason="keras-hub is not there"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_an_answer_has_as_many_tokens_as_asked_for():
    from benchmarks.side_by_side import keras_runner

    runner = keras_runner.build(tiny_config())
    assert runner.model.backbone.count_params() == count_parameters(tiny_config())
    known_after = runner.answer(4, 2)
    assert len(known_after) == 4
    assert known_after == sorted(known_after)
