"""mini, the small model inside the package: its world, its training, its evaluation.

The world, which needs no torch:
    assets.py          glyphs, letters, digits and photographs, drawn from shipped pictures
    scene.py           what stands where, and the picture of it
    sheet.py           tables and bar charts, and the picture of them
    language.py        names and sentences in six languages
    texts.py           what can be said of a scene
Training (`recipes/mini.py` runs it):
    vocabulary.py      the SentencePiece model
    codec_training.py  the mask codec
    dense.py           what each patch should know
    stage0.py          the vision encoder alone
    examples.py        tasks drawn from a scene or a sheet: prefix and suffix
    joint.py           the whole model
Evaluation:
    evaluate.py        fresh scenes, every task, one table
The trained checkpoint is in model/, the pictures that everything is drawn from in data/.
"""
