"""Named benchmarks: official files to records, with the papers' scores beside them.

benchmark.py       Benchmark, read_benchmark: what is needed, what is missing, the records
published.py       the papers' scores, and the sweep of learning rates; tables/ holds them
prompts.py         the prompts of the transfer tasks, exactly
files.py           JSON, JSON Lines, CSV
table_file.py      Parquet files with pictures
plain_pickle.py    a pickle of plain data, read without running it
vqa.py             VQAv2, OKVQA, A-OKVQA, TextVQA, VizWizVQA
documents.py       DocVQA, InfoVQA, ST-VQA, OCR-VQA, ChartQA
choice.py          AI2D, ScienceQA
reasoning.py       GQA, xGQA, NLVR2, MaRVL, VSR
counting.py        TallyQA, CountBenchQA
probing.py         POPE, MMVP
remote_sensing.py  RSVQA
captions.py        COCO captions, COCO-35L, NoCaps, TextCaps, XM3600, SciCap, DOCCI
screens.py         Screen2Words, WidgetCap
referring.py       RefCOCO, RefCOCO+, RefCOCOg
detection.py       COCO, DocLayNet
spotting.py        ICDAR'15, Total-Text
writing.py         PubTabNet, FinTabNet, ChemDraw, GrandStaff, MIMIC-CXR
videos.py          MSR-VTT, MSVD, ActivityNet, VATEX, from frames
unread.py          Objaverse, which only has scores here, and why
open.py            find_benchmark, open_benchmark
"""
