r"""A recipe to copy for one small GPU: plain gradient descent, no memory for Adam.

    paligemma train DATA --recipe forkme-small --model google/paligemma-3b-pt-224 \
        --out runs/forkme-small-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import BIG_VISION, Recipe, Setting

RECIPE = Recipe(
    name="forkme-small",
    title="your own captions, one small GPU",
    prompt=CAPTION,
    suffix="your text",
    text_length=128,
    settings=(Setting(resolution=224, epochs=1, batch_size=4, learning_rate=0.1, optimizer="sgd"),),
    metric="your own",
    train_split="a JSON Lines file of image, prefix and suffix",
    antialias_training=True,
    antialias_evaluation=True,
    source=BIG_VISION,
)
