"""Who can be named as a contestant, and who cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paligemma.compare.contestants import read_contestant, read_contestants
from paligemma.errors import CheckpointError, HubError, OptionError


def test_models_are_named_in_one_text_or_in_several() -> None:
    names = [c.name for c in read_contestants(["mini,mini@int8", "mini@int4"])]
    assert names == ["mini", "mini@int8", "mini@int4"]


def test_an_adapter_is_loaded_on_the_model_that_it_names(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "mini"}))
    found = read_contestant(f"{adapter}@int8")
    assert (found.model, found.adapter, found.form) == ("mini", str(adapter), "int8")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(OptionError, match=r"does not say which model.*MODEL\+"):
        read_contestant(str(adapter))
    assert read_contestant(f"mini+{adapter}").adapter == str(adapter)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mini@int3", "not a form of weights"),
        ("./nowhere", "does not exist"),
        ("palligemma", "neither a folder nor a known model"),
        ("openai:gpt-4o", "names no address"),
        ("openai:gpt-4o@ftp://host/v1", "names no address"),
        ("openai:gpt-4o@https://me:secret@host/v1", "user name, a password or a query"),
        ("openai:gpt-4o@https://host/v1?key=secret", "user name, a password or a query"),
        ("openai:gpt-4o@https://host/v1#sk-secret", "environment variable"),
        ("openai:gpt-4o@http://host/v1#KEY", "without encryption"),
        ("openai:gpt-4o@http://host:99999/v1", "cannot be read"),
        ("transformers:", "needs a model"),
        ("answers.jsonl", "does not exist"),
    ],
)
def test_what_cannot_be_a_contestant_is_refused_with_advice(spec: str, said: str) -> None:
    with pytest.raises((OptionError, CheckpointError, HubError), match=said) as refused:
        read_contestant(spec)
    assert "secret" not in str(refused.value)


def test_nobody_is_named_twice_and_somebody_must_be() -> None:
    with pytest.raises(OptionError, match="named twice"):
        read_contestants(["mini,mini"])
    with pytest.raises(OptionError, match="nobody to compare"):
        read_contestants([","])


def test_the_openai_key_goes_to_openai_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OTHER_KEY", "other-secret")
    assert read_contestant("openai:a@https://api.openai.com/v1").key == "sk-secret"
    assert read_contestant("openai:a@https://api.openai.com.evil.net/v1").key is None
    assert read_contestant("openai:a@http://127.0.0.1:1/v1").key is None
    named = read_contestant("openai:a@https://host/v1#OTHER_KEY")
    assert named.key == "other-secret"
    assert named.name == "openai:a@https://host/v1"
    assert "secret" not in repr(named)
    assert "secret" not in json.dumps(named.settings())


def test_a_key_that_is_named_and_missing_is_told_before_anybody_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(OptionError, match="export NO_KEY"):
        _ = read_contestant("openai:a@https://host/v1#NO_KEY").key
    monkeypatch.setenv("NO_KEY", "sk-se\ncret")
    with pytest.raises(OptionError, match="printable ASCII") as refused:
        _ = read_contestant("openai:a@https://host/v1#NO_KEY").key
    assert "cret" not in str(refused.value)


def test_a_changed_file_makes_another_contestant(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("{}\n")
    first = read_contestant(str(file)).settings()
    file.write_text("{}\n{}\n")
    assert read_contestant(str(file)).settings() != first
