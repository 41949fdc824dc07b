"""Commands that moved out of the package name their replacement."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("words", "replacement"),
    [
        (("mini", "scene", "--out", "x"), "python -m mini.scene"),
        (("mini", "eval"), "python -m mini.evaluate"),
        (("mini", "--help"), "python -m mini.scene` or `python -m mini.evaluate"),
        (("bench", "serve"), "python -m benchmarks.serving"),
        (
            ("bench", "serve", "http://localhost:8000", "--rates", "2"),
            "python -m benchmarks.serving",
        ),
        (("bench", "--runners=transformers"), "python -m benchmarks.side_by_side"),
    ],
)
def test_a_moved_command_names_its_replacement(run, words, replacement):
    ran = run(*words)
    assert ran.code == 2
    assert f"Run `{replacement}` in a clone" in ran.err
    assert ran.err.count("\n") == 1
