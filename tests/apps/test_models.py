"""The commands about models, and the arithmetic of their memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paligemma.checkpoints import hub
from paligemma.cli.memory import machine_memory, memory_need
from paligemma.config import RELEASES, count_parameters, release_config


def test_the_list_holds_mini_and_every_release(run, mini_folder):
    listed = json.loads(run("models", "--json").out)
    assert [row["variant"] for row in listed] == ["mini", *(r.variant for r in RELEASES)]
    ran = run("models")
    for release in RELEASES:
        assert sum(line.strip().startswith(release.hub_id) for line in ran.out.splitlines()) >= 1


def test_info_of_a_release_needs_no_download(run):
    by_variant = json.loads(run("info", "paligemma2-3b-mix-224", "--json").out)
    by_hub_id = json.loads(run("info", "google/paligemma2-3b-mix-224", "--json").out)
    assert by_variant == by_hub_id
    assert by_variant["num_parameters"] == 3032094960
    assert by_variant["memory"]["bfloat16"]["weights"] == 2 * 3032094960
    assert "Gemma Terms of Use" in by_variant["license"]
    assert "6.1 GB" in run("info", "paligemma2-3b-mix-224").out


def test_info_of_mini_is_read_from_its_files(run, mini_folder):
    shown = json.loads(run("info", "mini", "--json").out)
    assert shown["stored_bytes"] > 0
    assert shown["stored_dtypes"] == ["float32"] or shown["stored_dtypes"] == ["float16"]
    assert "memory for one image" in run("info", "mini").out


def test_info_of_nothing_says_where_to_look(run):
    ran = run("info", "paligemma-9000")
    assert ran.code == 2
    assert "paligemma models" in ran.err


def test_info_of_a_folder_without_a_model_is_refused(run, tmp_path):
    assert run("info", tmp_path).code == 2


def test_download_says_where_the_model_lies_and_under_which_terms(run, monkeypatch):
    def fetch(hub_id: str, *, revision: str | None, progress: bool) -> hub.FetchedCheckpoint:
        return hub.FetchedCheckpoint(path=Path("/cache/x"), hub_id=hub_id, revision="c0ffee")

    monkeypatch.setattr(hub, "fetch_checkpoint", fetch)
    ran = run("download", "paligemma2-3b-mix-224")
    assert ran.out == "google/paligemma2-3b-mix-224 at c0ffee is in /cache/x\n"
    assert "Gemma Terms of Use" in ran.err
    assert json.loads(run("download", "some/model", "--json").out)["path"] == "/cache/x"


@pytest.mark.parametrize("name", ["mini", "."])
def test_there_is_no_need_to_download_what_is_here(name, run):
    ran = run("download", name)
    assert ran.code == 2
    assert "on this machine already" in ran.err


def test_memory_is_counted_by_the_written_formula():
    config = release_config("paligemma", "3b", 896)
    need = memory_need(config, "float32", 512)
    tokens = 4096 + 512
    assert need.weights == 4 * count_parameters(config)
    assert need.kv_cache == 2 * 18 * 1 * 256 * tokens * 4
    assert need.activations == 12 * 8 * tokens**2
    assert need.total == need.weights + need.kv_cache + need.activations + need.process


def test_a_machine_has_no_more_free_memory_than_it_has():
    total, free = machine_memory()
    assert 0 < free <= total
