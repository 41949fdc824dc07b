"""The model: inputs to logits, with one file per box of the paper's figure.

siglip.py           vision encoder: pixels to patch features
gemma.py            decoder: Gemma 1 and Gemma 2
attention.py        masks, rotary positions, grouped-query attention with an optional soft cap
kv_cache.py         keys and values of past tokens: a fixed batch, or rows that come and go
paligemma.py        the projector and the whole model: embed, merge, prefill, decode step
"""
