"""Labelled pictures in any common form to what the model learns.

record.py      Record, TrueObject: a picture, what is asked of it, what is true of it
open.py        open_data: a file or folder -> Records; bad ones stop it or are set aside
formats/       one reader for each form of data
annotation.py  labels and boxes as annotators write them, checked
mask_shapes.py polygons and run lengths -> masks
targets.py     a record -> prefix and suffix, boxes as <loc> and masks as <seg> tokens
round_trip.py  how much of boxes and masks survives the tokens
check.py       what the model will see, and whether it would learn anything
check_page.py  the same as one HTML page
"""
