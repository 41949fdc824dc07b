"""Inputs to token ids. Knows no text.

sampling.py       logits to the next id: sampling, and grammars that restrict it
generate.py       the plain loop; everything faster must equal it
beam.py           the likeliest whole sequence, by beams
score.py          how likely a given suffix is

Many requests at once:

engine.py         add, step, run, stream
scheduler.py      who is prefilled next and who decodes
request.py        one request, how far it has come, and why it stopped
image_cache.py    image tokens of pictures seen before
"""
