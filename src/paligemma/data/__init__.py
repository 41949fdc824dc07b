"""Labeled images in common formats -> prefixes and suffixes to learn.

record.py             Record, TrueObject: an image with a question about it and the true answer
open.py               open_data: a file or folder -> Records; sets bad records aside
source.py             what the reader of a format returns
formats/              one reader per format
annotation.py         labels, boxes and records as annotators write them, checked
targets.py            a record -> prefix and suffix, boxes as <loc> and masks as <seg> tokens
round_trip_report.py  how much of boxes and masks survives as tokens
findings.py           what would go wrong in training, one function per subject
check.py              check_data: lengths, classes and findings of a data set
check_page.py         the same as an HTML page with the first batch
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.data.check import CheckReport as CheckReport
    from paligemma.data.check import check_data as check_data
    from paligemma.data.findings import Finding as Finding
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
    __getattr__, __dir__, __all__ = lazy_names(__name__)
