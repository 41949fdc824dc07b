"""Predictions to scores, by the definitions that benchmarks use.

box_iou.py            overlap of boxes and the matching of predictions to truth
average_precision.py  COCO's average precision at one threshold
"""
