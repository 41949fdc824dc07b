r"""COCO-35L: captions in 35 languages.

    paligemma train DATA --recipe coco35l --model google/paligemma-3b-pt-224 \
        --out runs/coco35l-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION_IN
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="coco35l",
    title="COCO-35L",
    prompt=CAPTION_IN,
    suffix="one of the captions in that language",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=25, weight_decay=1e-6),
        Setting(resolution=448, epochs=25, weight_decay=1e-6),
    ),
    benchmarks=(
        "coco35l",
        "xm3600",
    ),
    sweep_rows=("COCO-35L (avg34)",),
    train_split="train and restval in 35 languages",
    train_examples=3_965_045,
    evaluated_on="dev",
    metric="CIDEr",
    note=(
        "The paper says 25 epochs; big_vision's best config sees 5 x 566,435 examples, "
        "languages in equal parts. An example is a picture in one language."
    ),
    antialias_training=False,
    antialias_evaluation=False,
)
