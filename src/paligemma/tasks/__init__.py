"""Tasks: a question becomes a prompt, the model's tokens become a typed result.

task.py            the protocol: prompt(), parse()
caption.py         describe the picture, or one box in it
answer.py          answer a question; ask for a question
ocr.py             read the text
detect.py          boxes for named things
segment.py         masks for named things
objects.py         lists of objects as the model writes them: boxes, labels, scores
object_grammar.py  what may come next in such a list
seg_codec.py       masks <-> <seg> tokens: the VQ-VAE
"""
