"""The model on a CUDA device: fewer and larger steps, compiled, with nothing left to wait for.

attention.py   attention that keeps no matrix of scores
block.py       a decoder block with merged products, and one layer of a pass as one function
model.py       the model: compiled prefixes, decode steps recorded once and played again
quantize.py    smaller weights, by torchao and bitsandbytes
"""
