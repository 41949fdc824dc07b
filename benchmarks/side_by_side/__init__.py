"""This package next to transformers and keras-hub: `python -m benchmarks.side_by_side`.

stages.py               what is measured, and the least time that it needs
transformers_runner.py  transformers as people run it, and with frozen weights
keras_runner.py         keras-hub on torch, whole answers only
worker.py               one process with one program's model, controlled over pipes
harness.py              starts the workers and asks them in turn
report.py               medians, ratios and shares; tables
plot.py                 the ratios as a bar chart
"""
