"""Load test for a server: `python -m benchmarks.serving`.

__main__.py      the command, and the server it starts if no URL is given
load.py          requests of mixed kinds at random times, and their outcomes
report.py        outcomes as figures, a table and a plot
plain_server.py  a minimal FastAPI server to compare with
"""
