"""What a CUDA device runs equals the plain model; here on the CPU, uncompiled or traced only."""

from __future__ import annotations

import sys
import weakref

import pytest
import torch
from torch.nn.attention import flex_attention

from paligemma.checkpoints.save import save_model
from paligemma.engine.engine import Engine
from paligemma.engine.generate import generate, score
from paligemma.engine.image_cache import KeyedImage
from paligemma.engine.request import Request
from paligemma.errors import MissingExtraError, OptionError
from paligemma.fast.cuda.attention import (
    attend_prefix,
    attend_slots,
    prefix_blocks,
    slots_in_reach,
)
from paligemma.fast.cuda.block import MergedBlock
from paligemma.fast.cuda.model import (
    CudaPaliGemma,
    bitsandbytes_layer,
    quantize_for_cuda,
    torchao_config,
)
from paligemma.inputs import ModelInputs
from paligemma.model.attention import as_bias, attend, prefix_lm_mask
from paligemma.model.kv_cache import KVCache, SlotCache
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, FLOAT32_TOLERANCE, Row, tiny_inputs, tiny_model, varied_model

WINDOW = {"sliding_window": 6, "sliding_layers": (True, False) * 3 + (True,)}
MIXED_ROWS = [Row(prefix=3), Row(images=(1, 0), prefix=9), Row(images=(), prefix=1)]


