"""One reader per format: `recognizes(path)` and `read(path, options) -> Source`.

jsonl.py            JSON Lines of image, prefix, suffix
coco.py             COCO detection, instance and caption annotations
yolo.py             a text file per image, and data.yaml or another list of classes
voc.py              Pascal VOC's XML files
mask_folder.py      images and masks as PNG files
caption_folder.py   images with a text file each
hugging_face.py     a data set of the `datasets` library, on disk or on the hub
tar_shards.py       webdataset shards
conversations.py    chats of LLaVA and OpenAI
annotation_tools.py CVAT, LabelMe, Label Studio, Labelbox, VIA and CreateML
csv_table.py        CSV with a row per object
"""
