"""Ctrl-C while modules are imported or a model is loaded.

An exception raised in the middle of an import may be swallowed, or come out as another error that
seems to blame a file. At that time nothing needs to be tidied up, so the process exits at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn


def exit_interrupted() -> NoReturn:
    """End the process with exit code 130 after an interrupt that was handled.

    Unlike `sys.exit`, this waits for no thread, and Python does not raise SIGINT again, which it
    does if the interrupt came in code that was run from a string.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(Exception):
        sys.stdout.flush()
    atexit._run_exitfuncs()
    os._exit(130)


@contextmanager
def exit_when_interrupted() -> Iterator[None]:
    """Within the context, Ctrl-C ends the process with exit code 130."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
