"""Report on a training run of mini: its loss curves as an image, its log as JSON Lines.

    python -m mini.report --out runs/mini --report docs/mini

Writes curves.png and log.jsonl (the logs of all stages in one file) to the report folder, and
copies evaluation.json there. If the run continued from a first version, the records of earlier
stages are kept from the existing report. Needs matplotlib (pip install matplotlib). Compare suffix
losses only within a stage: stages differ in how they smooth coordinates, what they average over and
what they ask.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mini import train

STAGES = tuple(f"stage{name}" for name in train.STAGES)
_JOINT_STAGES = tuple(
    f"stage{name}" for name, stage in train.STAGES.items() if isinstance(stage, train.JointStage)
)
_PATCH_PANEL = {
    "kind_right": "patches that name the object on them",
    "half_right": "half patches that name the letter on them",
    "word_right": "patches that spell the whole word",
}
_MEAN_OF = 25  # steps per point: every step is logged
_JOINT_PANEL = {"suffix": "suffix loss"}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mini.report",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder of the training run")
    parser.add_argument("--report", type=Path, required=True, help="folder to write the report to")
    arguments = parser.parse_args()
    records = _read(arguments.out, arguments.report / "log.jsonl")
    arguments.report.mkdir(parents=True, exist_ok=True)
    log = "".join(json.dumps(record) + "\n" for record in records)
    (arguments.report / "log.jsonl").write_text(log)
    _plot(records, arguments.report / "curves.png")
    evaluation = (arguments.out / "evaluation.json").read_text()
    (arguments.report / "evaluation.json").write_text(evaluation)


def _read(out: Path, reported: Path) -> list[dict[str, Any]]:
    lines = reported.read_text().splitlines() if reported.exists() else []
    before = [json.loads(line) for line in lines]
    records = []
    for stage in STAGES:
        log = out / stage / "log.jsonl"
        if log.exists():
            own = [{"stage": stage, **record} for record in _means(log)]
        else:
            own = [record for record in before if record["stage"] == stage]
        records += own
    return records


def _means(log: Path) -> list[dict[str, Any]]:
    """A record for every `_MEAN_OF` steps."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        groups.setdefault((record["step"] - 1) // _MEAN_OF, []).append(record)
    return [
        {name: round(sum(record[name] for record in group) / len(group), 5) for name in group[-1]}
        | {"step": group[-1]["step"]}
        for group in groups.values()
    ]


def _height(stage: str) -> float:
    """Of a stage's name in the image: those of short stages would lie on each other."""
    return 0.02 + 0.04 * (STAGES.index(stage) % 3)


def _plot(records: list[dict[str, Any]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for name, label in _PATCH_PANEL.items():
        steps, values, borders = _series(records, STAGES, name)
        left.plot(steps, values, label=label)
    left.set(title="What patches know, by stage", xlabel="step", ylabel="share right")
    left.set_ylim(0, 1)
    for border, stage in borders:
        left.axvline(border, color="0.85", zorder=0)
        left.text(border, _height(stage), stage.removeprefix("stage"), fontsize=8, color="0.4")
    left.legend(loc="center right", fontsize=8)
    for name, label in _JOINT_PANEL.items():
        steps, values, borders = _series(records, _JOINT_STAGES, name)
        right.plot(steps, values, label=label, color="tab:red")
    for border, stage in borders:
        right.axvline(border, color="0.85", zorder=0)
        at = max(values) * _height(stage)
        right.text(border, at, stage.removeprefix("stage"), fontsize=8, color="0.4")
    right.set(title="Suffix loss, by stage (compare within one only)", xlabel="step", ylabel="nats")
    right.set_ylim(0, None)
    figure.savefig(path, dpi=110)


def _series(
    records: list[dict[str, Any]], stages: tuple[str, ...], name: str
) -> tuple[list[int], list[float], list[tuple[int, str]]]:
    """Values over steps counted through all stages, and where each stage begins.

    A stage that does not train the encoder has no values of patches.
    """
    steps, values, borders, offset = [], [], [], 0
    for stage in stages:
        own = [record for record in records if record["stage"] == stage]
        if own:
            borders.append((offset, stage))
        having = [record for record in own if name in record]
        steps += [offset + record["step"] for record in having]
        values += [record[name] for record in having]
        offset += own[-1]["step"] if own else 0
    return steps, values, borders


if __name__ == "__main__":
    main()
