r"""MSR-VTT-QA: questions about short videos.

    paligemma train DATA --recipe msrvtt-qa --model google/paligemma-3b-pt-224 \
        --out runs/msrvtt-qa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="msrvtt-qa",
    title="MSR-VTT questions",
    prompt=ANSWER,
    suffix="the answer",
    text_length=64,
    settings=(Setting(resolution=224, epochs=1, batch_size=128, freeze_vision=True),),
    benchmarks=("msrvtt-qa",),
    sweep_rows=("MSRVTT-QA (minival)",),
    frame_stride=9,
    train_split="train and valid",
    train_examples=121_646,
    evaluated_on="test",
    metric="accuracy",
    num_images=16,
    antialias_training=False,
    antialias_evaluation=False,
)
