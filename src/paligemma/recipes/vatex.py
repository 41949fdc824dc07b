r"""VATEX: what happens in a short video.

    paligemma train DATA --recipe vatex --model google/paligemma-3b-pt-224 \
        --out runs/vatex-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="vatex",
    title="VATEX",
    prompt=CAPTION,
    suffix="one of the captions",
    text_length=64,
    settings=(
        Setting(resolution=224, epochs=10, batch_size=128, learning_rate=3e-6, weight_decay=3e-7),
    ),
    benchmarks=("vatex",),
    sweep_rows=("VATEX (minival)",),
    frame_stride=7,
    train_split="train and valid",
    train_examples=24_850,
    evaluated_on="test",
    metric="CIDEr",
    num_images=16,
    antialias_training=False,
    antialias_evaluation=False,
)
