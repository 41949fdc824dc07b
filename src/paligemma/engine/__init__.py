"""Inputs to token ids. Knows no text.

sampling.py       logits to the next id, at random or greedily
constraint.py     decoding held to a grammar
generate.py       the plain loop; everything faster must equal it
beam.py           the likeliest whole sequence, by beams
score.py          how likely a given suffix is
speculative.py    several guessed tokens judged in one pass

Many requests at once:

engine.py         add, step, run, stream
scheduler.py      who is prefilled next and who decodes
request.py        one request, how far it has come, and why it stopped
slot_cache.py     keys and values of rows that come and go
image_cache.py    image tokens of pictures seen before
recent_cache.py   values by key, in so many bytes
"""
