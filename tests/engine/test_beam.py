from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from paligemma.engine.beam import beam_search
from paligemma.engine.generate import generate, score
from paligemma.errors import OptionError
from tests.engine.conftest import MadeRows
from tests.tiny import FLOAT32_TOLERANCE

EOS = 1
ROWS: MadeRows = [
    ([2, 3], [], True),
    ([2, 4, 4], [], False),
    ([2, 3, 0, 4], [], True),
]


def likeliest_by_trying_all(
    model, make_inputs, row: int, vocab_size: int, max_new_tokens: int
) -> tuple[tuple[int, ...], float]:
    others = [token_id for token_id in range(vocab_size) if token_id != EOS]
    sequences = [
        (*body, EOS)
        for length in range(max_new_tokens)
        for body in itertools.product(others, repeat=length)
    ]
    with torch.inference_mode():
        image_tokens = model.embed_images(make_inputs(ROWS).pixel_values)
    index = make_inputs(ROWS).image_index[row]
    prefix, _, has_image = ROWS[row]
    totals = {}
    for sequence in sequences:
        inputs = make_inputs([(prefix, sequence, has_image)])
        scored = score(model, inputs, image_tokens=image_tokens[list(index)])[0]
        totals[sequence] = math.fsum(scored.logprobs)
    best = max(totals, key=totals.__getitem__)
    return best, totals[best]


def test_a_beam_as_wide_as_the_tree_finds_the_likeliest_sequence(make_model, make_inputs) -> None:
    model = make_model(vocab_size=5)
    found = beam_search(model, make_inputs(ROWS), beam_size=4**3, max_new_tokens=4, eos_id=EOS)
    for row, result in enumerate(found):
        best, total = likeliest_by_trying_all(model, make_inputs, row, 5, 4)
        assert result.token_ids == best
        assert math.fsum(result.logprobs) == pytest.approx(total, abs=FLOAT32_TOLERANCE)
        assert result.stop_reason == "eos"


@pytest.mark.parametrize("eos_id", [1, 7, 20])
def test_one_beam_is_greedy(make_model, make_inputs, eos_id: int) -> None:
    model = make_model()
    options: dict[str, Any] = {"max_new_tokens": 7, "eos_id": eos_id}
    beams = beam_search(model, make_inputs(ROWS), beam_size=1, **options)
    for beam, row in zip(beams, generate(model, make_inputs(ROWS), **options), strict=True):
        assert (beam.token_ids, beam.stop_reason) == (row.token_ids, row.stop_reason)
        assert beam.logprobs == pytest.approx(row.logprobs, abs=FLOAT32_TOLERANCE)


def test_reported_log_probabilities_are_those_of_the_sequence(make_model, make_inputs) -> None:
    model = make_model()
    found = beam_search(model, make_inputs(ROWS[1:2]), beam_size=3, max_new_tokens=6, eos_id=-1)[0]
    assert found.stop_reason == "length"
    prefix = ROWS[1][0]
    scored = score(model, make_inputs([(prefix, found.token_ids, False)]))[0]
    assert found.logprobs == pytest.approx(scored.logprobs, abs=FLOAT32_TOLERANCE)


def test_broken_logits_are_reported(make_model, make_inputs) -> None:
    model = make_model()
    with torch.no_grad():
        model.decoder.embedding.weight[36] = float("nan")
    found = beam_search(model, make_inputs(ROWS), beam_size=2, max_new_tokens=6, eos_id=EOS)
    assert {row.stop_reason for row in found} == {"numerical_error"}


@pytest.mark.parametrize("beam_size", [0, -1, 1.5, True])
def test_a_number_of_beams_below_one_is_refused(make_model, make_inputs, beam_size) -> None:
    with pytest.raises(OptionError, match="num_beams"):
        beam_search(
            make_model(), make_inputs(ROWS), beam_size=beam_size, max_new_tokens=6, eos_id=EOS
        )
