"""The model on CUDA devices: merged products, compiled modules and CUDA graphs.

attention.py   attention without a matrix of scores
block.py       a decoder block with merged products, and one layer as one function
model.py       the model: compiled prefixes, decode steps recorded as CUDA graphs; its check; and
               quantized weights, by torchao and bitsandbytes
"""
