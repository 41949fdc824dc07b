r"""A recipe to copy: captions of your own pictures.

    paligemma train DATA --recipe forkme --model google/paligemma-3b-pt-224 \
        --out runs/forkme-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import BIG_VISION, Recipe, Setting

RECIPE = Recipe(
    name="forkme",
    title="your own captions",
    prompt=CAPTION,
    suffix="your text",
    text_length=128,
    settings=(Setting(resolution=224, epochs=15, batch_size=32, weight_decay=3e-7),),
    metric="your own",
    train_split="a JSON Lines file of image, prefix and suffix",
    note="For four GPUs of 24 GB in full precision; see the methods that need less.",
    antialias_training=True,
    antialias_evaluation=True,
    source=BIG_VISION,
)
