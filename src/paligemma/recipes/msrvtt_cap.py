r"""MSR-VTT captions: what happens in a short video.

    paligemma train DATA --recipe msrvtt-cap --model google/paligemma-3b-pt-224 \
        --out runs/msrvtt-cap-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import CAPTION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="msrvtt-cap",
    title="MSR-VTT captions",
    prompt=CAPTION,
    suffix="one of the captions",
    text_length=32,
    settings=(Setting(resolution=224, epochs=20, batch_size=128, freeze_vision=True),),
    benchmarks=("msrvtt-cap",),
    sweep_rows=("MSRVTT-CAP (minival)",),
    frame_stride=9,
    train_split="train and valid",
    train_examples=4_965,
    evaluated_on="test",
    metric="CIDEr",
    num_images=16,
    antialias_training=False,
    antialias_evaluation=False,
)
