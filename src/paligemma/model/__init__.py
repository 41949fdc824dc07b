"""Model inputs to logits: the boxes of the paper's figure, one file each.

siglip.py           vision encoder: pixels to patch features
gemma.py            decoder, Gemma 1 and Gemma 2
attention.py        masks, rotary positions, grouped-query attention with an optional soft cap
kv_cache.py         keys and values of the past: one batch, or rows that come and go
paligemma.py        the projector and the whole: embed, merge, prefill, decode step
"""
