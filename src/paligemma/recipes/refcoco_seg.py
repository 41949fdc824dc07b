r"""RefCOCO, RefCOCO+ and RefCOCOg: the mask of the thing that a phrase means.

    paligemma train DATA --recipe refcoco-seg --model google/paligemma-3b-pt-224 \
        --out runs/refcoco-seg-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import EXPRESSION
from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="refcoco-seg",
    title="RefCOCO segmentation",
    prompt=EXPRESSION,
    suffix="four loc and sixteen seg tokens, without a label",
    text_length=48,
    settings=(
        Setting(resolution=224, epochs=100, learning_rate=3e-5, dropout=0.1, label_smoothing=0.3),
        Setting(resolution=448, epochs=100, label_smoothing=0.3),
        Setting(resolution=896, epochs=100, batch_size=64, label_smoothing=0.3),
    ),
    benchmarks=(
        "refcoco",
        "refcoco+",
        "refcocog",
    ),
    sweep_rows=(
        "RefCOCO (val)",
        "RefCOCO+ (val)",
        "RefCOCOg (val)",
    ),
    write_labels=False,
    train_split="the three train sets together, less all pictures of val and test",
    train_examples=24_407,
    evaluated_on="val, testA, testB; RefCOCOg: val, test",
    metric="mIoU",
    note="An object and one of its phrases are drawn anew in every epoch.",
    antialias_training=False,
    antialias_evaluation=False,
)
