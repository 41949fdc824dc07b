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
finetune.py       a model and examples -> an adapted model
recipes.py        how the papers fine-tuned, as a table (recipes.toml), and recipes of your own
"""
