"""Examples to adapted weights.

config.py   TrainConfig: how long, how fast, how often to save
dataset.py  JSON Lines of image, prefix, suffix -> examples
collate.py  examples -> training batch
loss.py     cross-entropy over the suffix
optim.py    parameter groups and the learning-rate schedule
state.py    training state on disk, whole or not at all
trainer.py  the loop: step, log, save, resume
"""
