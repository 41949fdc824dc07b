"""Metrics on plain values; docs/metrics.md says how each is defined and tested.

result.py         MetricResult; predicted and true objects; predictions paired with references
texts.py          exact match, relaxed accuracy, VQA accuracy, ANLS, error rates
captions.py       CIDEr-D, BLEU, ROUGE-L
tables.py         TEDS and GriTS of HTML tables
molecules.py      SMILES: same molecule, and Tanimoto similarity
counting.py       counts, and points on objects
detection.py      COCO's and Pascal VOC's average precision
mask_iou.py       mask IoU by RefCOCO's rules
text_regions.py   words and text regions with their outlines
tracking.py       IDF1, MOTA and HOTA of tracks in films
"""
