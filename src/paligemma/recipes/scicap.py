r"""SciCap: the first sentence below a figure of a paper.

    paligemma train DATA --recipe scicap --model google/paligemma-3b-pt-224 \
        --out runs/scicap-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="scicap",
    title="SciCap",
    prompt=CAPTION,
    suffix="the first sentence, in lower case, cut into words",
    text_length=96,
    settings=(
        Setting(resolution=224, epochs=80, learning_rate=3e-5, dropout=0.1, label_smoothing=0.1),
        Setting(resolution=448, epochs=80, learning_rate=3e-5, dropout=0.1, label_smoothing=0.1),
    ),
    benchmarks=("scicap",),
    sweep_rows=("SciCap (minival)",),
    train_split="train and val, first sentence, no subfigures",
    train_examples=120_188,
    evaluated_on="test",
    metric="CIDEr",
    antialias_training=False,
    antialias_evaluation=False,
)
