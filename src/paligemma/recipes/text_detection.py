r"""Text detection and recognition: where words stand, and what they say.

    paligemma train DATA --recipe text-detection --model google/paligemma2-3b-pt-896 \
        --out runs/text-detection-896
"""

from __future__ import annotations

from paligemma.evals.datasets.spotting import PROMPT
from paligemma.recipes.recipe import PALIGEMMA_2, Recipe, Setting

RECIPE = Recipe(
    name="text-detection",
    title="text detection and recognition",
    prompt=PROMPT,
    suffix='for each word four loc tokens and the word, joined by " ; "',
    text_length=2048,
    settings=(Setting(resolution=896, steps=15_000, label_smoothing=0.1),),
    benchmarks=(
        "icdar15",
        "total-text",
    ),
    model="paligemma2-3b",
    train_split="ICDAR'15, Total-Text, MLT17, MLT19, HierText, TextOCR, IntelOCR",
    evaluated_on="ICDAR'15 and Total-Text",
    metric="F1 of words, IoU 0.5 and equal transcription",
    note=(
        "The paper prints neither the prompt nor how boxes and words are written; the form "
        "of detection stands in. The learning rate is the best of 1e-6 ... 1e-4."
    ),
    source=PALIGEMMA_2,
)
