from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import paligemma
from paligemma import loading
from paligemma.errors import CheckpointError, HubError, OptionError, TokenizerError
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from tests.agreement.tiny_predictor import build_predictor, picture
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_predictor(tiny_tokenizer).save(tmp_path_factory.mktemp("models") / "tiny")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, paligemma; paligemma.RELEASES; paligemma.OptionError; "
        "heavy = {'torch', 'numpy', 'PIL', 'transformers', 'huggingface_hub'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_no_other() -> None:
    for name in paligemma.__all__:
        assert getattr(paligemma, name) is not None
    assert set(dir(paligemma)) == set(paligemma.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        paligemma.nothing_of_the_kind  # noqa: B018


def test_the_environment_names_the_default_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIGEMMA_MODEL", str(folder))
    assert paligemma.load(device="cpu").name == str(folder)


def test_mini_is_the_default_and_says_what_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_MINI_FOLDER", folder)
    monkeypatch.delenv("PALIGEMMA_MODEL", raising=False)
    predictor = paligemma.load(device="cpu")
    assert predictor.name == "mini"
    assert predictor.note is not None
    assert "\n" not in predictor.note
    assert predictor.mask_codec is not None


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"resize": "crop"}, OptionError, "resize"),
        ({"device": "toaster"}, OptionError, "device"),
        ({"device": "cpu:1"}, OptionError, "cpu:1"),
        ({"device": "meta"}, OptionError, "meta"),
        ({"dtype": "int8"}, OptionError, "dtype"),
        ({"mask_codec": "nowhere.npz"}, CheckpointError, "nowhere"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(
    folder: Path, options: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        paligemma.load(folder, **{"device": "cpu", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match="cuda"):
        paligemma.load(folder, device="cuda")


def test_the_processor_comes_without_the_weights(folder: Path, tmp_path: Path) -> None:
    whole = loading.load(folder)
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    processor, codec = loading.load_processor(tmp_path)
    assert processor.num_image_tokens == whole.processor.num_image_tokens
    assert processor.resolution == whole.processor.resolution
    ids = processor.tokenizer.tokenize_text("detect cat")
    assert ids == whole.processor.tokenizer.tokenize_text("detect cat")
    assert (codec is None) == (whole.mask_codec is None)
    with pytest.raises(OptionError, match="resize is 'crop'"):
        loading.load_processor(tmp_path, resize="crop")  # type: ignore[arg-type]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(HubError, match="paligemma2-3b-mix-224"):
        paligemma.load("paligemma2-3b-mix-225")


def test_a_folder_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "tokenizer.model":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.model.*load_model"):
        paligemma.load(tmp_path, device="cpu")
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        paligemma.load(tmp_path, device="cpu")


def test_a_model_with_more_ids_than_its_tokenizer_answers_and_says_so(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    predictor = build_predictor(tiny_tokenizer)
    num_ids = tiny_tokenizer.vocab_size
    model = tiny_model("paligemma2", vocab_size=num_ids + 1000)
    folder = replace(predictor, model=model).save(tmp_path / "larger")
    loaded = paligemma.load(folder, device="cpu")
    assert f"{num_ids} ids and the model {num_ids + 1000}" in str(loaded.note)
    made = loaded.generate(picture(1), "caption en", max_new_tokens=30, temperature=3.0)
    assert max(made.token_ids) >= num_ids
    assert "\ufffd" in made.text


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_the_dtype_is_the_one_asked_for(folder: Path, dtype: Any, expected: torch.dtype) -> None:
    predictor: Predictor = paligemma.load(folder, device="cpu", dtype=dtype)
    assert predictor.model.dtype == expected


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_large_model_stored_in_bfloat16_stays_so_on_the_cpu(
    tiny_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: torch.dtype,
) -> None:
    predictor = build_predictor(tiny_tokenizer)
    predictor.model.to(stored)
    folder = predictor.save(tmp_path / "large")
    monkeypatch.setattr(loading, "_LARGE", 1000)
    assert loading.choose_dtype("auto", torch.device("cpu"), folder) == stored
    monkeypatch.undo()
    assert loading.choose_dtype("auto", torch.device("cpu"), folder) == torch.float32


def test_the_self_test_knows_a_right_device_and_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert loading.computes_correctly(torch.device("cpu"), torch.float32)
    assert loading.computes_correctly(torch.device("cpu"), torch.bfloat16)
    assert torch.equal(torch.rand(3), expected)
