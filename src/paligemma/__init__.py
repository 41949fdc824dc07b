"""PaliGemma and PaliGemma 2 in PyTorch: caption, answer, read, detect, segment, finetune.

    import paligemma

    predictor = paligemma.load("google/paligemma2-3b-mix-224")
    print(predictor.detect("street.jpg", "car ; person"))

A table of contents: names are imported when they are first used, so that `import paligemma`
takes no time and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names
from paligemma.threads import wait_passively

__version__ = "0.1.0"

wait_passively()  # torch reads the setting when it is imported, which nothing above does

if TYPE_CHECKING:
    from paligemma.charts import Chart as Chart
    from paligemma.charts import Point as Point
    from paligemma.charts import Series as Series
    from paligemma.checkpoints.hub import Source as Source
    from paligemma.config import RELEASES as RELEASES
    from paligemma.config import Release as Release
    from paligemma.errors import CheckpointError as CheckpointError
    from paligemma.errors import DataError as DataError
    from paligemma.errors import HubError as HubError
    from paligemma.errors import ImageError as ImageError
    from paligemma.errors import InputError as InputError
    from paligemma.errors import MissingExtraError as MissingExtraError
    from paligemma.errors import NumericalError as NumericalError
    from paligemma.errors import OptionError as OptionError
    from paligemma.errors import PaliGemmaError as PaliGemmaError
    from paligemma.errors import PromptError as PromptError
    from paligemma.errors import TokenizerError as TokenizerError
    from paligemma.fast.weights import Packed as Packed
    from paligemma.fast.weights import Plain as Plain
    from paligemma.fast.weights import Trainable as Trainable
    from paligemma.loading import load as load
    from paligemma.loading import load_processor as load_processor
    from paligemma.predictor import Predictor as Predictor
    from paligemma.processor.image import LoadedImage as LoadedImage
    from paligemma.processor.image import load_image as load_image
    from paligemma.processor.processor import Processor as Processor
    from paligemma.processor.processor import PromptRow as PromptRow
    from paligemma.ranking import Classification as Classification
    from paligemma.ranking import Ranked as Ranked
    from paligemma.ranking import RankOptions as RankOptions
    from paligemma.results import Answer as Answer
    from paligemma.results import BatchItem as BatchItem
    from paligemma.results import Caption as Caption
    from paligemma.results import Detection as Detection
    from paligemma.results import Detections as Detections
    from paligemma.results import FieldAnswer as FieldAnswer
    from paligemma.results import Generation as Generation
    from paligemma.results import JsonAnswer as JsonAnswer
    from paligemma.results import Problem as Problem
    from paligemma.results import Score as Score
    from paligemma.results import Segment as Segment
    from paligemma.results import Segments as Segments
    from paligemma.results import Text as Text
    from paligemma.results import TrackedDetection as TrackedDetection
    from paligemma.tables import Cell as Cell
    from paligemma.tables import Table as Table
    from paligemma.tasks.chart import ChartTask as ChartTask
    from paligemma.tasks.detect import DetectTask as DetectTask
    from paligemma.tasks.field import FieldTask as FieldTask
    from paligemma.tasks.field import JsonTask as JsonTask
    from paligemma.tasks.segment import SegmentTask as SegmentTask
    from paligemma.tasks.table import TableTask as TableTask
    from paligemma.tasks.text import AnswerTask as AnswerTask
    from paligemma.tasks.text import BoxCaptionTask as BoxCaptionTask
    from paligemma.tasks.text import CaptionTask as CaptionTask
    from paligemma.tasks.text import OcrTask as OcrTask
    from paligemma.tasks.text import QuestionTask as QuestionTask
    from paligemma.tasks.yes_no import YesNo as YesNo
    from paligemma.tasks.yes_no import YesNoTask as YesNoTask
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
