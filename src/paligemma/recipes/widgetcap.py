r"""WidgetCap: what the part of a screen in a red frame is for.

    paligemma train DATA --recipe widgetcap --model google/paligemma-3b-pt-224 \
        --out runs/widgetcap-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="widgetcap",
    title="WidgetCap",
    prompt=CAPTION,
    suffix="one of the descriptions",
    text_length=32,
    settings=(
        Setting(
            resolution=224,
            epochs=4,
            batch_size=64,
            learning_rate=3e-6,
            weight_decay=3e-7,
            dropout=0.1,
            label_smoothing=0.1,
        ),
        Setting(
            resolution=448,
            epochs=4,
            batch_size=64,
            learning_rate=3e-6,
            weight_decay=3e-7,
            dropout=0.1,
            label_smoothing=0.1,
        ),
    ),
    benchmarks=("widgetcap",),
    sweep_rows=("WidgetCap (minival)",),
    train_split="train and dev",
    train_examples=44_704,
    evaluated_on="test",
    metric="CIDEr",
    note="The frame, red and one pixel wide, is drawn after the resize.",
    antialias_training=True,
    antialias_evaluation=True,
)
