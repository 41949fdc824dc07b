"""An HTTP server that answers many requests at a time with one model.

Without HTTP:

settings.py         every limit, with its default; API keys and host names
jobs.py             jobs, the tickets that callers hold, the queue, and the service's statistics
service.py          jobs in, results out
preparing.py        decodes images and tokenizes prompts, in threads
engine_loop.py      the thread that runs the model

With HTTP:

app.py              the application: routes, inside middleware.py
refusing.py         what is refused under overload before it gets there
routes/             native.py, batch.py, openai.py, health.py
handler.py          what all routes share; images.py, strict_json.py, sse.py, errors.py
requests.py, responses.py   the JSON of the task routes, as models
openai_models.py    the JSON of OpenAI's dialect, as models
metrics.py, logs.py
process.py          one server process, from start to end
page/               the page at /
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.server.app import create_app as create_app
    from paligemma.server.process import serve as serve
    from paligemma.server.service import Loaded as Loaded
    from paligemma.server.service import Service as Service
    from paligemma.server.settings import KeyRing as KeyRing
    from paligemma.server.settings import Limits as Limits
    from paligemma.server.settings import Settings as Settings
    from paligemma.server.settings import read_keys as read_keys
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
