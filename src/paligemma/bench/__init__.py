"""The same work by several programs, side by side, and what the machine could do at best.

workload.py             which shapes, which stages, which inputs
costs.py                bytes and operations that a stage must take, by arithmetic
limits.py               how fast this machine reads memory and multiplies, measured
ours.py                 this package, plain, fast and quantized
transformers_runner.py  transformers as people run it, and with its weights frozen
keras_runner.py         keras-hub on torch, whole answers only
worker.py               one process with one program's model, asked over pipes
harness.py              starts the workers and asks them in turn
machine.py              what this machine is
report.py               medians, ratios and shares; tables
plot.py                 one picture of the ratios
"""
