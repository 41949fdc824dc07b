"""How fast a model runs on this machine, and how much faster the machine could run it.

workload.py  shapes by name, random weights and inputs
runner.py    the model, stage by stage
limits.py    how fast this machine reads memory and multiplies, and what a stage needs of both
machine.py   the machine: processor, memory, versions
measure.py   runs the stages; times, shares of the limit and memory as a report
"""
