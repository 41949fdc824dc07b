"""Examples to adapted weights.

config.py   TrainConfig: how long, how fast, how often to save
collate.py  examples -> training batch
dataset.py  JSON Lines of image, prefix, suffix -> examples, in an order that repeats
loss.py     cross-entropy over the suffix
optim.py    parameter groups and the learning-rate schedule
state.py    training state on disk, whole or not at all
trainer.py  the loop: step, log, save, resume
finetune.py a model and a file of examples -> an adapted model
"""
