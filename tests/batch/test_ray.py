"""The same job under Ray Data: the same rows, also when an actor is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paligemma.batch import Progress
from paligemma.batch.ray_data import RayOptions, run_on_ray
from paligemma.errors import OptionError
from tests.batch.test_job import job, make_images

ray = pytest.importorskip("ray")


pytestmark = [
    # Ray's own, when it makes the settings of its data sets.
    pytest.mark.filterwarnings(f"ignore:`{name}` is deprecated:DeprecationWarning:ray.data.context")
    for name in ("use_push_based_shuffle", "use_polars", "use_arrow_tensor_v2")
]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def actors() -> list[int]:
    """The processes of Ray's actors below this one."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                names[int(folder.name)] = (folder / "cmdline").read_bytes()
                status = (folder / "stat").read_text()
            except OSError:
                continue
            parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
    found = []
    for pid, name in names.items():
        above = pid
        while above not in (0, os.getpid()):
            above = parents.get(above, 0)
        if above and b"MapWorker" in name:
            found.append(pid)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds the actor in /proc")
def test_ray_gives_the_rows_of_a_run_on_this_machine_even_if_an_actor_is_killed(
    tmp_path: Path,
) -> None:
    make_images(tmp_path / "in", 24)
    (tmp_path / "in" / "005.jpg").write_bytes(b"bad")
    assert job(tmp_path, out=tmp_path / "local").run().done == 23
    killed: list[int] = []

    def kill_actor(progress: Progress) -> None:
        if not killed:
            killed.extend(actors())
            os.kill(killed[0], signal.SIGKILL)

    made = job(tmp_path, out=tmp_path / "ray")
    result = run_on_ray(made, RayOptions(actors=1, num_cpus=0.5), report=kill_actor)
    assert len(killed) == 1
    assert (result.done, len(result.failed), result.left) == (23, 1, 0)
    ours, theirs = (tmp_path / name / "results.jsonl" for name in ("ray", "local"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_number_of_actors_is_checked() -> None:
    with pytest.raises(OptionError, match="actors is 0"):
        RayOptions(actors=0)
