"""Turn images and prompts into model inputs.

image.py        load an image from a file, bytes, a PIL image or an array; resize and normalize it
fetch.py        download an image from a public URL (off by default)
tokenizer.py    text <-> token ids, with <locDDDD> and <segDDD>; streaming detokenization
sequence.py     token ids and masks of one row: image tokens, BOS, prefix, separator, suffix, EOS
processor.py    build a padded batch, `ModelInputs`
"""
