r"""MSVD-QA: questions about short videos.

    paligemma train DATA --recipe msvd-qa --model google/paligemma-3b-pt-224 \
        --out runs/msvd-qa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="msvd-qa",
    title="MSVD questions",
    prompt=ANSWER,
    suffix="the answer",
    text_length=64,
    settings=(
        Setting(resolution=224, epochs=1, batch_size=128, learning_rate=3e-6, weight_decay=3e-7),
    ),
    benchmarks=("msvd-qa",),
    sweep_rows=("MSVD-QA (minival)",),
    num_images=8,
    frame_stride=26,
    train_split="train and valid",
    train_examples=29_749,
    evaluated_on="test",
    metric="accuracy",
    note="The paper has 16 frames for every video task; big_vision's config of this one has 8.",
    antialias_training=False,
    antialias_evaluation=False,
)
