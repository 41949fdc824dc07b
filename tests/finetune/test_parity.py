"""Loss and gradients of one batch equal those of transformers, both generations, float32.

transformers' vocabulary is padded to a multiple of 64; its logits are cut to ours before its loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma.checkpoints.load import load_model
from paligemma.config import Family
from paligemma.finetune.loss import suffix_loss
from paligemma.inputs import ModelInputs
from tests.tiny import (
    FAMILIES,
    Row,
    reference_arguments,
    tiny_config,
    tiny_inputs,
    tiny_reference,
)

ROWS = [
    Row(prefix=3, suffix=4),
    Row(prefix=9, suffix=2),
    Row(images=(0, 1), prefix=5, suffix=7),
    Row(images=(1,), prefix=1, suffix=1),
    Row(images=(), prefix=4, suffix=3),
    Row(images=(1, 1, 0), prefix=2, suffix=5),
]


def their_loss(reference: Any, inputs: ModelInputs, vocab_size: int) -> torch.Tensor:
    """Mean over all label tokens, as in training with labels -100 elsewhere."""
    logits = reference(**reference_arguments(inputs, reference)).logits[..., :vocab_size]
    assert inputs.loss_mask is not None
    labels = inputs.token_ids.masked_fill(~inputs.loss_mask, -100)
    loss: torch.Tensor = reference.loss_function(logits, labels, vocab_size=vocab_size)
    return loss


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_those_of_transformers(
    tmp_path: Path, family: Family, side: str
) -> None:
    reference = tiny_reference(tiny_config(family))
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path).requires_grad_(True)
    vocab_size = model.config.decoder.vocab_size
    inputs = tiny_inputs(model.config, ROWS, pad=side)
    theirs = their_loss(reference, inputs, vocab_size)
    theirs.backward()
    total, count = suffix_loss(
        model.decoder,
        model.hidden_states(inputs),
        inputs,
        reduction="token",
        final_logit_softcap=True,
    )
    assert count == 22
    (total / count).backward()
    assert float((total / count).detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)

    # The same tensors under our names: what loading makes of a folder of gradients.
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(0 if parameter.grad is None else parameter.grad)
    reference.save_pretrained(tmp_path / "gradients")
    gradients = dict(load_model(tmp_path / "gradients").named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        expected = gradients[name].detach()
        largest = float(expected.abs().max())
        difference = float((parameter.grad - expected).abs().max())
        assert difference < 1e-5 * max(1.0, largest), (name, difference, largest)
        compared += largest > 1e-4
    assert compared > 0.8 * len(gradients)
