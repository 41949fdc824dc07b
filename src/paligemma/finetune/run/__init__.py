"""A training run: from labeled images to a scored, saved model and a report.

options.py          RunOptions: what the user chooses, and the defaults for the rest
run.py              data -> model -> training -> model folder, scores and report
validation.py       generated answers and the loss on the validation split
report.py           report.html: curves, examples next to the truth, confusions, the command
memory_estimate.py  the memory and time that training will take, before it starts
"""