@pytest.fixture(autouse=True)
def flex_attention_is_not_compiled(monkeypatch) -> None:
    """Where it stands alone, it would compile itself for every new shape."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def fast(model: PaliGemma, backend: str | None = None) -> CudaPaliGemma:
    """A fast form of a copy: the model given stays plain."""
    copy = PaliGemma(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return CudaPaliGemma(copy, backend=backend)


def random_heads(num_rows: int, num_queries: int, num_keys: int) -> tuple[torch.Tensor, ...]:
    """12 query heads, 4 key and value heads, 14 features."""
    generator = torch.Generator().manual_seed(num_keys)
    shapes = [(12, num_queries), (4, num_keys), (4, num_keys)]
    return tuple(torch.randn(num_rows, *shape, 14, generator=generator) for shape in shapes)


# Attention


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("pads", ["none", "left", "right"])
@pytest.mark.parametrize("suffix", [0, 4])
def test_attention_over_whole_sequences_equals_the_plain_one(softcap, pads, suffix) -> None:
    length = 11
    input_mask = torch.ones(3, length, dtype=torch.bool)
    if pads != "none":
        here = slice(0, 3) if pads == "left" else slice(length - 3, length)
        input_mask[1, here] = False
    mask_ar = (torch.arange(length) >= length - suffix).expand(3, -1)
    queries, keys, values = random_heads(3, length, length)
    bias = as_bias(prefix_lm_mask(input_mask, mask_ar), torch.float32)[:, None]
    expected = attend(queries, keys, values, bias, softcap)
    found = attend_prefix(queries, keys, values, prefix_blocks(input_mask, mask_ar), softcap)
    assert (found - expected).abs().max() < FLOAT32_TOLERANCE
    if pads == "none" and not suffix:
        unmasked = attend_prefix(queries, keys, values, None, softcap)
        assert (unmasked - expected).abs().max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("num_positions", [90, 128, 300])
def test_attention_over_slots_equals_the_plain_one(softcap, num_positions) -> None:
    lengths = torch.tensor([1, num_positions - 1, num_positions, num_positions // 2])
    queries, keys, values = random_heads(4, 1, num_positions)
    real = torch.arange(num_positions) < lengths[:, None]
    bias = as_bias(real[:, None], torch.float32)[:, None]
    expected = attend(queries, keys, values, bias, softcap)
    found = attend_slots(queries, keys, values, slots_in_reach(lengths, num_positions), softcap)
    assert (found - expected).abs().max() < FLOAT32_TOLERANCE


# The model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", ["left", "right"])
@torch.inference_mode()
def test_prefixes_and_plain_steps_equal_the_plain_model(family, pad) -> None:
    model = tiny_model(family)
    quick = fast(model)
    for rows in (MIXED_ROWS, [Row(prefix=5)], [Row(prefix=4), Row(images=(1,), prefix=4)]):
        inputs = tiny_inputs(model.config, rows, pad=pad)
        caches = [KVCache(model.config.decoder, len(rows), 80, dtype=model.dtype) for _ in range(2)]
        expected, found = (
            m.prefill(inputs, c) for m, c in zip((model, quick), caches, strict=True)
        )
        assert (found - expected).abs().max() < 1e-4
        ids = torch.arange(7, 7 + len(rows))
        expected, found = (
            m.decode_step(ids, c) for m, c in zip((model, quick), caches, strict=True)
        )
        assert (found - expected).abs().max() < 1e-4
        assert torch.equal(caches[0].valid, caches[1].valid)


def slots_with(model: PaliGemma, inputs: ModelInputs, num_slots: int) -> SlotCache:
    slots = SlotCache(model.config.decoder, num_slots, 70, dtype=model.dtype)
    model.prefill(inputs, slots.fresh(len(inputs.token_ids)))
    slots.admit(inputs.input_mask.sum(dim=1).tolist())
    return slots


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_slots", [3, 7])
@torch.inference_mode()
def test_steps_on_slots_equal_the_plain_model(family, num_slots) -> None:
    model = tiny_model(family)
    quick = fast(model)
    inputs = tiny_inputs(model.config, MIXED_ROWS, pad="right")
    expected, found = (slots_with(m, inputs, num_slots) for m in (model, quick))
    ids = torch.tensor([9, 50, 8])
    for step in range(6):
        if step == 4:
            for slots in (expected, found):
                slots.remove(0)
            ids = ids[:2]
        vocab_range = range(20, 50) if step == 2 else None
        wanted = model.decode_step(ids, expected, vocab_range)
        logits = quick.decode_step(ids, found, vocab_range)
        assert logits.shape == wanted.shape
        assert (logits - wanted).abs().max() < 1e-4, step
        assert found.row_lengths == expected.row_lengths
        assert torch.equal(found.lengths, expected.lengths)
        ids = wanted.argmax(dim=1) + (20 if vocab_range else 0)
    for memory in (*found.keys, *found.values):
        assert memory.isfinite().all()


@torch.inference_mode()
def test_a_full_cache_says_so_and_takes_nothing() -> None:
    quick = fast(tiny_model())
    slots = slots_with(quick, tiny_inputs(quick.config, [Row(images=(), prefix=70)]), 2)
    with pytest.raises(IndexError, match="70 positions; 71 are needed"):
        quick.decode_step(torch.tensor([7]), slots)
    assert slots.row_lengths == [70]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_gives_what_the_plain_loop_gives(family) -> None:
    model = varied_model(family)
    quick = fast(model)
    inputs = tiny_inputs(
        model.config,
        [Row(images=(n % 3,) * (n % 2), prefix=2 + 3 * n) for n in range(9)],
        pad="left",
    )
    limits = [3 + 5 * n % 11 for n in range(9)]
    expected = generate(model, inputs, max_new_tokens=limits, eos_id=1)
    images = [KeyedImage(pixel_values=pixels) for pixels in inputs.required_pixel_values]
    requests = [
        Request.from_row(inputs, row, images, max_new_tokens=limit, eos_id=1)
        for row, limit in enumerate(limits)
    ]
    found = Engine(quick, num_positions=90, max_rows=5).run(requests)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    assert len({row.token_ids for row in found}) == 9


def test_steps_go_with_the_cache_they_belong_to() -> None:
    quick = fast(tiny_model())
    with torch.inference_mode():
        slots = slots_with(quick, tiny_inputs(quick.config, [Row()]), 2)
        quick.decode_step(torch.tensor([7]), slots)
    assert len(quick._steps) == 1
    gone = weakref.ref(slots)
    del slots
    assert gone() is None
    assert len(quick._steps) == 0


@pytest.mark.parametrize("fields", [{}, WINDOW])
def test_what_has_no_fast_form_goes_the_plain_way(fields) -> None:
    model = tiny_model(**fields)
    quick = fast(model)
    inputs = tiny_inputs(model.config, [Row(prefix=3, suffix=4), Row(prefix=5, suffix=2)])
    expected, found = score(model, inputs), score(quick, inputs)
    for wanted, row in zip(expected, found, strict=True):
        assert row.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
    assert (quick(inputs) - model(inputs)).abs().max() < 1e-4  # with gradients
    with torch.inference_mode():
        logits = []
        for m in (model, quick):
            slots = slots_with(m, tiny_inputs(m.config, MIXED_ROWS, pad="right"), 4)
            several = m.extend(torch.tensor([[9, 8], [7, 6], [50, 51]]), slots)
            logits.append((several, m.decode_step(torch.tensor([5, 6, 7]), slots)))
        for wanted, result in zip(*logits, strict=True):
            assert (result - wanted).abs().max() < 1e-4


# Compilation


def test_one_compilation_serves_all_layers_and_equals_the_plain_model() -> None:
    model = tiny_model(depth=3)
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    quick = fast(model, backend=count)  # type: ignore[arg-type]
    with torch.inference_mode():
        inputs = tiny_inputs(model.config, MIXED_ROWS, pad="right")
        expected, found = (slots_with(m, inputs, 4) for m in (model, quick))
        num_prefix = len(compiled)
        assert num_prefix == 2  # a vision block and a decoder layer
        for ids in (torch.tensor([9, 50, 8]), torch.tensor([60, 70, 11])):
            wanted, logits = model.decode_step(ids, expected), quick.decode_step(ids, found)
            assert (logits - wanted).abs().max() < 1e-4
        assert len(compiled) == num_prefix + 3  # the way in, a layer and the logits
    torch._dynamo.reset()


# Weights


def test_every_weight_is_found_again() -> None:
    model = tiny_model()
    quick = fast(model)
    expected = dict(model.named_parameters())
    for layer, block in enumerate(quick.decoder.blocks):
        assert isinstance(block, MergedBlock)
        for name, rows in block.weight_rows().items():
            weight = expected[f"decoder.blocks.{layer}.{name}"]
            assert rows.shape == weight.shape
            assert torch.equal(rows.read(0, rows.shape[0]), weight)
        rows.write(16, torch.ones(2, rows.shape[1]))
        assert (block.down_proj.weight[16:18] == 1).all()
    before = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in quick.parameters()) == before


# Quantization


def test_quantization_says_what_it_needs() -> None:
    model = tiny_model()
    with pytest.raises(OptionError, match=r"'int3'.*int8"):
        quantize_for_cuda(model, "int3")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"float32 on cpu.*'int4' needs bfloat16 on a CUDA"):
        quantize_for_cuda(model, "int4")


@pytest.mark.parametrize(
    ("module", "prepare"),
    [
        ("torchao.quantization", lambda: torchao_config("fp8")),
        ("bitsandbytes", lambda: bitsandbytes_layer("nf4")),
    ],
)
def test_a_missing_library_is_named(monkeypatch, module, prepare) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    name = module.split(".")[0]
    with pytest.raises(MissingExtraError, match=rf"paligemma\[{name}\]"):
        prepare()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_is_saved_under_the_plain_names(family, tmp_path) -> None:
    model = tiny_model(family)
    save_model(model, tmp_path / "plain")
    save_model(fast(model), tmp_path / "merged")
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "merged" / path.name).read_bytes(), path.name
