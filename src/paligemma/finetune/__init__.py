"""Fine-tuning: examples -> adapted weights.

config.py       TrainConfig: how long, how fast, how often to save
examples.py     Example; data sets as examples; examples -> a batch
batches.py      micro-batches in an order that repeats
loss.py         which tokens count, and their cross-entropy over a large vocabulary
optim.py        trained parameters, parameter groups, the learning rate
distributed.py  training in several processes
state.py        checkpoints, which are complete or absent
trainer.py      the training loop: step, log, validate, save, resume
learner.py      finetune: a model and examples -> an adapted model
recipes.py      recipes of the papers, as a table (recipes.toml), and your own recipe files
run/            `paligemma train`: from labeled images to a scored model with a report
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.finetune.config import TrainConfig as TrainConfig
    from paligemma.finetune.distributed import World as World
    from paligemma.finetune.distributed import joined as joined
    from paligemma.finetune.examples import Example as Example
    from paligemma.finetune.examples import ExampleFile as ExampleFile
    from paligemma.finetune.examples import Examples as Examples
    from paligemma.finetune.examples import RecordExamples as RecordExamples
    from paligemma.finetune.learner import finetune as finetune
    from paligemma.finetune.learner import restore as restore
    from paligemma.finetune.recipes import RECIPES as RECIPES
    from paligemma.finetune.recipes import Recipe as Recipe
    from paligemma.finetune.recipes import find_recipe as find_recipe
    from paligemma.finetune.recipes import train_config as train_config
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
