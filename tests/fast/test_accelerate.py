"""The model with fast modules computes what the plain one does, and gives every weight back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from paligemma.config import Family
from paligemma.errors import OptionError
from paligemma.fast import blocks
from paligemma.fast.accelerate import accelerate, weight_rows
from paligemma.fast.kernels import layers, products
from paligemma.fast.kernels.block import run_blocks
from paligemma.fast.kernels.library import kernels
from paligemma.fast.quantization import INT4, INT8
from paligemma.model.kv_cache import KVCache, SlotCache
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, Row, tiny_inputs, tiny_model

ROWS = (Row(prefix=5), Row(prefix=9), Row(prefix=3))


Form = Literal["float32", "bfloat16", "int8", "int4"]
FORMS: tuple[Form, ...] = ("float32", "bfloat16", "int8", "int4")


def bfloat16_model(family: Family) -> PaliGemma:
    return tiny_model(family).to(torch.bfloat16)


def plain_model(family: Family, form: Form) -> PaliGemma:
    return tiny_model(family) if form == "float32" else bfloat16_model(family)


def accelerated(model: PaliGemma, form: Form) -> PaliGemma:
    return accelerate(model, form if form == "int8" or form == "int4" else None)


@torch.inference_mode()
def logits_of(model: PaliGemma, cache_type: type = KVCache) -> tuple[torch.Tensor, torch.Tensor]:
    """After the prefix, and after three more tokens at once and one more."""
    pad = "left" if cache_type is KVCache else "right"
    inputs = tiny_inputs(model.config, ROWS, pad=pad)
    cache = cache_type(model.config.decoder, len(ROWS), 60, dtype=model.dtype)
    if isinstance(cache, SlotCache):
        first = model.prefill(inputs, cache.fresh(len(ROWS)))
        cache.admit(inputs.input_mask.sum(dim=1).tolist())
    else:
        first = model.prefill(inputs, cache)
    token_ids = torch.tensor([[7, 8, 9]] * len(ROWS))
    model.extend(token_ids, cache)
    return first, model.decode_step(token_ids[:, 0], cache)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("cache_type", [KVCache, SlotCache])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_as_near_to_float32_as_the_plain_bfloat16_model(
    family: Family, cache_type: type
) -> None:
    exact = logits_of(tiny_model(family), cache_type)
    plain = logits_of(bfloat16_model(family), cache_type)
    fast = logits_of(accelerate(bfloat16_model(family)), cache_type)
    for found, reference, truth in zip(fast, plain, exact, strict=True):
        assert distance(found, truth) < 1.5 * distance(reference, truth)


@pytest.mark.parametrize("cache_type", [KVCache, SlotCache])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_float32_model_computes_what_the_plain_one_does(family: Family, cache_type: type) -> None:
    plain = logits_of(tiny_model(family), cache_type)
    for found, expected in zip(
        logits_of(accelerate(tiny_model(family)), cache_type), plain, strict=True
    ):
        assert found.dtype == torch.float32
        assert distance(found, expected) < 2e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_and_plain_torch_agree(
    family: Family, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = accelerated(plain_model(family, form), form)
    by_kernels = logits_of(model)
    for module in (products, layers):
        monkeypatch.setattr(module, "kernels", lambda: None)
    for found, expected in zip(by_kernels, logits_of(model), strict=True):
        # In bfloat16, both are as far from float32.
        assert distance(found, expected) < (2e-6 if form == "float32" else 0.04)


@pytest.mark.skipif(kernels() is None, reason="no kernels were compiled")
@pytest.mark.parametrize("cache_type", [KVCache, SlotCache])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_blocks_in_one_call_are_the_blocks_one_by_one(
    family: Family, form: Form, cache_type: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = accelerated(plain_model(family, form), form)
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return run_blocks(*arguments)

    monkeypatch.setattr(blocks, "run_blocks", counted)
    at_once = logits_of(model, cache_type)
    assert len(calls) == 3  # prefill, three tokens, one token
    monkeypatch.setattr(blocks, "can_run_blocks", lambda x: False)
    for found, expected in zip(at_once, logits_of(model, cache_type), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("num_images", [0, 1])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_last_state_alone_is_that_of_the_whole_pass(
    family: Family, form: Form, num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = accelerated(plain_model(family, form), form)
    rows = [Row(images=(0,) * num_images, prefix=n, suffix=2) for n in (5, 9, 3)]
    inputs = tiny_inputs(model.config, rows, pad="right")
    last = inputs.input_mask.sum(dim=1) - 1

    def run(at: torch.Tensor | None) -> tuple[torch.Tensor, KVCache]:
        cache = KVCache(model.config.decoder, len(rows), 60, dtype=model.dtype)
        return model.hidden_states(inputs, kv_cache=cache, at=at), cache

    (whole, expected_cache), (states, cache) = run(None), run(last)
    assert states.shape == (len(rows), 1, model.config.decoder.width)
    assert distance(states[:, 0], whole[torch.arange(len(rows)), last]) < 0.02
    real = torch.where(cache.valid)
    for found, expected in zip(cache.keys, expected_cache.keys, strict=True):
        assert torch.equal(found[real[0], :, real[1]], expected[real[0], :, real[1]])
    monkeypatch.setattr(blocks, "can_run_blocks", lambda x: False)
    assert torch.equal(run(last)[0], states)


@pytest.mark.skipif(kernels() is None, reason="no kernels were compiled")
def test_weights_that_moved_are_found_again() -> None:
    model = accelerate(bfloat16_model("paligemma2"))
    before = logits_of(model)
    block: Any
    for block in model.decoder.blocks:
        block.down.values = block.down.values.clone()
        block.pre_mlp_norm.weight.data = block.pre_mlp_norm.weight.data.clone() + 1
    after = logits_of(model)
    assert not torch.equal(after[0], before[0])
    expected = logits_of(accelerate(bfloat16_model("paligemma2")))
    assert torch.equal(before[0], expected[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_that_has_run_can_be_copied_and_sent_to_another_process(
    form: Form, copied: Callable[[PaliGemma], PaliGemma]
) -> None:
    model = accelerated(plain_model("paligemma2", form), form)
    expected = logits_of(model)
    for found, wanted in zip(logits_of(copied(model)), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_found_again_bit_for_bit(family: Family, form: Form) -> None:
    before = {name: p.clone() for name, p in plain_model(family, form).named_parameters()}
    rows = weight_rows(accelerate(plain_model(family, form)))
    assert rows.keys() == before.keys()
    for name, weight in before.items():
        assert rows[name].shape == weight.shape
        assert torch.equal(rows[name].read(0, weight.shape[0]), weight), name
        if weight.shape[0] > 18:
            assert torch.equal(rows[name].read(16, 19), weight[16:19]), name


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_model_is_filled_row_by_row(form: Form) -> None:
    source = plain_model("paligemma2", form)
    with torch.device("meta"):
        empty = PaliGemma(source.config).to(source.dtype)
    model = accelerated(empty, form).to_empty(device="cpu").eval()
    for buffer in model.buffers():  # as memory may be
        buffer.fill_(77)
    rows = weight_rows(model)
    for name, weight in source.named_parameters():
        for start in range(0, weight.shape[0], 16):
            rows[name].write(start, weight[start : start + 16].detach())
    accelerated(source, form)
    state = source.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    expected = logits_of(source)
    for found, wanted in zip(logits_of(model), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("quantization", "weight_format"), [("int8", INT8), ("int4", INT4)])
def test_quantized_layers_are_small_and_the_table_stays_int8(
    quantization: str, weight_format: object
) -> None:
    model = accelerate(bfloat16_model("paligemma2"), quantization)  # type: ignore[arg-type]
    block: Any = model.decoder.blocks[0]
    for layer in (block.gate_up, block.down):
        assert layer.weight_format == weight_format
        assert layer.values.dtype == torch.uint8
    for layer in (block.qkv, block.out):
        assert layer.weight_format == INT8
    table: Any = model.decoder.embedding.table
    assert table.weight_format == INT8
    encoder_block: Any = model.vision_encoder.blocks[0]
    assert encoder_block.fc1.values.dtype == torch.bfloat16


def test_logits_of_a_range_are_those_of_the_whole() -> None:
    model = accelerate(bfloat16_model("paligemma2"), "int8")
    hidden = torch.randn(2, 48, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    whole = model.decoder.logits(hidden)
    part = model.decoder.logits(hidden, vocab_range=range(37, 90))
    torch.testing.assert_close(part, whole[:, 37:90], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "quantization"), [(torch.float16, None), (torch.float32, "int8")]
)
def test_other_dtypes_are_refused(dtype: torch.dtype, quantization: Any) -> None:
    with pytest.raises(OptionError, match=r"The model is torch.float\d\d; it must be bfloat16"):
        accelerate(tiny_model("paligemma").to(dtype), quantization)


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(OptionError, match=r"quantization is 'int3'; it must be 'int8', 'int4'"):
        accelerate(bfloat16_model("paligemma"), "int3")  # type: ignore[arg-type]
