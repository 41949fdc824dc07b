"""Model inputs to logits: the boxes of the paper's figure, one file each.

siglip.py           vision encoder: pixels to patch features
projector.py        patch features to decoder width
gemma.py            decoder, Gemma 1 and Gemma 2
attention.py        grouped-query attention with an optional soft cap
attention_mask.py   who may see whom: prefix-LM and sliding window
rope.py             rotary positions
kv_cache.py         keys and values of the past
paligemma.py        the whole: embed, merge, prefill, decode step
"""
