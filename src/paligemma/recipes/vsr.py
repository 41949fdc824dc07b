r"""VSR: is a sentence about where things are true?

    paligemma train DATA --recipe vsr --model google/paligemma2-3b-pt-224 \
        --out runs/vsr-224
"""

from __future__ import annotations

from paligemma.evals.datasets.prompts import SENTENCE
from paligemma.recipes.recipe import PALIGEMMA_2, Recipe, Setting

RECIPE = Recipe(
    name="vsr",
    title="VSR",
    prompt=SENTENCE,
    suffix="True or False",
    text_length=64,
    settings=(Setting(resolution=224, batch_size=1024, learning_rate=None),),
    benchmarks=("vsr",),
    model="paligemma2-3b",
    train_split="the train sets of the random and of the zero-shot split",
    evaluated_on="test of both splits",
    metric="accuracy",
    note=(
        "Swept: learning rate 1e-7, 2e-7, 1e-6, 3e-6; weight decay 1e-7, 3e-7, 1e-6; "
        "dropout 0, 0.1, 0.2; epochs 1, 3, 5, 10, 15, 30; what was chosen is not printed. "
        "Up to 18 tokens are written. The prompt is not printed; the one of NLVR2 stands "
        "in."
    ),
    source=PALIGEMMA_2,
)
