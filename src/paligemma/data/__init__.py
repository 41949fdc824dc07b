"""Labelled pictures in any common form to what the model learns.

record.py      Record, TrueObject: a picture, what is asked of it, what is true of it
open.py        open_data: a file or folder -> Records; bad ones stop it or are set aside
formats/       one reader for each form of data
annotation.py  labels and boxes as annotators write them, checked
mask_shapes.py polygons and run lengths -> masks
targets.py     a record -> prefix and suffix, boxes as <loc> and masks as <seg> tokens
round_trip_report.py  how much of boxes and masks survives the tokens
check.py       what the model will see, and whether it would learn anything
check_page.py  the same as one HTML page
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.data.check import CheckReport as CheckReport
    from paligemma.data.check import Finding as Finding
    from paligemma.data.check import check_data as check_data
    from paligemma.data.open import Records as Records
    from paligemma.data.open import open_data as open_data
    from paligemma.data.record import BadRecord as BadRecord
    from paligemma.data.record import Record as Record
    from paligemma.data.record import TrueObject as TrueObject
    from paligemma.data.round_trip_report import RoundTripReport as RoundTripReport
    from paligemma.data.round_trip_report import round_trip as round_trip
    from paligemma.data.targets import ObjectOptions as ObjectOptions
    from paligemma.data.targets import Target as Target
    from paligemma.data.targets import TargetBuilder as TargetBuilder
    from paligemma.data.targets import TargetOptions as TargetOptions
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "record": ("BadRecord", "Record", "TrueObject"),
            "open": ("Records", "open_data"),
            "targets": ("ObjectOptions", "Target", "TargetBuilder", "TargetOptions"),
            "check": ("CheckReport", "Finding", "check_data"),
            "round_trip_report": ("RoundTripReport", "round_trip"),
        },
    )
