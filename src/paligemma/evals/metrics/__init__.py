"""Metrics on plain values; docs/metrics.md says how each is defined and tested.

result.py         MetricResult, and the pairing of predictions with references
answers.py        exact match, relaxed accuracy of ChartQA, VQA accuracy
edit_distance.py  ANLS, error rates of characters, words, symbols and lines
captions.py       CIDEr-D, BLEU, ROUGE-L
tables.py         TEDS and GriTS of HTML tables
html_table.py     an HTML table as a tree and as a grid of cells
molecules.py      SMILES: same molecule, and Tanimoto similarity
counting.py       counts, and points on objects
objects.py        predicted and true objects, as the metrics of objects compare them
detection.py      COCO's average precision of boxes and masks
voc_detection.py  Pascal VOC's average precision
mask_iou.py       mask IoU by RefCOCO's rules
text_regions.py   words and text regions with their outlines
"""
