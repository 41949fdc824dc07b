"""Tasks: a question becomes a prompt, the model's tokens become a typed result.

Floor 1. `task.py` holds the protocol; one file for each task; `objects.py` reads lists of
objects, `loc_codec.py` and `seg_codec.py` the coordinates and masks in them, `scores.py` turns
log-probabilities into scores.
"""

from paligemma.tasks.answer import AnswerTask, QuestionTask
from paligemma.tasks.caption import CaptionStyle, CaptionTask, RegionCaptionTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task, TaskContext

__all__ = [
    "AnswerTask",
    "CaptionStyle",
    "CaptionTask",
    "DetectTask",
    "OcrTask",
    "QuestionTask",
    "RegionCaptionTask",
    "SegmentTask",
    "Task",
    "TaskContext",
]
