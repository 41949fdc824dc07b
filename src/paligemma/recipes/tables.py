r"""Table structure: a picture of a table to HTML.

    paligemma train DATA --recipe tables --model google/paligemma2-3b-pt-896 \
        --out runs/tables-896
"""

from __future__ import annotations

from paligemma.evals.datasets.writing import TABLE_PROMPT
from paligemma.recipes.recipe import PALIGEMMA_2, Recipe, Setting

RECIPE = Recipe(
    name="tables",
    title="table structure",
    prompt=TABLE_PROMPT,
    suffix=(
        "HTML, the place of every non-empty cell in an attribute coords of four loc tokens, x first"
    ),
    text_length=4096,
    settings=(Setting(resolution=896, steps=15_000, learning_rate=0.0001),),
    benchmarks=(
        "fintabnet",
        "pubtabnet",
    ),
    model="paligemma2-3b",
    resize="pad",
    train_split="PubTabNet (516k) and FinTabNet (113k)",
    train_examples=629_000,
    evaluated_on="PubTabNet and FinTabNet",
    metric="TEDS, S-TEDS, GriTS",
    note=(
        "Examples that are invalid or have overlapping boxes were dropped, and the boxes of"
        " FinTabNet refined. The prompt is not printed; this one is ours."
    ),
    source=PALIGEMMA_2,
)
