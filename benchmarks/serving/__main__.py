"""`python -m benchmarks.serving`: how fast a server answers while requests keep arriving.

python -m benchmarks.serving --rates 2,4,8,16 --plot load.png
python -m benchmarks.serving http://localhost:8000 --rates 8 --bound 0.5 --out load.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.command import add_output_options, run_command, write_report
from benchmarks.serving.load import (
    MIX,
    Arrival,
    Kind,
    Target,
    choose_mix,
    draw_images,
    poisson_arrivals,
    read_cache_counts,
    run_load,
    wait_until_ready,
)
from benchmarks.serving.report import HEADINGS, draw, run_report, table_rows
from paligemma.cli.console import check_output_files, print_note, print_table
from paligemma.errors import OptionError, UnavailableError

KEY_VARIABLE = "PALIGEMMA_API_KEY"
SERVER_KEYS_VARIABLE = "PALIGEMMA_API_KEYS"  # keys that a server requires; ours requires none

_START_SECONDS = 300.0
_READY_SECONDS = 10.0  # for a server that is running already
_END_SECONDS = 60.0
_MAX_ARRIVALS = 100_000
_MAX_RATE = 10_000
_MANY_HITS = 0.05


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Send requests to a server at random times and measure its answers.",
        epilog="Open loop: requests arrive by a Poisson process, however many are unanswered, and "
        "latency counts from the time at which a request was due. Without URL the command starts "
        "a server for the duration of the test and shares this machine with it. Set "
        f"${KEY_VARIABLE} if the server requires a key.",
    )
    parser.add_argument(
        "url", nargs="?", help="address of a running server, such as http://localhost:8000"
    )
    parser.add_argument(
        "--model", help="model to serve (default: mini); with URL, which of its models to ask"
    )
    parser.add_argument(
        "--rates", default="2,4,8,16", help="requests per second, comma-separated (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="duration per rate (%(default)s)"
    )
    parser.add_argument(
        "--bound",
        type=float,
        default=3.0,
        help="latency in seconds up to which an answer counts as goodput (%(default)s)",
    )
    parser.add_argument(
        "--kinds",
        default="",
        help=f"kinds of requests, comma-separated: {', '.join(k.name for k in MIX)} (all)",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="number of different images per rate, which then repeat and come from the server's "
        "caches in part (default: one per request)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        help="seconds after which a request counts as lost (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of times, kinds and images (%(default)s)"
    )
    add_output_options(parser, plot="latency and goodput")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> None:
    """Runs the load test and writes what was asked for."""
    check_output_files(options.out, options.plot)
    rates = _rates(options.rates)
    for name, low, high in (("seconds", 0.1, 1e6), ("bound", 1e-3, 1e6), ("images", 1, 10_000)):
        if not low <= (low if (value := getattr(options, name)) is None else value) <= high:
            raise OptionError(
                f"--{name} is {getattr(options, name)}; it must be from {low:g} to {high:g}."
            )
    if max(rates) * options.seconds > _MAX_ARRIVALS:
        raise OptionError(
            f"{max(rates):g} requests per second for {options.seconds:g} s are more than "
            f"{_MAX_ARRIVALS} requests. Lower --rates or --seconds."
        )
    mix = choose_mix([name.strip() for name in options.kinds.split(",") if name.strip()])
    if options.url is not None:
        Target(base_url=options.url)  # checks it before anything takes time
    runs = []
    with contextlib.ExitStack() as stack:
        target = _ready_target(options, stack)
        _warm_up(target, mix, draw_images(len(mix), options.seed))
        for number, rate in enumerate(rates, start=1):
            arrivals, images = round_of(number, rate, mix, options)
            print_note(f"{len(arrivals)} requests in {options.seconds:g} s, {rate:g} per second")
            before = asyncio.run(read_cache_counts(target))
            outcomes = asyncio.run(run_load(target, arrivals, images))
            run = run_report(outcomes, rate=rate, seconds=options.seconds, bound=options.bound)
            run["caches"] = _cache_hits(before, asyncio.run(read_cache_counts(target)))
            runs.append(run)
    report = {
        "server": options.url or "own",
        "model": options.model or (None if options.url else "mini"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": options.seconds,
        "bound_seconds": options.bound,
        "seed": options.seed,
        "images": options.images,
        "mix": {kind.name: kind.weight for kind in mix},
        "runs": runs,
    }
    _show(report, options)


def round_of(
    number: int, rate: float, mix: Sequence[Kind], options: argparse.Namespace
) -> tuple[list[Arrival], list[bytes]]:
    """The requests of one rate and their images. Two rounds share neither images nor times."""
    arrivals = poisson_arrivals(
        rate=rate,
        seconds=options.seconds,
        mix=mix,
        num_images=options.images,
        seed=f"{options.seed}/{number}",
    )
    num_images = len(arrivals) if options.images is None else options.images
    return arrivals, draw_images(num_images, options.seed, series=number)


def _cache_hits(
    before: dict[str, float] | None, after: dict[str, float] | None
) -> dict[str, float] | None:
    """What the caches answered during a round, and a warning if that is much."""
    if before is None or after is None:
        print_note("The server does not report what comes from its caches.")
        return None
    counts = {name: after[name] - before[name] for name in after}
    shares = []
    for cache in ("image", "prefix"):
        hits, misses = (counts[f"{cache}_cache_{event}"] for event in ("hits", "misses"))
        shares.append(hits / max(1.0, hits + misses))
        print_note(f"{cache} cache: {hits:.0f} hits, {misses:.0f} misses")
    if max(shares) > _MANY_HITS:
        print_note(
            f"Warning: {max(shares):.0%} came from a cache. These figures are not those of new "
            "images."
        )
    return counts


def _show(report: dict[str, Any], options: argparse.Namespace) -> None:
    if not options.json:
        print_table(
            f"Latency from due to answered; goodput: answers within {options.bound:g} s",
            HEADINGS,
            table_rows(report),
            right=[heading for heading in HEADINGS if heading != "kind"],
        )
    write_report(report, options)
    if options.plot is not None:
        draw(report, options.plot)


def _ready_target(options: argparse.Namespace, stack: contextlib.ExitStack) -> Target:
    """The server to load, once it is ready."""
    address = options.url or stack.enter_context(_started_server(options.model or "mini"))
    target = Target(
        base_url=address,
        key=os.environ.get(KEY_VARIABLE),
        model=options.model if options.url else None,
        timeout=options.timeout,
    )
    seconds = _READY_SECONDS if options.url else _START_SECONDS
    if not asyncio.run(wait_until_ready(target, seconds=seconds)):
        raise UnavailableError(f"The server at {address} was not ready within {seconds:g} s.")
    return target


def _warm_up(target: Target, mix: Sequence[Kind], images: Sequence[bytes]) -> None:
    """Sends one request of each kind. Raises UnavailableError if one fails."""
    arrivals = [Arrival(due=0.0, kind=kind, image=image) for image, kind in enumerate(mix)]
    for outcome in asyncio.run(run_load(target, arrivals, images)):
        if not outcome.is_answered:
            raise UnavailableError(
                f"The server at {target.base_url} answered {outcome.kind} with status "
                f"{outcome.status} before the test began. Its log says why; set ${KEY_VARIABLE} "
                "if it requires a key."
            )


def _rates(text: str) -> list[float]:
    try:
        rates = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        rates = []
    if not rates or not 0 < rates[0] <= rates[-1] <= _MAX_RATE:
        raise OptionError(
            f"--rates is {text!r}; it must be numbers above 0 and up to {_MAX_RATE}, such as 2,4,8."
        )
    return rates


@contextlib.contextmanager
def _started_server(model: str) -> Iterator[str]:
    """The address of a server that runs until the end of the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "paligemma", "serve", "--model", model, "--port", "0"),
                # All requests come from one client here.
                *("--limit", "streams_per_client=100000"),
            ],
            stdout=log,
            stderr=log,
            env={key: value for key, value in os.environ.items() if key != SERVER_KEYS_VARIABLE},
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
    """The port from the server's log. Raises UnavailableError if the server has ended."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        lines = os.pread(log, 2**16, 0).decode("utf-8", "replace").splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if (entry := json.loads(line))["event"] == "listening":
                    return int(entry["port"])
        if process.poll() is not None:
            last = lines[-1] if lines else "Its log is empty."
            raise UnavailableError(f"The server ended during startup. {last}")
        time.sleep(0.05)
    raise UnavailableError(f"The server did not listen within {_START_SECONDS:g} s.")


if __name__ == "__main__":
    run_command(lambda: measure(parse_arguments(None)))
