r"""TextCaps: captions that mention what is written.

    paligemma train DATA --recipe textcaps --model google/paligemma-3b-pt-224 \
        --out runs/textcaps-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="textcaps",
    title="TextCaps",
    prompt=CAPTION,
    suffix="one of the captions, in lower case",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=5, weight_decay=1e-6, beams=3),
        Setting(resolution=448, epochs=5, weight_decay=1e-6, beams=3),
    ),
    benchmarks=("textcaps",),
    sweep_rows=("TextCaps (minival)",),
    train_split="train",
    train_examples=21_953,
    evaluated_on="val by the model card, test by the text of the paper",
    metric="CIDEr",
    antialias_training=False,
    antialias_evaluation=False,
)
