"""Caption a folder of images on a Ray cluster, or on this machine where there is none.

    pip install "paligemma[ray]"
    python examples/batch_on_ray.py photos/ job/ --actors 4 --gpus 1

The folder must be visible under the same path on all machines. Run it again to go on after an
interruption; `paligemma batch status job/` shows how far it is.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from paligemma.batch import BatchTask, Job, OutputOptions, Progress, RayOptions, run_on_ray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("job", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--actors", type=int, default=1, help="models that work at a time")
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs of an actor")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of an actor")
    arguments = parser.parse_args()

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # Joins the cluster of $RAY_ADDRESS, or starts Ray on this machine.
    ray.init(include_dashboard=False)
    job = Job(
        sources=(arguments.images,),
        task=BatchTask(name="caption"),
        out=arguments.job,
        model={"model": arguments.model},
        outputs=OutputOptions(to=("jsonl", "csv")),
    )
    options = RayOptions(actors=arguments.actors, num_cpus=arguments.cpus, num_gpus=arguments.gpus)
    result = run_on_ray(job, options, report=show)
    print(f"{result.done} done, {len(result.failed)} failed, {result.left} left")
    for key, error in result.failed:
        print(f"failed: {key}: {error}")


def show(progress: Progress) -> None:
    print(f"{progress.finished} of {progress.total}, {progress.per_second:.2f} images/s")


if __name__ == "__main__":
    main()
