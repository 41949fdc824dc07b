"""Threads that leave the machine usable: how many, how they wait, and forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paligemma import threads
from paligemma.errors import OptionError

IMAGE = Path(__file__).parents[1] / "examples" / "scene.png"
SPIN_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def python(code: str, **environment: str) -> str:
    """What a new interpreter prints when it runs this code without this one's thread settings."""
    clean = {name: value for name, value in os.environ.items() if name not in SPIN_SETTINGS}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return ran.stdout.strip()


def test_importing_the_package_lets_the_threads_of_torch_sleep() -> None:
    show = "import os, paligemma; print(os.environ['OMP_WAIT_POLICY'])"
    assert python(show) == "PASSIVE"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")]
)
def test_a_users_own_setting_stays(name: str, value: str) -> None:
    show = (
        "import os, paligemma; "
        f"print(os.environ.get('OMP_WAIT_POLICY', 'unset'), os.environ[{name!r}])"
    )
    assert python(show, **{name: value}).split() == [
        value if name == "OMP_WAIT_POLICY" else "unset",
        value,
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
@pytest.mark.skipif(threads.available_cpus() < 2, reason="one CPU needs one thread")
def test_where_torch_comes_first_an_idle_team_makes_its_threads_sleep() -> None:
    show = (
        "import torch, paligemma; from paligemma.threads import *; "
        "share_cpus(); print(waits_passively(), torch.get_num_threads() == available_cpus())"
    )
    assert python(show) == "True True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_forked_after_loading_answers() -> None:
    code = f"""
import warnings; warnings.simplefilter("ignore")
import multiprocessing, paligemma
predictor = paligemma.load("mini")
before = predictor.caption({str(IMAGE)!r}).text
with multiprocessing.get_context("fork").Pool(2) as pool:
    after = pool.map_async(predictor.caption, [{str(IMAGE)!r}] * 2).get(120)
print({{before}} == {{caption.text for caption in after}})
"""
    assert python(code) == "True"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"cpu.max": "max 100000"}, []),
        ({"cpu.max": "150000 100000"}, [1.5]),
        ({"box/cpu.max": "400000 100000", "cpu.max": "200000 100000"}, [4.0, 2.0]),
        ({}, []),
    ],
)
def test_the_quota_of_a_group_and_of_those_around_it_counts(
    limits: dict[str, str], expected: list[float], tmp_path: Path
) -> None:
    (tmp_path / "box").mkdir()
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
    assert threads._quotas_v2(tmp_path, "/box") == expected


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert threads._quotas_v1(tmp_path, "/no/such/group/here") == [0.5]
    (tmp_path / "cpu.cfs_quota_us").write_text("-1\n")
    assert threads._quotas_v1(tmp_path, "/") == []


def test_a_small_quota_still_leaves_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cpu_quota", lambda: 0.5)
    assert threads.available_cpus() == 1


def test_no_threads_are_refused() -> None:
    with pytest.raises(OptionError, match="threads is 0"):
        threads.set_threads(0)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["paligemma", "torch"])
def test_beside_a_busy_process_a_third_of_the_speed_remains(first: str) -> None:
    measure = f"""
import {first}, paligemma, time
predictor = paligemma.load("mini")
predictor.caption({str(IMAGE)!r})
start, count = time.perf_counter(), 0
while time.perf_counter() - start < 5:
    predictor.clear_cache()
    predictor.caption({str(IMAGE)!r})
    count += 1
print(count)
"""
    quiet = int(python(measure))
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(threads.available_cpus() // 2 or 1)
    ]
    try:
        contended = int(python(measure))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert contended > quiet / 3
