"""Evaluation of models: predictions, metrics with confidence intervals, benchmarks, calibration.

evaluation.py       a model and records -> predictions, scores, and a report in a folder
options.py          the options of an evaluation
predictions.py      generating answers, and the file of answers that a stopped run resumes from
scoring.py          what metrics read of records and predictions; scores with intervals
named_metrics.py    metrics by name
bootstrap.py        confidence intervals
calibration.py      scores as probabilities, the best threshold, other formulas for scores
reliability.py      how well scores predict correctness
metrics/            metrics on plain values
datasets/           benchmarks in their official files, with published scores
fields/             documents whose true values are known, by field
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.evals.bootstrap import Interval as Interval
    from paligemma.evals.calibration import Calibration as Calibration
    from paligemma.evals.calibration import calibrate as calibrate
    from paligemma.evals.calibration import load_calibration as load_calibration
    from paligemma.evals.datasets.open import BENCHMARKS as BENCHMARKS
    from paligemma.evals.datasets.open import find_benchmark as find_benchmark
    from paligemma.evals.datasets.open import open_benchmark as open_benchmark
    from paligemma.evals.evaluation import EvalSet as EvalSet
    from paligemma.evals.evaluation import Evaluation as Evaluation
    from paligemma.evals.evaluation import evaluate as evaluate
    from paligemma.evals.evaluation import score_predictions as score_predictions
    from paligemma.evals.fields.datasets import find_field_benchmark as find_field_benchmark
    from paligemma.evals.fields.datasets import open_field_benchmark as open_field_benchmark
    from paligemma.evals.fields.evaluation import FieldEvalOptions as FieldEvalOptions
    from paligemma.evals.fields.evaluation import FieldEvaluation as FieldEvaluation
    from paligemma.evals.fields.evaluation import evaluate_fields as evaluate_fields
    from paligemma.evals.fields.records import FieldRecord as FieldRecord
    from paligemma.evals.fields.records import TrueBox as TrueBox
    from paligemma.evals.fields.records import read_field_records as read_field_records
    from paligemma.evals.metrics.captions import Bleu as Bleu
    from paligemma.evals.metrics.captions import Cider as Cider
    from paligemma.evals.metrics.captions import RougeL as RougeL
    from paligemma.evals.metrics.counting import CountAccuracy as CountAccuracy
    from paligemma.evals.metrics.counting import PointingAccuracy as PointingAccuracy
    from paligemma.evals.metrics.detection import MeanAveragePrecision as MeanAveragePrecision
    from paligemma.evals.metrics.detection import VocAveragePrecision as VocAveragePrecision
    from paligemma.evals.metrics.fields import Coverage as Coverage
    from paligemma.evals.metrics.fields import FieldCell as FieldCell
    from paligemma.evals.metrics.fields import FieldScore as FieldScore
    from paligemma.evals.metrics.fields import score_cells as score_cells
    from paligemma.evals.metrics.mask_iou import MaskIou as MaskIou
    from paligemma.evals.metrics.molecules import SmilesExactMatch as SmilesExactMatch
    from paligemma.evals.metrics.molecules import TanimotoSimilarity as TanimotoSimilarity
    from paligemma.evals.metrics.result import FoundObject as FoundObject
    from paligemma.evals.metrics.result import MetricResult as MetricResult
    from paligemma.evals.metrics.result import ReferenceImage as ReferenceImage
    from paligemma.evals.metrics.result import ReferenceObject as ReferenceObject
    from paligemma.evals.metrics.tables import Grits as Grits
    from paligemma.evals.metrics.tables import Teds as Teds
    from paligemma.evals.metrics.text_regions import DetEval as DetEval
    from paligemma.evals.metrics.text_regions import TextDetection as TextDetection
    from paligemma.evals.metrics.text_regions import Word as Word
    from paligemma.evals.metrics.texts import Anls as Anls
    from paligemma.evals.metrics.texts import ContainsAnswer as ContainsAnswer
    from paligemma.evals.metrics.texts import DirectAnswerAccuracy as DirectAnswerAccuracy
    from paligemma.evals.metrics.texts import ErrorRate as ErrorRate
    from paligemma.evals.metrics.texts import ExactMatch as ExactMatch
    from paligemma.evals.metrics.texts import NormalizedEditDistance as NormalizedEditDistance
    from paligemma.evals.metrics.texts import NormalizedMatch as NormalizedMatch
    from paligemma.evals.metrics.texts import RelaxedAccuracy as RelaxedAccuracy
    from paligemma.evals.metrics.texts import VqaAccuracy as VqaAccuracy
    from paligemma.evals.metrics.tracking import Hota as Hota
    from paligemma.evals.metrics.tracking import Idf1 as Idf1
    from paligemma.evals.metrics.tracking import Mota as Mota
    from paligemma.evals.metrics.tracking import TrackedBox as TrackedBox
    from paligemma.evals.named_metrics import NamedMetric as NamedMetric
    from paligemma.evals.named_metrics import metric_named as metric_named
    from paligemma.evals.named_metrics import metric_names as metric_names
    from paligemma.evals.options import EvalOptions as EvalOptions
    from paligemma.evals.predictions import Prediction as Prediction
    from paligemma.evals.predictions import PredictOptions as PredictOptions
    from paligemma.evals.predictions import predict as predict
    from paligemma.evals.predictions import read_predictions as read_predictions
    from paligemma.evals.scoring import Score as Score
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
