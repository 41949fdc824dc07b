"""The command `paligemma serve`: what it refuses before anything listens, and what it warns of."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import paligemma
from paligemma.adapters.lora import LoraConfig, add_lora, lora_layers
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.cli.main import main
from paligemma.cli.serve import _resize, _warn_of_resize
from paligemma.errors import OptionError
from paligemma.predictor import Predictor
from paligemma.server import logs, process
from paligemma.server.app import create_app
from paligemma.server.service import Service
from paligemma.server.settings import KEYS_VARIABLE, Settings
from tests.server.asgi import call

KEY = "canary-7f3a-0123456789"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Service, dict[str, Any]]]:
    """What would have been served; nothing is."""
    found: list[tuple[Service, dict[str, Any]]] = []

    def serve(app: Any, service: Service, limits: Any, **address: Any) -> int:
        found.append((service, address))
        return 0

    monkeypatch.setattr(process, "serve", serve)
    monkeypatch.setattr(logs, "set_up_logs", lambda: None)
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.delenv("PALIGEMMA_MODEL", raising=False)
    return found


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *arguments])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--adapter", "a=/none/such"], "/none/such"),
        (["--adapter", "../a=/tmp"], "NAME=FOLDER"),
        (["--adapter", "a/b=/tmp"], "NAME=FOLDER"),
        (["--adapter", "a="], "NAME=FOLDER"),
        (["--adapter", "mini=/tmp"], "'mini'"),
        (["--adapter", "a=/tmp", "--adapter", "a=/tmp"], "'a'"),
        (["--api-key-file", "/none/such"], "/none/such"),
        (["--limit", "max_cats=3"], "max_cats"),
        (["--limit", "max_queued=-1"], "max_queued"),
        (["--limit", "max_queued=many"], "NAME=NUMBER"),
        (["--limit", "max_queued=1.5"], "NAME=NUMBER"),
        (["--name", "/srv/models/mine"], "--name"),
        (["--name", "mine", "--adapter", "mine=/tmp"], "'mine'"),
        (["--model", "/none/such"], "/none/such"),
        (["--allow-host", "a/b"], "--allow-host"),
        (["--allow-host", "a:80"], "--allow-host"),
        (["--allow-urls-from", "*"], "--allow-urls-from"),
        (["--allow-urls-from", "https://example.com"], "--allow-urls-from"),
    ],
    ids=range(18),
)
def test_d7_wrong_options_are_one_line_and_exit_code_2(
    options: list[str], words: str, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not started


def test_i3_the_defaults_are_loopback_and_mini(started: list[Any]) -> None:
    assert run() == 0
    ((service, address),) = started
    assert address == {"host": "127.0.0.1", "port": 8000}
    assert list(service.models) == ["mini"]


def test_c1_a_key_cannot_be_given_on_the_command_line(
    started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--api-key", KEY) == 2
    assert not started
    assert run("--help") == 0
    assert "--api-key-file" in capsys.readouterr().out


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.com"])
def test_i3_being_reachable_without_a_key_is_warned_of(
    host: str,
    started: list[Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("--host", host) == 0
    assert f"Warning: {host}" in capsys.readouterr().err
    file = tmp_path / "keys"
    file.write_text(KEY)
    assert run("--host", host, "--api-key-file", str(file)) == 0
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    assert run("--host", host) == 0
    assert "Warning" not in capsys.readouterr().err
    assert len(started) == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_i3_loopback_needs_no_key(
    host: str, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--host", host) == 0
    assert capsys.readouterr().err == ""


def test_adapters_and_limits_reach_the_service(started: list[Any], tmp_path: Path) -> None:
    assert run("--adapter", f"birds-1.0={tmp_path}", "--limit", "max_queued=7") == 0
    ((service, _),) = started
    assert list(service.models) == ["mini", "birds-1.0"]
    assert service.limits.max_queued == 7


def test_one_number_limits_all_caches_and_a_limit_of_one_cache_goes_before(
    started: list[Any],
) -> None:
    assert run("--cache-mb", "64") == 0
    assert run("--cache-mb", "64", "--limit", "image_cache_bytes=0") == 0
    sizes = [(s.limits.image_cache_bytes, s.limits.prefix_cache_bytes) for s, _ in started]
    assert sizes == [(32 * 2**20, 32 * 2**20), (0, 32 * 2**20)]
    assert run("--cache-mb", "-1") == 2


def test_images_are_fitted_as_the_adapters_were_trained(tmp_path: Path) -> None:
    adapters = {}
    for name, resize in (("a", "pad"), ("b", "squash")):
        adapters[name] = tmp_path / name
        adapters[name].mkdir()
        (adapters[name] / "trained_on.json").write_text(json.dumps({"resize": resize}))
    assert _resize({}) is None
    assert _resize({"a": adapters["a"]}) == "pad"
    with pytest.raises(OptionError, match="a with pad, b with squash"):
        _resize(adapters)


def test_a_model_that_sees_images_as_its_adapters_do_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _warn_of_resize(None, None)
    _warn_of_resize("squash", None)
    _warn_of_resize("pad", TrainedOn(resize="pad"))
    assert not caplog.records
    _warn_of_resize("pad", None)
    [line] = caplog.records
    assert (line.levelname, vars(line)["fields"]) == (
        "WARNING",
        {"resize": "pad", "usual": "squash"},
    )


def test_i1_clients_see_a_folders_name_and_never_its_path(
    started: list[Any],
    tmp_path: Path,
    scene: bytes,
    mini: Predictor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "canary-7f3a" / "frogs-2"
    mini.save(folder)
    monkeypatch.chdir(folder)
    assert run("--model", str(folder)) == 0
    assert run("--model", f"{folder}/") == 0
    assert run("--model", ".") == 0
    assert run("--model", str(folder), "--name", "my/frogs") == 0
    assert run("--model", "google/paligemma2-3b-mix-448") == 0
    names = [list(service.models) for service, _ in started]
    hub_id = "google/paligemma2-3b-mix-448"
    assert names == [["frogs-2"], ["frogs-2"], ["frogs-2"], ["my/frogs"], [hub_id]]

    service = started[0][0]
    service.start()
    try:
        asyncio.run(service.wait_until_ready())
        app = create_app(service, Settings())
        image = base64.b64encode(scene).decode()
        body = json.dumps({"image": image, "max_tokens": 4}).encode()
        asks = [
            ("GET", "/v1/models", b""),
            ("GET", "/v1/models/frogs-2", b""),
            ("GET", "/v1/limits", b""),
            ("GET", "/metrics", b""),
            ("POST", "/v1/caption", body),
            ("POST", "/v1/segment", body),  # refused: no phrases
        ]
        for method, path, content in asks:
            answer = asyncio.run(
                call(app, method, path, content, {"content-type": "application/json"})
            )
            assert b"canary-7f3a" not in answer.body
            if path in ("/v1/caption", "/v1/models/frogs-2"):
                assert b'"frogs-2"' in answer.body
    finally:
        service.close()


def test_an_adapter_given_by_name_and_folder_answers_under_its_name(
    started: list[Any], tmp_path: Path, scene: bytes
) -> None:
    other = paligemma.load("mini", weights=paligemma.Trainable())
    add_lora(other.model, LoraConfig(rank=2))
    with torch.no_grad():
        for number, layer in enumerate(lora_layers(other.model).values()):
            generator = torch.Generator().manual_seed(number)
            layer.lora_b.copy_(torch.randn(layer.lora_b.shape, generator=generator) / 10)
    folder = other.save_adapter(tmp_path / "adapter")
    assert run("--adapter", f"frogs={folder}") == 0
    ((service, _),) = started
    service.start()
    try:
        asyncio.run(service.wait_until_ready())
        app = create_app(service, Settings())
        texts = {}
        for model in ("mini", "frogs"):
            image = base64.b64encode(scene).decode()
            document = {"image": image, "model": model, "max_tokens": 8}
            answer = asyncio.run(
                call(
                    app,
                    "POST",
                    "/v1/caption",
                    json.dumps(document).encode(),
                    {"content-type": "application/json"},
                )
            )
            assert (answer.status, answer.json()["model"]) == (200, model)
            texts[model] = answer.json()["result"]["token_ids"]
        base, adapter = asyncio.run(call(app, "GET", "/v1/models")).json()["data"]
        assert (base["license"], base["parent"]) == ("Apache-2.0", None)
        assert (adapter["id"], adapter["parent"]) == ("frogs", "mini")
        # What the base was taught, and its terms, say nothing about an adapter.
        assert not {"license", "note", "languages"} & adapter.keys()
    finally:
        service.close()
    assert texts["mini"] == list(paligemma.load("mini").caption(scene, max_new_tokens=8).token_ids)
    assert texts["frogs"] == list(other.caption(scene, max_new_tokens=8).token_ids)
    assert texts["frogs"] != texts["mini"]


def test_without_keys_an_address_may_ask_for_all_there_is(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--limit", "max_queued=7", "--limit", "max_running=5") == 0
    assert run("--limit", "streams_per_client=3") == 0
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    assert run() == 0
    assert [service.limits.streams_per_client for service, _ in started] == [12, 3, 32]
