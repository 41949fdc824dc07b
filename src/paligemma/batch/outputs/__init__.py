"""Files derived from the journal of a job, whole or not at all.

write.py      which files a job writes, and where
rows.py       what the lines of a journal become: objects, scores, texts
tables.py     JSON Lines, CSV and Parquet
detection.py  COCO and YOLO
sidecars.py   a text or JSON file next to each image
"""
