"""The benchmark whose scores are known here and whose files are not read, and why."""

from __future__ import annotations

from paligemma.evals.datasets.benchmark import Benchmark
from paligemma.evals.datasets.prompts import ANSWER

OBJAVERSE = Benchmark(
    name="objaverse",
    title="Objaverse Multiview",
    task="answer",
    prompt=ANSWER,
    metrics={},
    splits={"test": ("Objaverse Multiview",)},
    needs=lambda split: (),
    read=lambda place: (),
    homepage="https://objaverse.allenai.org",
    max_new_tokens=64,
    not_read_because="its score needs Google's sentence encoder USEv4 and renderings that are not "
    "published",
)
