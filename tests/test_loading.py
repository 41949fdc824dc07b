from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention

import paligemma
from paligemma import Packed, Plain, Trainable, loading
from paligemma.adapters.lora import LoraConfig, add_lora, lora_layers
from paligemma.checkpoints import weight_form
from paligemma.checkpoints.adapter import write_adapter
from paligemma.checkpoints.load import load_model
from paligemma.errors import CheckpointError, OptionError, TokenizerError
from paligemma.fast import device, float32
from paligemma.fast import weights as form_names
from paligemma.fast.accelerate import quantization_of
from paligemma.fast.blocks import FusedDecoder
from paligemma.fast.cuda import model as cuda_model
from paligemma.fast.cuda.model import CudaPaliGemma
from paligemma.fast.device import choose_device
from paligemma.fast.frozen_linear import FrozenLinear
from paligemma.fast.kernels.library import kernels
from paligemma.fast.weights import checked_weights, weights_name
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from tests.agreement.tiny_predictor import build_predictor, picture
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_predictor(tiny_tokenizer).save(tmp_path_factory.mktemp("models") / "tiny")


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
        ({"weights": "int2"}, OptionError, "weights"),
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


@pytest.mark.parametrize("name", ["model", "adapter", "mask_codec"])
def test_what_is_no_path_is_refused_by_name(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} is 3; it must be a path"):
        paligemma.load(**{name: 3})  # type: ignore[arg-type]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="paligemma2-3b-mix-224"):
        paligemma.load("paligemma2-3b-mix-225")


def test_a_folder_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "tokenizer.model":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(TokenizerError, match=r"contains no tokenizer\.model.*load_model"):
        paligemma.load(tmp_path, device="cpu")
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"contains no config\.json"):
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
    ("weights", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_the_dtype_is_the_one_asked_for(folder: Path, weights: Any, expected: torch.dtype) -> None:
    predictor: Predictor = paligemma.load(folder, device="cpu", weights=weights)
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
    monkeypatch.setattr(form_names, "_LARGE", 1000)
    assert load_model(folder, weights="auto").dtype == stored
    assert load_model(folder, weights=Plain()).dtype == stored
    monkeypatch.undo()
    assert load_model(folder, weights="auto").dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "is_packed"), [("auto", True), ("float32", True), (Plain("float32"), False)]
)
def test_a_small_float32_model_is_packed_where_there_are_kernels(
    folder: Path, weights: Any, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(folder, weights=weights)
    assert model.dtype == torch.float32
    assert isinstance(model.decoder, FusedDecoder) == (is_packed and kernels() is not None)
    monkeypatch.setattr(float32, "kernels", lambda: None)
    assert not isinstance(load_model(folder, weights=weights).decoder, FusedDecoder)


def test_the_self_test_knows_a_right_device_and_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert device.computes_correctly(torch.device("cpu"), torch.float32)
    assert device.computes_correctly(torch.device("cpu"), torch.bfloat16)
    assert torch.equal(torch.rand(3), expected)


# The form of the weights


def form_of(predictor: Predictor) -> tuple[type, torch.dtype, str | None]:
    """What the decoder is made of."""
    model = predictor.model
    return type(model.decoder), model.dtype, quantization_of(model)


@pytest.mark.parametrize(
    ("weights", "old"),
    [
        ("float32", {"dtype": "float32"}),
        ("bfloat16", {"dtype": "bfloat16"}),
        ("int4", {"quantization": "int4"}),
        ("int8", {"quantization": "int8", "dtype": "bfloat16"}),
        (Plain("bfloat16"), {"dtype": "bfloat16", "fast": False}),
        (Trainable("nf4"), {"frozen_base": "nf4", "fast": False}),
    ],
)
def test_old_keywords_load_the_same_with_a_warning(
    folder: Path, weights: Any, old: dict[str, Any]
) -> None:
    expected = paligemma.load(folder, device="cpu", weights=weights)
    with pytest.warns(DeprecationWarning, match="weights= "):
        loaded = paligemma.load(folder, device="cpu", **old)
    assert form_of(loaded) == form_of(expected)
    frozen = [isinstance(module, FrozenLinear) for module in loaded.model.modules()]
    assert frozen == [isinstance(module, FrozenLinear) for module in expected.model.modules()]


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ({"quantization": "int4", "fast": False}, "packed weights"),
        ({"quantization": "int4", "frozen_base": "nf4"}, "packed weights"),
        ({"quantization": "int4", "dtype": "float32"}, "dtype is 'float32'"),
        ({"dtype": "float32", "weights": "int8"}, "together with"),
    ],
)
def test_old_keywords_that_contradict_each_other_are_refused(
    folder: Path, old: dict[str, Any], message: str
) -> None:
    with (
        pytest.warns(DeprecationWarning, match="weights="),
        pytest.raises(OptionError, match=message),
    ):
        paligemma.load(folder, device="cpu", **old)


def test_an_unknown_keyword_is_a_type_error(folder: Path) -> None:
    with pytest.raises(TypeError, match="quantisation"):
        paligemma.load(folder, quantisation="int8")  # type: ignore[call-arg]


