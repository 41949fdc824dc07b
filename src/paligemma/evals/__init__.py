"""Predictions to scores, by the definitions that benchmarks use.

evaluate.py           a model, records and metrics -> predictions, scores with intervals, a report
predictions.py        asking, and the file of answers that an interrupted run goes on with
named_metrics.py      metrics by name, and what each reads
bootstrap.py          how sure a score is
calibration.py        what scores are worth: reliability, temperature, threshold, formulas
metrics/              one file a metric
benchmarks/           named test sets in their official files, with the papers' scores
box_iou.py            overlap of boxes and the matching of predictions to truth
polygon_overlap.py    areas that polygons have in common
average_precision.py  COCO's average precision at one threshold, without another package
"""
