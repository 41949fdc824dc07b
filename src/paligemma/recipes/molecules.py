r"""Molecules: a drawing to SMILES.

    paligemma train DATA --recipe molecules --model google/paligemma2-10b-pt-448 \
        --out runs/molecules-448
"""

from __future__ import annotations

from paligemma.evals.datasets.writing import MOLECULE_PROMPT
from paligemma.recipes.recipe import PALIGEMMA_2, Recipe, Setting

RECIPE = Recipe(
    name="molecules",
    title="molecules",
    prompt=MOLECULE_PROMPT,
    suffix="SMILES",
    text_length=256,
    settings=(Setting(resolution=448, steps=30_000, learning_rate=0.0001, label_smoothing=0.1),),
    benchmarks=("chemdraw",),
    model="paligemma2-10b",
    resize="pad",
    train_split="a million molecules of PubChem, drawn by Indigo in many styles and perturbed",
    train_examples=1_000_000,
    evaluated_on="ChemDraw",
    metric="exact match",
    note="The prompt is not printed; this one is ours.",
    source=PALIGEMMA_2,
)
