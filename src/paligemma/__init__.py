"""PaliGemma and PaliGemma 2 in PyTorch: caption, answer, read, detect, segment, finetune.

    import paligemma

    predictor = paligemma.load("google/paligemma2-3b-mix-224")
    print(predictor.detect("street.jpg", "car ; person"))

A table of contents: names are imported when they are first used, so that `import paligemma`
takes no time and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paligemma.checkpoints.hub import Source
    from paligemma.config import RELEASES, Release
    from paligemma.errors import (
        CheckpointError,
        DataError,
        HubError,
        ImageError,
        InputError,
        MissingExtraError,
        NumericalError,
        OptionError,
        PaliGemmaError,
        PromptError,
        TokenizerError,
    )
    from paligemma.fast.weights import Packed, Plain, Trainable
    from paligemma.loading import load
    from paligemma.predictor import Predictor
    from paligemma.results import (
        Answer,
        Caption,
        Detection,
        Detections,
        Generation,
        Problem,
        Score,
        Segment,
        Segments,
        Text,
    )
    from paligemma.tasks.answer import AnswerTask, QuestionTask
    from paligemma.tasks.caption import BoxCaptionTask, CaptionTask
    from paligemma.tasks.detect import DetectTask
    from paligemma.tasks.ocr import OcrTask
    from paligemma.tasks.segment import SegmentTask

__version__ = "0.1.0"

_HOMES = {
    "loading": ("load",),
    "fast.weights": ("Packed", "Plain", "Trainable"),
    "checkpoints.hub": ("Source",),
    "predictor": ("Predictor",),
    "results": (
        "Answer",
        "Caption",
        "Detection",
        "Detections",
        "Generation",
        "Problem",
        "Score",
        "Segment",
        "Segments",
        "Text",
    ),
    "tasks.answer": ("AnswerTask", "QuestionTask"),
    "tasks.caption": ("BoxCaptionTask", "CaptionTask"),
    "tasks.detect": ("DetectTask",),
    "tasks.ocr": ("OcrTask",),
    "tasks.segment": ("SegmentTask",),
    "errors": (
        "CheckpointError",
        "DataError",
        "HubError",
        "ImageError",
        "InputError",
        "MissingExtraError",
        "NumericalError",
        "OptionError",
        "PaliGemmaError",
        "PromptError",
        "TokenizerError",
    ),
    "config": ("RELEASES", "Release"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "RELEASES",
    "Answer",
    "AnswerTask",
    "BoxCaptionTask",
    "Caption",
    "CaptionTask",
    "CheckpointError",
    "DataError",
    "DetectTask",
    "Detection",
    "Detections",
    "Generation",
    "HubError",
    "ImageError",
    "InputError",
    "MissingExtraError",
    "NumericalError",
    "OcrTask",
    "OptionError",
    "Packed",
    "PaliGemmaError",
    "Plain",
    "Predictor",
    "Problem",
    "PromptError",
    "QuestionTask",
    "Release",
    "Score",
    "Segment",
    "SegmentTask",
    "Segments",
    "Source",
    "Text",
    "TokenizerError",
    "Trainable",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
