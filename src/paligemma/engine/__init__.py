"""Inputs to token ids. Knows no text.

sampling.py    logits to the next id, at random or greedily
generate.py    the plain loop; everything faster must equal it
beam.py        the likeliest whole sequence, by beams
score.py       how likely a given suffix is
"""
