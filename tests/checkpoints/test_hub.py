"""Names are resolved, and a hub on this machine's loopback is used as the real one would be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import paligemma
from paligemma.checkpoints.hub import fetch_from_kaggle, resolve
from paligemma.config import RELEASES
from paligemma.errors import CheckpointError, HubError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "paligemma"}',
    "tokenizer.model": b"pieces",
    "model.safetensors": b"weights" * 1000,
    "checksums.json": b"{}",
    "mask_codec.npz": b"codec",
    "vae-oid.npz": b"released codec",
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
    "training/optimizer.safetensors": b"not wanted",
}


def test_every_release_is_known_by_its_name() -> None:
    for release in RELEASES:
        assert resolve(release.variant) == release.hub_id
    assert resolve("someone/my-paligemma") == "someone/my-paligemma"


def test_an_existing_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("paligemma2-3b-mix-448")
    name.mkdir()
    assert resolve(str(name)) == name
    assert resolve(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "path", ["./model", "../model", "/no/such/model", "~/no-such-model", "a/b/c", "a\\b", "runs/x"]
)
def test_a_path_that_does_not_exist_is_not_sought_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(path)


def test_a_path_object_is_never_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve(Path("google/paligemma-3b-pt-224"))
    (tmp_path / "model.npz").touch()
    assert resolve(tmp_path / "model.npz") == tmp_path / "model.npz"


def test_a_misspelled_name_gets_a_hint() -> None:
    with pytest.raises(CheckpointError, match="Did you mean paligemma2-3b-mix-448"):
        resolve("paligema2-3b-mix-448")
    with pytest.raises(CheckpointError, match="neither a folder nor a known model"):
        resolve("gpt")


class FakeHub(BaseHTTPRequestHandler):
    """What the client asks of the hub: a commit, a list of files, the files."""

    asked: list[str]
    errors: ClassVar = {
        "owner/gated": (403, {"X-Error-Code": "GatedRepo"}),
        "owner/absent": (404, {"X-Error-Code": "RepoNotFound"}),
        "owner/badtoken": (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
        ),
        "owner/down": (500, {}),
    }

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        for name, (status, headers) in self.errors.items():
            if name in path:
                self.answer(status, b"", headers)
                return
        if path.endswith("/revision/nope"):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path == "/api/models/owner/model/revision/main":
            self.answer_json({"id": "owner/model", "sha": COMMIT, "siblings": [], "tags": []})
        elif path == "/api/models/owner/model/auth-check":
            self.answer_json({})
        elif path.startswith("/api/models/owner/model/tree/"):
            self.answer_json([self.entry(name) for name in FILES])
        elif path.startswith(f"/owner/model/resolve/{COMMIT}/"):
            content = FILES[path.removeprefix(f"/owner/model/resolve/{COMMIT}/")]
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"", {})

    do_HEAD = do_GET

    def entry(self, name: str) -> dict[str, Any]:
        content = FILES[name]
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def answer_json(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The address of a fake hub and the list of what it was asked."""
    asked: list[str] = []
    handler = type("Handler", (FakeHub,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


CALLS = """
import json, sys
from paligemma.checkpoints.hub import fetch_checkpoint, is_reachable, may_read
from paligemma.errors import HubError
assert "torch" not in sys.modules
for call in json.loads(sys.argv[1]):
    if "reach" in call:
        print(json.dumps(is_reachable(call["reach"])))
        continue
    if "may_read" in call:
        print(json.dumps(may_read(call["may_read"])))
        continue
    try:
        got = fetch_checkpoint(call.pop("hub_id"), progress=False, **call)
        print(json.dumps([str(got.path), got.hub_id, got.revision]))
    except HubError as error:
        print(json.dumps(str(error)))
"""


def call(endpoint: str, home: Path, *calls: dict[str, Any]) -> list[Any]:
    """Run calls in a fresh process, since the client reads its settings when imported."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_is_fetched_once_and_then_found_without_network(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, asked = hub
    [(path, hub_id, revision), reachable] = call(
        endpoint, tmp_path, {"hub_id": "owner/model"}, {"reach": "owner/absent"}
    )
    names = {p.name for p in Path(path).iterdir()}
    assert names == FILES.keys() - {
        "pytorch_model.bin",
        "README.md",
        "training/optimizer.safetensors",
    }
    assert (hub_id, revision) == ("owner/model", COMMIT)
    assert not reachable
    asked.clear()
    [again] = call(endpoint, tmp_path, {"hub_id": "owner/model", "offline": True})
    assert again == [path, hub_id, revision]
    assert asked == []
    # Also when the network is gone and nobody said "offline".
    [again] = call("http://127.0.0.1:9", tmp_path, {"hub_id": "owner/model"})
    assert again == [path, hub_id, revision]


def test_all_but_the_weights_can_be_fetched(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    [(path, *_)] = call(endpoint, tmp_path, {"hub_id": "owner/model", "weights": False})
    assert {p.name for p in Path(path).iterdir()} == {
        "config.json",
        "tokenizer.model",
        "checksums.json",
        "mask_codec.npz",
        "vae-oid.npz",
    }
    assert not any("safetensors" in line for line in asked)


def test_it_is_asked_whether_files_would_be_given(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    names = ("owner/model", "owner/gated", "owner/badtoken")
    assert call(hub[0], tmp_path, *({"may_read": name} for name in names)) == [True, False, False]


def test_what_goes_wrong_is_explained(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, _ = hub
    said = call(
        endpoint,
        tmp_path,
        {"hub_id": "owner/gated"},
        {"hub_id": "owner/absent"},
        {"hub_id": "owner/badtoken", "token": "hf_secret"},
        {"hub_id": "owner/model", "revision": "nope"},
        {"hub_id": "owner/down"},
        {"hub_id": "owner/new", "offline": True},
        {"hub_id": "a/b/c"},
        {"hub_id": "owner/model", "token": "hf_line\nbreak"},
    )
    gated, absent, bad_token, no_revision, down, offline, bad_name, bad_header = said
    assert "https://huggingface.co/owner/gated" in gated
    assert "requires accepting a license" in gated
    assert "has no model owner/absent" in absent
    assert "rejected the access token" in bad_token
    assert "owner/model has no revision 'nope'" in no_revision
    assert "cannot be reached" in down
    assert "offline mode is on" in offline
    assert "owner/name" in bad_name
    assert "Copy it again" in bad_header
    assert not any("hf_" in text for text in said)


def test_no_network_and_an_unusable_disk_are_explained(tmp_path: Path) -> None:
    [unreachable] = call("http://127.0.0.1:9", tmp_path, {"hub_id": "owner/model"})
    assert "cannot be reached" in unreachable
    assert "ConnectError" in unreachable


def test_models_of_kaggle_are_recognized_and_need_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "kaggle://keras/paligemma2/keras/pali_gemma2_pt_3b_224/1"
    assert resolve(name) == name
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(HubError, match="pip install kagglehub"):
        fetch_from_kaggle(name)
    with pytest.raises(HubError, match="expected kaggle://owner/model/framework/variation"):
        fetch_from_kaggle("kaggle://../../etc/passwd")
    with pytest.raises(CheckpointError, match="expected hf://owner/name"):
        resolve("hf://google")


def test_a_model_of_kaggle_is_loaded_from_the_folder_of_its_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mini = Path(paligemma.__file__).parent / "mini/model"
    asked = []

    def model_download(handle: str) -> str:
        asked.append(handle)
        return str(mini)

    kagglehub = SimpleNamespace(model_download=model_download)
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)
    predictor = paligemma.load("kaggle://keras/paligemma2/keras/mini/1")
    assert asked == ["keras/paligemma2/keras/mini/1"]
    assert predictor.model.config.decoder.width == 256
