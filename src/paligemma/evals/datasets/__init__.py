"""Named benchmarks: records from official files, with the papers' scores.

benchmark.py  Benchmark, read_benchmark: needed and missing files, records
published.py  the papers' scores, and the sweep of learning rates; tables/ holds them
prompts.py    the prompts of the transfer tasks, exactly
files.py      JSON, JSON Lines, CSV, Parquet files with images; a pickle of plain data
captions.py   COCO captions, COCO-35L, NoCaps, TextCaps, XM3600, SciCap, DOCCI; phone screens
vqa.py        VQAv2, OKVQA, A-OKVQA, TextVQA, VizWizVQA
documents.py  DocVQA, InfoVQA, ST-VQA, OCR-VQA, ChartQA; AI2D, ScienceQA
reasoning.py  GQA, xGQA, NLVR2, MaRVL, VSR
probing.py    TallyQA, CountBenchQA, POPE, MMVP, RSVQA
objects.py    COCO, DocLayNet, RefCOCO, RefCOCO+, RefCOCOg
spotting.py   ICDAR'15, Total-Text
writing.py    PubTabNet, FinTabNet, ChemDraw, GrandStaff, MIMIC-CXR
videos.py     MSR-VTT, MSVD, ActivityNet, VATEX, from frames; scores of Objaverse
open.py       find_benchmark, open_benchmark
"""
