r"""NLVR2: is a sentence true of two pictures?

    paligemma train DATA --recipe nlvr2 --model google/paligemma-3b-pt-224 \
        --out runs/nlvr2-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import SENTENCE
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="nlvr2",
    title="NLVR2",
    prompt=SENTENCE,
    suffix="True or False",
    text_length=64,
    settings=(
        Setting(resolution=224, epochs=3, weight_decay=1e-6),
        Setting(resolution=448, epochs=10, learning_rate=3e-6, weight_decay=3e-7),
    ),
    benchmarks=(
        "nlvr2",
        "marvl",
    ),
    sweep_rows=("NLVR2 (minival)",),
    num_images=2,
    train_split="train and dev",
    train_examples=93_355,
    evaluated_on="test",
    metric="accuracy",
    note="The pictures stand left, then right.",
    antialias_training=False,
    antialias_evaluation=False,
)
