"""`paligemma bench serve`: how fast a server answers while requests keep coming."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from paligemma.cli.console import print_note, print_table, require_scenes
from paligemma.errors import MissingExtraError, OptionError, UnavailableError

KEY_VARIABLE = "PALIGEMMA_API_KEY"
KEYS_VARIABLE = "PALIGEMMA_API_KEYS"  # those that a server asks for: its own asks for none

_START_SECONDS = 300.0
_READY_SECONDS = 10.0  # for one that runs already
_END_SECONDS = 60.0
_MAX_ARRIVALS = 100_000


def bench_serve(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The server's address, such as http://localhost:8000.",
            show_default="a server of its own",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="What to serve; with URL, which of the server's models to ask."),
    ] = None,
    rates: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Requests a second, comma-separated.")
    ] = "2,4,8,16",
    seconds: Annotated[float, typer.Option(min=0.1, help="How long requests come, a rate.")] = 10.0,
    bound: Annotated[
        float, typer.Option(min=0.001, help="Goodput counts answers within so many seconds.")
    ] = 1.0,
    kinds: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated: ask, caption, ocr, detect, segment.",
            show_default="all, short ones more often",
        ),
    ] = "",
    pictures: Annotated[
        int, typer.Option(min=1, max=1000, help="Different pictures, asked about in turn.")
    ] = 16,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a request counts as lost.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Other moments, kinds and pictures.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw latency and goodput (.png, .svg, .pdf)."),
    ] = None,
) -> None:
    """Send a server requests at random moments, and measure its answers.

    Open loop: requests come by a Poisson process, however many are unanswered; a latency counts
    from the moment at which the request was due. Without URL a server is started for the time
    of the measurement, on this machine, which it then shares with this program. A key for the
    server is read from $PALIGEMMA_API_KEY.
    """
    if find_spec("h11") is None:
        raise MissingExtraError("h11", "serve", "`paligemma bench serve`")
    require_scenes("paligemma bench serve")
    from paligemma.server.load_generator import (
        Arrival,
        Target,
        choose_mix,
        draw_pictures,
        poisson_arrivals,
        run_load,
        wait_until_ready,
    )
    from paligemma.server.load_report import HEADINGS, draw, run_report, table_rows

    for path in (json_file, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise OptionError(f"There is no folder {path.parent} to write {path.name} into.")
    numbers = _rates(rates)
    if max(numbers) * seconds > _MAX_ARRIVALS:
        raise OptionError(f"That is more than {_MAX_ARRIVALS} requests: lower --seconds.")
    mix = choose_mix([name.strip() for name in kinds.split(",") if name.strip()])
    if url is not None:
        Target(base_url=url)  # checks it, before anything takes time
    files = draw_pictures(pictures, seed)
    runs = []
    with contextlib.ExitStack() as stack:
        address = url or stack.enter_context(_own_server(model or "mini"))
        target = Target(
            base_url=address,
            key=os.environ.get(KEY_VARIABLE),
            model=model if url else None,
            timeout=timeout,
        )
        if not asyncio.run(
            wait_until_ready(target, seconds=_START_SECONDS if url is None else _READY_SECONDS)
        ):
            raise UnavailableError(f"The server at {address} is not ready.")
        warm_up = [Arrival(due=0.0, kind=kind, picture=0) for kind in mix]
        if failed := [o for o in asyncio.run(run_load(target, warm_up, files)) if o.status != 200]:
            raise UnavailableError(
                f"The server at {address} answered {failed[0].kind} with status "
                f"{failed[0].status}, before any load. Its log says why; keys come from "
                f"${KEY_VARIABLE}."
            )
        for rate in numbers:
            arrivals = poisson_arrivals(
                rate=rate, seconds=seconds, mix=mix, num_pictures=pictures, seed=seed
            )
            print_note(f"{len(arrivals)} requests in {seconds:g} s, {rate:g} a second")
            outcomes = asyncio.run(run_load(target, arrivals, files))
            runs.append(run_report(outcomes, rate=rate, seconds=seconds, bound=bound))
    report = {
        "server": url or "own",
        "model": model or "mini" if url is None else model,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": seconds,
        "bound_seconds": bound,
        "seed": seed,
        "pictures": pictures,
        "mix": {kind.name: kind.weight for kind in mix},
        "runs": runs,
    }
    print_table(
        f"Latency from due to answered; goodput: answers within {bound:g} s",
        HEADINGS,
        table_rows(report),
        right=[heading for heading in HEADINGS if heading != "kind"],
    )
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        draw(report, plot)


def _rates(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        found = []
    if not found or not 0 < found[0] <= found[-1] <= 10_000:
        raise OptionError(f"--rates is {text!r}; it must be numbers above 0, such as 2,4,8.")
    return found


@contextlib.contextmanager
def _own_server(model: str) -> Iterator[str]:
    """The address of a server that lives as long as the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "paligemma", "serve", "--model", model, "--port", "0"),
                # All requests come from one client here.
                *("--limit", "streams_per_client=100000"),
            ],
            stdout=log,
            stderr=log,
            env={name: value for name, value in os.environ.items() if name != KEYS_VARIABLE},
        )
        try:
            yield f"http://127.0.0.1:{_port_of(process, log.fileno())}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port_of(process: subprocess.Popen[bytes], log: int) -> int:
    """The port that the server's log tells of. Raises UnavailableError when it has ended."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        lines = os.pread(log, 2**16, 0).decode("utf-8", "replace").splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if (found := json.loads(line))["event"] == "listening":
                    return int(found["port"])
        if process.poll() is not None:
            last = lines[-1] if lines else "It said nothing."
            raise UnavailableError(f"The server ended at its start. {last}")
        time.sleep(0.05)
    raise UnavailableError("The server did not listen in time.")
