"""A fixed run of 50 steps gives the curve that is stored beside this file.

After a change that is meant to change numbers, store it anew and say so:

    python -m tests.finetune.test_curve
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from paligemma.finetune.config import TrainConfig
from paligemma.finetune.loss import loss_count, suffix_loss
from paligemma.finetune.trainer import LOG_NAME, Objective, train
from paligemma.inputs import ModelInputs
from tests.tiny import Row, tiny_config, tiny_inputs, tiny_model

STORED = Path(__file__).with_name("curve.json")
CONFIG = TrainConfig(
    num_steps=50, learning_rate=1e-3, weight_decay=0.1, autocast=False, label_smoothing=0.1
)
ROWS = [
    Row(prefix=3, suffix=4),
    Row(images=(1,), prefix=9, suffix=2),
    Row(images=(0, 1), prefix=5, suffix=7),
    Row(images=(), prefix=4, suffix=3),
]
# A processor without vector instructions moves losses by 3e-6 of themselves.
TOLERANCE = 1e-3


class FixedBatches:
    """The same four batches over and over."""

    def batch(self, number: int) -> ModelInputs:
        return tiny_inputs(tiny_config(), ROWS, pad="right", seed=number % 4)


def curve(out: Path) -> list[float]:
    model = tiny_model(attn_logit_softcap=50.0).requires_grad_(True)

    def losses(batch: ModelInputs) -> dict[str, torch.Tensor]:
        hidden = model.hidden_states(batch)
        smoothing = CONFIG.label_smoothing
        return {"loss": suffix_loss(model.decoder, hidden, batch, label_smoothing=smoothing)[0]}

    objective = Objective(losses=losses, count=lambda batch: loss_count(batch, "example"))
    train(model, FixedBatches(), objective, CONFIG, out)
    return [json.loads(line)["loss"] for line in (out / LOG_NAME).read_text().splitlines()]


def test_g11_the_curve_of_50_steps_is_the_stored_one(tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text())
    assert len(stored) == 50
    assert stored[-1] < 0.5 * stored[0]
    assert curve(tmp_path) == pytest.approx(stored, rel=TOLERANCE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        STORED.write_text(json.dumps(curve(Path(folder)), indent=1) + "\n")
