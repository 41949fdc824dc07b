r"""VizWizVQA: questions of blind people about their photographs.

    paligemma train DATA --recipe vizwizvqa --model google/paligemma-3b-pt-224 \
        --out runs/vizwizvqa-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="vizwizvqa",
    title="VizWizVQA",
    prompt=ANSWER,
    suffix="one of the ten answers",
    text_length=48,
    settings=(
        Setting(resolution=224, epochs=10),
        Setting(resolution=448, epochs=10),
    ),
    benchmarks=("vizwizvqa",),
    sweep_rows=("VizWizVQA (val)",),
    train_split="train and val",
    train_examples=24_842,
    evaluated_on="test-std (server)",
    metric="VQA accuracy, without leave-one-out",
    antialias_training=True,
    antialias_evaluation=False,
)
