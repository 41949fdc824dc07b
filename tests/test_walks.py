"""How many files of the package a reader of one call has to open."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import paligemma
from paligemma.data import open_data
from paligemma.evals import evaluate

PACKAGE = str(Path(paligemma.__file__).parent)
SCENE = Path(__file__).parents[1] / "examples" / "scene.png"


def files_entered(call: Callable[[], object]) -> list[str]:
    """The package's files whose functions run during the call."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            files.add(name.removeprefix(PACKAGE).lstrip("/\\"))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return sorted(files)


def test_detect_runs_through_few_files() -> None:
    paligemma.load("mini").detect(SCENE, "frog")  # imports what is imported late
    predictor = paligemma.load("mini")
    files = files_entered(lambda: predictor.detect(SCENE, "frog ; mushroom"))
    assert len(files) <= 23, files


def test_evaluating_a_record_runs_through_few_files(tmp_path: Path) -> None:
    def measure(folder: str) -> None:
        records = open_data(SCENE.parent / "train.jsonl")
        evaluate(predictor, records[:1], tmp_path / folder)

    predictor = paligemma.load("mini")
    measure("imports what is imported late")
    predictor.clear_cache()
    files = files_entered(lambda: measure("again"))
    assert len(files) <= 35, files
