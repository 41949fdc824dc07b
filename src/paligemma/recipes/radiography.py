r"""MIMIC-CXR: reports of chest X-rays.

    paligemma train DATA --recipe radiography --model google/paligemma2-3b-pt-896 \
        --out runs/radiography-896
"""

from __future__ import annotations

from paligemma.evals.datasets.writing import REPORT_PROMPT
from paligemma.recipes.recipe import PALIGEMMA_2, Recipe, Setting

RECIPE = Recipe(
    name="radiography",
    title="radiography",
    prompt=REPORT_PROMPT,
    suffix="the sections FINDINGS and IMPRESSION",
    text_length=512,
    settings=(Setting(resolution=896, epochs=8, batch_size=None, learning_rate=5e-6),),
    benchmarks=("mimic-cxr",),
    model="paligemma2-3b",
    train_split="MIMIC-CXR without what speaks of earlier examinations",
    evaluated_on="test",
    metric="CIDEr, BLEU-4, ROUGE-L, RadGraph F1",
    note=(
        "The learning rate was found at 448 pixels; higher resolutions and sizes swept 3e-6"
        " ... 5e-4 (as printed: 0.03 ... 5 times 1e-4). Not for medical use."
    ),
    source=PALIGEMMA_2,
)
