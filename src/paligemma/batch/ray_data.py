"""Run a job under Ray Data: the same worker, the same batches and the same journal, on a cluster.

Ray hands out the batches and keeps an actor with a model on each of its places. The actors run
their worker in a process of its own, as on one machine, so that a file that kills it costs no more
than itself. This process alone writes the journal; it must see the sources under the same paths as
the actors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paligemma.batch.job import Job, JobResult
from paligemma.batch.process import Row
from paligemma.batch.runner import Progress, Runner, cut_into_batches
from paligemma.batch.source import Item
from paligemma.errors import MissingExtraError, check_whole


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where the actors run. Raises OptionError for a number out of range."""

    actors: int = 1
    num_cpus: float = 1.0
    """CPUs of an actor; less than 1 on small machines."""
    num_gpus: float = 0.0
    """GPUs of an actor."""

    def __post_init__(self) -> None:
        check_whole("actors", self.actors)


class RayActor:
    """What Ray keeps alive: a model, which answers a batch of rows at a time."""

    def __init__(self, worker: str, options: Mapping[str, Any]) -> None:
        self._runner = Runner(worker=worker, options=dict(options), say=print)
        self._info = self._runner.load()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """{"rows": [JSON of a list of rows]} -> {"results": [JSON of info and results]}."""
        results = [self._runner.compute(json.loads(rows)) for rows in batch["rows"]]
        return {"results": [json.dumps({"info": self._info, "rows": rows}) for rows in results]}


def run_on_ray(
    job: Job,
    options: RayOptions | None = None,
    *,
    report: Callable[[Progress], object] = lambda progress: None,
    say: Callable[[str], object] = print,
) -> JobResult:
    """Compute what the job lacks on the cluster that `ray.init` joined, and write its files.

    `report` is told how it goes, `say` what of the sources is not used. Without `ray.init`, Ray
    starts on this machine. An actor, or the machine under it, that dies loses its batch, which
    another one computes. Raises what `Job.run` raises.

    >>> ray.init(address="auto")
    >>> run_on_ray(job, RayOptions(actors=8, num_gpus=1)).done
    100000
    """
    options = options or RayOptions()
    items = job.items(say)
    return job.run_with(lambda todo: _computed(job, todo, options), items=items, report=report)


def _computed(
    job: Job, todo: Sequence[Item], options: RayOptions
) -> Iterator[tuple[dict[str, Any], list[Row]]]:
    """What loaded and the results, batch by batch, in any order."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray", "Running on Ray") from None
    batches = cut_into_batches(todo, _rows_at_a_time(job))
    data = ray.data.from_items(
        [{"rows": json.dumps(rows)} for rows in batches], override_num_blocks=len(batches)
    )
    answers = data.map_batches(
        RayActor,
        fn_constructor_kwargs={"worker": job.worker, "options": job.worker_options(todo)},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(options.actors, len(batches))),
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus or None,
    )
    for row in answers.iter_rows():
        answer = json.loads(row["results"])
        yield answer["info"], answer["rows"]


def _rows_at_a_time(job: Job) -> int:
    """As the worker itself has it on one machine, so that batches and results are the same."""
    if job.batch_size is not None:
        return job.batch_size
    from paligemma.checkpoints.hub import Source
    from paligemma.loading import load_processor
    from paligemma.predictor import usual_batch_size

    revision, offline = job.model.get("revision"), job.model.get("offline", False)
    source = Source(revision=revision, offline=offline)
    processor, _ = load_processor(job.model.get("model"), source=source)
    return usual_batch_size(processor.num_image_tokens)
