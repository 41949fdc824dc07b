"""Fast stand-ins for modules of the model, on the kernels of `native`.

linear.py       linear layers on packed weights
embedding.py    the table of token embeddings, packed
gemma.py        a decoder block
siglip.py       a vision block
accelerate.py   puts them into a model, and finds every weight again
"""
