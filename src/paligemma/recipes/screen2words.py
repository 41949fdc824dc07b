r"""Screen2Words: what a phone's screen is for.

    paligemma train DATA --recipe screen2words --model google/paligemma-3b-pt-224 \
        --out runs/screen2words-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="screen2words",
    title="Screen2Words",
    prompt=CAPTION,
    suffix="one of the summaries",
    text_length=24,
    settings=(
        Setting(resolution=224, epochs=10, dropout=0.3, label_smoothing=0.2),
        Setting(resolution=448, epochs=10, dropout=0.3, label_smoothing=0.2),
    ),
    benchmarks=("screen2words",),
    sweep_rows=("Screen2Words (minival)",),
    train_split="train and dev",
    train_examples=18_107,
    evaluated_on="test",
    metric="CIDEr",
    antialias_training=False,
    antialias_evaluation=False,
)
