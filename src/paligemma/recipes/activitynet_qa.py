r"""ActivityNet-QA: questions about videos.

    paligemma train DATA --recipe activitynet-qa --model google/paligemma-3b-pt-224 \
        --out runs/activitynet-qa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="activitynet-qa",
    title="ActivityNet questions",
    prompt=ANSWER,
    suffix="the answer",
    text_length=64,
    settings=(Setting(resolution=224, epochs=1, batch_size=128, weight_decay=1e-6),),
    benchmarks=("activitynet-qa",),
    sweep_rows=("ActivityNet-QA (minival)",),
    frame_stride=70,
    train_split="train and val",
    train_examples=43_130,
    evaluated_on="test",
    metric="accuracy",
    num_images=16,
    antialias_training=False,
    antialias_evaluation=False,
)
