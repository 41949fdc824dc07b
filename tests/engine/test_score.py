from __future__ import annotations

import pytest
import torch

from paligemma.engine.generate import generate, score
from paligemma.engine.sampling import Sampling
from paligemma.errors import OptionError
from tests.engine.conftest import MadeRows
from tests.tiny import FLOAT32_TOLERANCE

ROWS: MadeRows = [
    ([2, 5, 9, 6], [], True),
    ([2, 11, 30], [], False),
    ([2, 36], [], True),
]


@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize("sampler", [Sampling(temperature=0), Sampling(temperature=3, top_k=9)])
def test_scores_of_generated_tokens_are_those_reported_while_generating(
    make_model, make_inputs, sampler: Sampling, pad_left: bool
) -> None:
    model = make_model()
    made = generate(model, make_inputs(ROWS), max_new_tokens=6, eos_id=20, sampler=sampler)
    again = [
        (prefix, row.token_ids, has_image)
        for (prefix, _, has_image), row in zip(ROWS, made, strict=True)
    ]
    for row, scored in zip(made, score(model, make_inputs(again, pad_left=pad_left)), strict=True):
        assert scored.token_ids == row.token_ids
        assert scored.logprobs == pytest.approx(row.logprobs, abs=FLOAT32_TOLERANCE)


def test_probabilities_of_all_one_token_suffixes_sum_to_one(make_model, make_inputs) -> None:
    rows = [([2, 5, 9], [token_id], False) for token_id in range(37)]
    scored = score(make_model(), make_inputs(rows))
    total = sum(torch.tensor(row.logprobs).exp().item() for row in scored)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_inputs_without_a_suffix_are_refused(make_model, make_inputs) -> None:
    with pytest.raises(OptionError, match="loss_mask"):
        score(make_model(), make_inputs(ROWS))
