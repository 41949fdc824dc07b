r"""VQAv2: questions about photographs.

    paligemma train DATA --recipe vqav2 --model google/paligemma-3b-pt-224 \
        --out runs/vqav2-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import ANSWER
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="vqav2",
    title="VQAv2",
    prompt=ANSWER,
    suffix="one of the ten answers",
    text_length=32,
    settings=(
        Setting(resolution=224, epochs=10, weight_decay=1e-6),
        Setting(resolution=448, epochs=10),
    ),
    benchmarks=(
        "vqav2",
        "pope",
        "mmvp",
        "objaverse",
    ),
    sweep_rows=("VQAv2 (minival)",),
    train_split="train and validation",
    train_examples=658_111,
    evaluated_on="test-std (server); minival: the last 10,240 of validation",
    metric="VQA accuracy",
    antialias_training=True,
    antialias_evaluation=True,
)
