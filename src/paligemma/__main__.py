"""`python -m paligemma`: the command line."""

from paligemma.cli.main import main

main()
