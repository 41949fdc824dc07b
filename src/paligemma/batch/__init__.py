"""Jobs over many images: a journal that survives interruption, and outputs derived from it.

source.py     folders, lists, tables, shards and documents -> items with keys and fingerprints
tasks.py      what is asked about each of them
reading.py    an item's location -> its image
worker.py     BatchWorker: rows of images -> rows of results, the same for all runners
process.py    a worker in a process of its own
runner.py     batches to the worker and into the journal, and what happens when the worker dies
ray_data.py   the same under Ray Data, on a cluster
journal.py    the file of what is finished
job.py        a job's settings, folder and run
status.py     how far a job is
outputs/      files derived from the journal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.batch.job import Job as Job
    from paligemma.batch.job import JobResult as JobResult
    from paligemma.batch.journal import Entry as Entry
    from paligemma.batch.journal import Journal as Journal
    from paligemma.batch.outputs.write import OutputOptions as OutputOptions
    from paligemma.batch.ray_data import RayOptions as RayOptions
    from paligemma.batch.ray_data import run_on_ray as run_on_ray
    from paligemma.batch.runner import Progress as Progress
    from paligemma.batch.source import Item as Item
    from paligemma.batch.source import SourceOptions as SourceOptions
    from paligemma.batch.source import find_items as find_items
    from paligemma.batch.status import JobStatus as JobStatus
    from paligemma.batch.status import read_status as read_status
    from paligemma.batch.tasks import BatchTask as BatchTask
    from paligemma.batch.worker import BatchWorker as BatchWorker
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