def test_a_trainable_model_keeps_the_adapter_separate(folder: Path, tmp_path: Path) -> None:
    trainable = paligemma.load(folder, device="cpu", weights=Trainable())
    model = add_lora(trainable.model, LoraConfig(rank=2))
    adapter = write_adapter(model, tmp_path / "adapter")
    forms: dict[str, Plain | Trainable] = {
        "merged": Plain(),
        "separate": Trainable(),
        "frozen": Trainable("int8"),
        "in the base": Trainable("int8", merge_adapter=True),
    }
    loaded = {
        name: paligemma.load(folder, device="cpu", adapter=adapter, weights=weights).model
        for name, weights in forms.items()
    }
    with pytest.warns(DeprecationWarning, match="merge_adapter="):
        old = paligemma.load(folder, device="cpu", adapter=adapter, merge_adapter=False).model
    adapted = {name for name, model in loaded.items() if lora_layers(model)}
    assert adapted == {"separate", "frozen"}
    assert len(lora_layers(old)) == len(lora_layers(loaded["separate"]))


def test_packed_weights_without_kernels_are_plain_and_say_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_form, "kernels", lambda: None)
    predictor = paligemma.load(folder, device="cpu", weights=Packed())
    assert not isinstance(predictor.model.decoder, FusedDecoder)
    assert "plain bfloat16 modules" in str(predictor.note)
    unasked = paligemma.load(folder, device="cpu", weights="bfloat16")
    assert form_of(unasked) == form_of(predictor)
    assert unasked.note is None


@pytest.mark.skipif(kernels() is None, reason="there are no kernels for this processor")
def test_packed_weights_with_kernels_are_packed_without_a_word(folder: Path) -> None:
    for weights in (Packed(), "bfloat16"):
        predictor = paligemma.load(folder, device="cpu", weights=weights)
        assert isinstance(predictor.model.decoder, FusedDecoder)
        assert predictor.note is None


# CUDA: on the CPU, with modules that are not compiled


@pytest.fixture
def cuda_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Packed()` on the CPU is treated as it is on a CUDA device."""
    packed = weight_form._packed_form

    def as_on_cuda(weights: Packed, stored: Any, _: torch.device) -> weight_form.WeightForm:
        return packed(weights, stored, torch.device("cuda"))

    monkeypatch.setattr(weight_form, "_packed_form", as_on_cuda)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(cuda_model, "accelerate_for_cuda", lambda m: CudaPaliGemma(m, backend=None))


@pytest.mark.usefixtures("cuda_form")
def test_packed_weights_on_cuda_are_compiled_modules_after_the_check(folder: Path) -> None:
    plain = paligemma.load(folder, device="cpu", weights=Plain("bfloat16"))
    fast = paligemma.load(folder, device="cpu", weights=Packed())
    assert isinstance(fast.model, CudaPaliGemma)
    assert fast.note is None
    expected = plain.caption(picture(1), max_new_tokens=12)
    assert fast.caption(picture(1), max_new_tokens=12).token_ids == expected.token_ids


@pytest.mark.usefixtures("cuda_form")
@pytest.mark.parametrize("fault", ["other logits", "no compiler"])
def test_a_failed_check_on_cuda_leaves_plain_modules_and_a_note(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def spoiled(model: Any) -> CudaPaliGemma:
        if fault == "no compiler":
            raise ImportError("there is no triton here\nand more lines")
        fast = CudaPaliGemma(model, backend=None)
        with torch.no_grad():
            fast.decoder.final_norm.weight.neg_()
        return fast

    monkeypatch.setattr(cuda_model, "accelerate_for_cuda", spoiled)
    predictor = paligemma.load(folder, device="cpu", weights=Packed())
    assert not isinstance(predictor.model, CudaPaliGemma)
    reason = "ImportError: there is no triton here)" if fault == "no compiler" else "logits differ"
    assert reason in str(predictor.note)
    plain = paligemma.load(folder, device="cpu", weights=Plain("bfloat16"))
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(predictor.model.get_parameter(name), parameter), name


@pytest.mark.parametrize("name", ["bf16", "BFloat16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_may_have_any_usual_name(name: Any) -> None:
    assert checked_weights(name) == "bfloat16"
    assert Plain(name) == Plain("bfloat16")
    assert weights_name(name) == "bfloat16"


@pytest.mark.parametrize("name", [5, None, "bfloat", torch.float64, "torch"])
def test_an_unknown_dtype_is_refused(name: Any) -> None:
    with pytest.raises(OptionError, match="must be one of"):
        checked_weights(name)


def test_a_device_may_be_a_number_or_in_capitals() -> None:
    assert choose_device("CPU") == choose_device(torch.device("cpu")) == torch.device("cpu")
    if not torch.cuda.is_available():
        for device in (0, "0", "CUDA:0"):
            with pytest.raises(OptionError, match="'cuda:0' does not exist"):
                choose_device(device)
    with pytest.raises(OptionError, match="it must be"):
        choose_device(-1)


def test_mini_says_which_folder_it_is_not_and_nothing_with_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    note = loading._mini_note(has_adapter=False)
    assert note is not None
    assert "./mini" not in note
    assert loading._mini_note(has_adapter=True) is None
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "config.json").touch()
    assert "./mini" in str(loading._mini_note(has_adapter=False))


@pytest.mark.parametrize("option", ["model", "adapter", "mask_codec"])
def test_a_folder_of_an_unknown_user_is_said_not_to_exist(option: str) -> None:
    with pytest.raises(CheckpointError, match="nobody-of-this-name"):
        paligemma.load(**{option: "~nobody-of-this-name/model"})  # type: ignore[arg-type]
