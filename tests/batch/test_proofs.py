"""Large jobs, once: twenty kills, and the memory of ten thousand images. They take minutes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import paligemma
from paligemma import BatchItem
from paligemma.batch import Progress
from paligemma.batch.job import read_entries
from tests.batch.test_job import job, make_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes and memory in /proc"),
]


def draw_images(folder: Path, count: int) -> None:
    """Images of 160 pixels, each with a few boxes of color."""
    folder.mkdir()
    generator = np.random.default_rng(7)
    for number in range(count):
        pixels = np.full((160, 160, 3), generator.integers(120, 250, 3), np.uint8)
        for _ in range(3):
            x, y = generator.integers(0, 120, 2)
            pixels[y : y + 40, x : x + 40] = generator.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / f"{number:05d}.png")


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    words = ("batch", str(folder / "in"), "ask", "how many frogs are there?", "--quiet")
    files = ("--to", "jsonl", "--to", "csv", "--sidecar", "txt")
    texts = ("--sidecar-root", str(folder / f"{out}-texts"), "--out", str(folder / out))
    return subprocess.Popen([sys.executable, "-m", "paligemma", *words, *files, *texts])


def contents(folder: Path, out: str) -> dict[str, bytes]:
    names = [folder / out / "results.jsonl", folder / out / "results.csv"]
    return {path.name: path.read_bytes() for path in (*names, *(folder / f"{out}-texts").iterdir())}


def test_twenty_kills_over_two_thousand_images_change_no_byte(tmp_path: Path) -> None:
    draw_images(tmp_path / "in", 2000)
    begun = time.monotonic()
    assert start(tmp_path, "calm").wait() == 0
    calm_seconds = time.monotonic() - begun
    chance = random.Random(7)
    process = start(tmp_path, "killed")
    kills = 0
    while kills < 20:
        time.sleep(chance.uniform(0.5, 1.0) * calm_seconds / 20)
        if process.poll() == 0:
            break
        if process.poll() is not None:  # three workers in a row were killed while they loaded
            process = start(tmp_path, "killed")
            continue
        children = psutil.Process(process.pid).children()
        if children and chance.random() < 0.5:
            os.kill(children[0].pid, signal.SIGKILL)
        else:
            process.kill()
            process.wait()
            process = start(tmp_path, "killed")
        kills += 1
    assert process.wait() == 0
    assert kills == 20
    assert contents(tmp_path, "killed") == contents(tmp_path, "calm")
    assert len(contents(tmp_path, "killed")) == 2002
    keys = [entry.key for entry in read_entries(tmp_path / "killed")]
    assert len(keys) == len(set(keys)) == 2000
    lines = (tmp_path / "killed" / "journal.jsonl").read_bytes().count(b"\n")
    assert lines == 2001  # nothing was recorded twice


def test_ten_thousand_images_take_no_more_memory_than_a_thousand(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 10_000)
    memory: list[int] = []

    def measure(progress: Progress) -> None:
        if progress.finished % 1000 < 64:
            memory.append(psutil.Process().memory_info().rss)

    assert job(tmp_path, batch_size=32).run(report=measure).done == 10_000
    # What is left is the place of each entry in the journal, some hundred bytes.
    assert memory[-1] - memory[0] < 20 * 2**20


def test_the_memory_of_predictor_batch_stays_the_same(tmp_path: Path) -> None:
    draw_images(tmp_path / "in", 100)
    paths = sorted((tmp_path / "in").iterdir())
    model = paligemma.load("mini")
    memory: list[int] = []
    items: Iterator[BatchItem[Any]] = model.batch(
        paths * 10, "answer en how many frogs are there?", max_new_tokens=2
    )
    for number, item in enumerate(items):
        assert item.error is None
        if number % 100 == 99:
            memory.append(psutil.Process().memory_info().rss)
    assert max(memory) - memory[1] < 64 * 2**20
