r"""DocLayNet detection: all boxes of a picture.

    paligemma train DATA --recipe doclaynet-detection --model google/paligemma2-3b-pt-224 \
        --out runs/doclaynet-detection-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import DETECT_ALL
from paligemma.recipes.recipe import PALIGEMMA_2, Recipe, Setting

RECIPE = Recipe(
    name="doclaynet-detection",
    title="DocLayNet detection",
    prompt=DETECT_ALL,
    suffix="all boxes in random order with their labels, then noise boxes labelled <noise>",
    text_length=1024,
    settings=(
        Setting(resolution=224, epochs=50, batch_size=None, learning_rate=None),
        Setting(resolution=448, epochs=50, batch_size=None, learning_rate=None),
        Setting(resolution=896, epochs=50, batch_size=None, learning_rate=None),
    ),
    benchmarks=("doclaynet",),
    model="paligemma2-3b",
    noise_boxes=True,
    train_split="train",
    evaluated_on="not stated",
    metric="mAP, scored by the likelihood of the label",
    note=(
        "Noise boxes fill the text up; their places count nothing in the loss, their label "
        "does. <noise> and the end are never drawn in evaluation. Batch size, learning rate"
        " and text length are not printed."
    ),
    source=PALIGEMMA_2,
)
