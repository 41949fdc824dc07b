"""Many questions at a time to one model, over HTTP.

Without HTTP:

limits.py           every bound, with its default
jobs.py             what one asks, and the ticket that one holds
service.py          jobs in, results out
stats.py            what it counts
waiting_line.py     clients take turns
preparing.py        pictures and prompts made ready
engine_loop.py      the thread that owns the model
writing.py          tokens to text, boxes and results
object_stream.py  each box as soon as it is whole
faults.py, faulty_model.py  where tests break it

With it:

app.py              routes inside, guards around: middleware.py, settings.py, errors.py, logs.py
native_api.py       a route a task: schemas.py, images.py, strict_json.py, sse.py
batch_api.py        many questions in one request
openai_api.py       OpenAI's dialect: openai_schemas.py, prompt_tasks.py
health.py, metrics.py  how it does
process.py          one server process, from beginning to end
page/               the page at /
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.server.app import create_app as create_app
    from paligemma.server.limits import Limits as Limits
    from paligemma.server.process import serve as serve
    from paligemma.server.service import Loaded as Loaded
    from paligemma.server.service import Service as Service
    from paligemma.server.settings import KeyRing as KeyRing
    from paligemma.server.settings import Settings as Settings
    from paligemma.server.settings import read_keys as read_keys
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "app": ("create_app",),
            "limits": ("Limits",),
            "process": ("serve",),
            "service": ("Loaded", "Service"),
            "settings": ("KeyRing", "Settings", "read_keys"),
        },
    )
