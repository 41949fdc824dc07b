"""Many questions at a time to one model, over HTTP.

limits.py           every bound, with its default
jobs.py             what one asks, and the ticket that one holds
service.py          jobs in, results out; knows no HTTP
waiting_line.py     clients take turns
preparing.py        pictures and prompts made ready
engine_loop.py      the thread that owns the model
writing.py          tokens to text, boxes and results
growing_objects.py  each box as soon as it is whole
faults.py           where tests break it
"""
