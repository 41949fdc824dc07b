"""The loss sees the suffix, all of it and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paligemma.errors import DataError
from paligemma.finetune.config import Reduction
from paligemma.finetune.examples import split_by_length
from paligemma.finetune.loss import suffix_loss
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from tests.tiny import Row, tiny_config, tiny_inputs, tiny_model

ROWS = [Row(prefix=3, suffix=4), Row(prefix=6, suffix=2), Row(images=(1, 0), prefix=2, suffix=3)]


def mean_loss(
    model: PaliGemma,
    inputs: ModelInputs,
    *,
    reduction: Reduction = "token",
    softcap: bool = False,
) -> torch.Tensor:
    hidden = model.hidden_states(inputs)
    total, count = suffix_loss(
        model.decoder, hidden, inputs, reduction=reduction, final_logit_softcap=softcap
    )
    return total / count


def loss_mask_of(inputs: ModelInputs) -> Tensor:
    assert inputs.loss_mask is not None
    return inputs.loss_mask


@pytest.mark.parametrize("softcap", [False, True])
def test_g8_it_is_the_mean_cross_entropy_of_suffix_tokens(softcap: bool) -> None:
    model = tiny_model()
    inputs = tiny_inputs(model.config, ROWS, pad="right")
    with torch.no_grad():
        logits = model.decoder.logits(model.hidden_states(inputs), softcap=softcap)
        losses = [
            F.cross_entropy(logits[row, place - 1], inputs.token_ids[row, place])
            for row, place in loss_mask_of(inputs).nonzero().tolist()
        ]
        assert len(losses) == 9
        expected = torch.stack(losses).mean()
        assert mean_loss(model, inputs, softcap=softcap) == pytest.approx(float(expected), abs=1e-6)


def test_by_default_every_row_counts_the_same() -> None:
    model = tiny_model()
    rows = [Row(prefix=3, suffix=4), Row(prefix=6, suffix=1)]
    with torch.no_grad():
        both = mean_loss(model, tiny_inputs(model.config, rows, pad="right"), reduction="example")
        inputs = tiny_inputs(model.config, rows, pad="right")
        alone = [
            mean_loss(model, replace(inputs, loss_mask=loss_mask_of(inputs) & mine[:, None]))
            for mine in (torch.tensor([True, False]), torch.tensor([False, True]))
        ]
    assert float(both) == pytest.approx(float(sum(alone)) / 2, abs=1e-6)


def test_g8_pads_on_either_side_do_not_matter() -> None:
    model = tiny_model()
    with torch.no_grad():
        sides = [
            mean_loss(model, tiny_inputs(model.config, ROWS, pad=p)) for p in ("left", "right")
        ]
    assert float(sides[0]) == pytest.approx(float(sides[1]), abs=1e-5)


def test_a_later_answer_token_cannot_change_the_loss_of_an_earlier_one() -> None:
    model = tiny_model()
    inputs = tiny_inputs(model.config, [Row(prefix=3, suffix=4)], pad="right")
    first = loss_mask_of(inputs).long().cumsum(1) == 1
    only_first = replace(inputs, loss_mask=loss_mask_of(inputs) & first)
    changed = only_first.token_ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % model.config.decoder.vocab_size
    with torch.no_grad():
        before = mean_loss(model, only_first)
        after = mean_loss(model, replace(only_first, token_ids=changed))
    assert torch.equal(before, after)


def test_g8_a_batch_in_parts_gives_the_same_loss_and_gradients() -> None:
    config = tiny_config()
    inputs = tiny_inputs(config, ROWS, pad="right")
    gradients: list[Tensor] = []
    for num_parts in (1, 2):
        model = tiny_model()
        image_tokens = model.embed_images(inputs.required_pixel_values)
        total, count = torch.zeros(()), 0
        for part in split_by_length(inputs, num_parts):
            hidden = model.hidden_states(part, image_tokens=image_tokens)
            summed, num_tokens = suffix_loss(model.decoder, hidden, part)
            total, count = total + summed, count + num_tokens
        (total / count).backward()
        gradient = model.vision_encoder.patch_embedding.weight.grad
        assert gradient is not None
        gradients.append(gradient)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_a_batch_that_supervises_nothing_is_an_error() -> None:
    model = tiny_model()
    inputs = tiny_inputs(model.config, [Row(prefix=3)], pad="right")
    with pytest.raises(DataError, match="nothing would be learned"):
        mean_loss(model, inputs)


def test_places_may_count_their_neighbors_as_nearly_right() -> None:
    # A vocabulary of ten words and the 1024 places behind them.
    model = tiny_model(vocab_size=10 + 1024)
    inputs = tiny_inputs(model.config, [Row(prefix=2, suffix=2)], pad="right")
    target = 10 + 500
    token_ids = torch.where(loss_mask_of(inputs), target, inputs.token_ids)
    inputs = replace(inputs, token_ids=token_ids)
    with torch.no_grad():
        hidden = model.hidden_states(inputs)
        sharp, _ = suffix_loss(model.decoder, hidden, inputs, reduction="token")
        narrow, _ = suffix_loss(
            model.decoder, hidden, inputs, reduction="token", loc_offset=10, loc_sigma=0.05
        )
        wide, _ = suffix_loss(
            model.decoder, hidden, inputs, reduction="token", loc_offset=10, loc_sigma=3.0
        )
        places = loss_mask_of(inputs)[:, 1:]
        log_probs = model.decoder.logits(hidden[:, :-1][places], softcap=False).log_softmax(-1)
        weights = torch.softmax(-0.5 * ((torch.arange(1024) - 500) / 3.0) ** 2, 0)
        expected = -(log_probs[:, 10:] * weights).sum()
    assert float(narrow) == pytest.approx(float(sharp), abs=1e-4)
    assert float(wide) == pytest.approx(float(expected), rel=1e-5)
