"""Image and prompt to model inputs.

image.py        file, bytes, PIL image or array to RGB as a person sees it; RGB to pixel values
fetch.py        a picture from a public web address; off unless asked for
tokenizer.py    text to ids and back, with <locDDDD> and <segDDD>; text of a row as tokens come
sequence.py     image tokens, BOS, prefix, separator, suffix, EOS: ids and masks of one row
inputs.py       ModelInputs: the typed batch handed on
processor.py    joins the above; pads
"""
