"""Named benchmarks: records from official files, with the papers' scores.

benchmark.py       Benchmark, read_benchmark: needed and missing files, records
published.py       the papers' scores, and the sweep of learning rates; tables/ holds them
prompts.py         the prompts of the transfer tasks, exactly
files.py           JSON, JSON Lines, CSV, Parquet files with images
plain_pickle.py    a pickle of plain data, read without running code
vqa.py             VQAv2, OKVQA, A-OKVQA, TextVQA, VizWizVQA
documents.py       DocVQA, InfoVQA, ST-VQA, OCR-VQA, ChartQA
choice.py          AI2D, ScienceQA
reasoning.py       GQA, xGQA, NLVR2, MaRVL, VSR
counting.py        TallyQA, CountBenchQA
probing.py         POPE, MMVP
remote_sensing.py  RSVQA
captions.py        COCO captions, COCO-35L, NoCaps, TextCaps, XM3600, SciCap, DOCCI
screens.py         Screen2Words, WidgetCap
objects.py         COCO, DocLayNet, RefCOCO, RefCOCO+, RefCOCOg
spotting.py        ICDAR'15, Total-Text
writing.py         PubTabNet, FinTabNet, ChemDraw, GrandStaff, MIMIC-CXR
videos.py          MSR-VTT, MSVD, ActivityNet, VATEX, from frames; scores of Objaverse
open.py            find_benchmark, open_benchmark
"""
