"""The program `paligemma`: runs a command, and reports errors.

An error that the package raises on purpose is one line on stderr. Exit codes: 0 done; 2 wrong
usage, input, option, checkpoint or data; 3 some of several files could not be read (the commands
say so); 1 anything else; 130 interrupted.

Little is imported before `main` runs, so that an interrupt is handled from the start.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from paligemma.cli.interrupt import exit_interrupted, exit_when_interrupted

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit."""
    try:
        with exit_when_interrupted():
            from paligemma.cli.app import app, check_moved
            from paligemma.cli.console import prepare_streams
        prepare_streams()
        try:
            check_moved(sys.argv[1:] if arguments is None else arguments)
            app(arguments, prog_name="paligemma")
        finally:
            sys.stdout.flush()
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # typer's, for an interrupt
            raise
        if arguments is None:
            exit_interrupted()
        sys.exit(130)
    except Exception as error:
        sys.exit(_report(error))
    raise AssertionError("typer exits after every command")


def _report(error: Exception) -> int:
    """Print what went wrong as one line; return the exit code."""
    from paligemma.cli.console import discard_stdout, print_error
    from paligemma.errors import CheckpointError, DataError, InputError, PaliGemmaError

    if isinstance(error, PaliGemmaError):
        print_error(str(error))
        return 2 if isinstance(error, InputError | CheckpointError | DataError) else 1
    if os.environ.get("PALIGEMMA_DEBUG"):
        raise error
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE and error.filename is None:
        print_error(f"The output cannot be written: {error.strerror}.")
        discard_stdout()
    elif isinstance(error, MemoryError):
        print_error("The memory of this machine is used up. Use a smaller model or fewer images.")
    else:
        print_error(
            f"{type(error).__name__}: {error} (unexpected error; set PALIGEMMA_DEBUG=1 for a "
            "traceback)"
        )
    return 1


if __name__ == "__main__":
    main()
