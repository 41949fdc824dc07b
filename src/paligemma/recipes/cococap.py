r"""COCO captions: one short sentence about a photograph.

    paligemma train DATA --recipe cococap --model google/paligemma-3b-pt-224 \
        --out runs/cococap-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="cococap",
    title="COCO captions",
    prompt=CAPTION,
    suffix="one of the five captions",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=5, weight_decay=1e-6, beams=2),
        Setting(resolution=448, epochs=5, weight_decay=1e-6, beams=2),
    ),
    benchmarks=(
        "cococap",
        "nocaps",
    ),
    sweep_rows=("COCOcap (minival)",),
    train_split="train and restval (113,287 pictures with five captions)",
    train_examples=113_287,
    evaluated_on="val",
    metric="CIDEr",
    note=(
        "Five epochs are one over the captions. The default learning rate in big_vision's "
        "config (1e-4) is not the tuned one."
    ),
    antialias_training=False,
    antialias_evaluation=False,
)
