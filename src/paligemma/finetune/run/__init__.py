"""One run: labelled pictures in, a scored, saved model with a report out.

options.py     RunOptions: what a person chooses; the rest follows from method, size and data
run.py         data -> model -> training -> model folder, scores and report
validation.py  generated answers and the loss on held-back records
report.py      report.html: curves, examples beside the truth, confusions, the exact command
svg.py         curves as SVG
fit.py         the memory and time that a run will take, before it starts
"""
