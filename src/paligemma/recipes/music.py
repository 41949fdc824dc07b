r"""Music: a system of piano music to **kern.

    paligemma train DATA --recipe music --model google/paligemma2-3b-pt-896 \
        --out runs/music-896
"""

from __future__ import annotations

from paligemma.evals.datasets.writing import MUSIC_PROMPT
from paligemma.recipes.recipe import PALIGEMMA_2, Recipe, Setting

RECIPE = Recipe(
    name="music",
    title="music scores",
    prompt=MUSIC_PROMPT,
    suffix="**kern",
    text_length=1024,
    settings=(Setting(resolution=896, steps=30_000, learning_rate=0.0001, label_smoothing=0.1),),
    benchmarks=("grandstaff",),
    model="paligemma2-3b",
    resize="pad",
    train_split="GrandStaff, originals and synthetic variants",
    train_examples=53_700,
    evaluated_on="GrandStaff",
    metric="CER, SER, LER",
    note="The prompt is not printed; this one is ours.",
    source=PALIGEMMA_2,
)
