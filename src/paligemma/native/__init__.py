"""C++ kernels and their plain torch references: packed weights in, the same numbers out.

csrc/         the kernels, compiled once for each level of processor
build.py      compiles them when the package is installed; no compiler is no error
library.py    finds and loads the best level that this processor has
packing.py    the layout of packed weights, and back
products.py   linear layers on packed weights
layers.py     norms, rotary positions, attention
"""
