r"""ActivityNet captions: what happens in a part of a video.

    paligemma train DATA --recipe activitynet-cap --model google/paligemma-3b-pt-224 \
        --out runs/activitynet-cap-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="activitynet-cap",
    title="ActivityNet captions",
    prompt=CAPTION,
    suffix="the caption",
    text_length=64,
    settings=(
        Setting(resolution=224, epochs=1, batch_size=128, weight_decay=1e-6, freeze_vision=True),
    ),
    benchmarks=("activitynet-cap",),
    sweep_rows=("ActivityNet-CAP (minival)",),
    frame_stride=30,
    train_split="train and val",
    train_examples=44_775,
    evaluated_on="test",
    metric="CIDEr",
    num_images=16,
    antialias_training=False,
    antialias_evaluation=False,
)
