"""Examples to adapted weights.

config.py         TrainConfig: how long, how fast, how often to save
collate.py        examples -> training batch
dataset.py        JSON Lines of image, prefix, suffix -> examples, in an order that repeats
loss.py           which tokens count, and how much
cross_entropy.py  their cross-entropy over a vocabulary too large for memory
optim.py          what is trained, parameter groups, the learning rate
distributed.py    several processes as one
state.py          training state on disk, whole or not at all
trainer.py        the loop: step, log, validate, save, resume
learner.py        a model and examples -> an adapted model
recipes.py        how the papers fine-tuned, as a table (recipes.toml), and recipes of your own
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.finetune.collate import Example as Example
    from paligemma.finetune.config import TrainConfig as TrainConfig
    from paligemma.finetune.dataset import ExampleFile as ExampleFile
    from paligemma.finetune.dataset import Examples as Examples
    from paligemma.finetune.distributed import World as World
    from paligemma.finetune.distributed import joined as joined
    from paligemma.finetune.examples import RecordExamples as RecordExamples
    from paligemma.finetune.learner import finetune as finetune
    from paligemma.finetune.learner import restore as restore
    from paligemma.finetune.recipes import RECIPES as RECIPES
    from paligemma.finetune.recipes import Recipe as Recipe
    from paligemma.finetune.recipes import find_recipe as find_recipe
    from paligemma.finetune.recipes import train_config as train_config
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "config": ("TrainConfig",),
            "collate": ("Example",),
            "dataset": ("ExampleFile", "Examples"),
            "examples": ("RecordExamples",),
            "learner": ("finetune", "restore"),
            "distributed": ("World", "joined"),
            "recipes": ("RECIPES", "Recipe", "find_recipe", "train_config"),
        },
    )
