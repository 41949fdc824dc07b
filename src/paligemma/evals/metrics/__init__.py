"""Metrics, one file each, on plain values; docs/metrics.md says how each is defined and tested.

result.py         MetricResult, and the pairing of predictions with references
vqa_accuracy.py   VQA accuracy with ten annotators, and its form without leave-one-out
accuracy.py       exact match, and ChartQA's relaxed accuracy
edit_distance.py  Levenshtein distance, which others stand on
anls.py           average normalised Levenshtein similarity of document questions
ptb.py            words of a caption, in the way of the Penn Treebank
cider.py          CIDEr-D
bleu.py           BLEU-1 to BLEU-4 over a whole set
rouge.py          ROUGE-L
error_rates.py    character, word, symbol and line error rate, normalised edit distance
html_table.py     HTML of a table as a tree, and as a grid of cells
teds.py           tree edit distance of tables, with text and structure only
grits.py          similarity of the grids of tables: topology, content, location
molecules.py      SMILES: same molecule, and Tanimoto similarity
counting.py       counts, and points on objects
"""
