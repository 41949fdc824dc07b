"""float32 products by tiles of bfloat16 are as near to float64 as those by FMA, for all numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.save import save_model
from paligemma.config import Family
from paligemma.fast import float32
from paligemma.fast import weights as form_names
from paligemma.fast.float32 import TileEmbedding, TileLinear, float32_linear, use_tiles
from paligemma.fast.kernels.library import Kernels
from paligemma.fast.weights import Plain, Trainable, Weights
from paligemma.model.kv_cache import KVCache
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, Row, tiny_inputs, tiny_model

BY_TILES = pytest.mark.parametrize("compiled", ["amx", "amx emulated"], indirect=True)


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tiles take the smallest products, too."""
    monkeypatch.setattr(float32, "LEAST_ROWS", 1)
    monkeypatch.setattr(float32, "LEAST_WIDTH", 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    weight = random(outputs, inputs, seed=1) * inputs**-0.5
    return random(rows, inputs), weight, random(outputs, seed=2)


def computed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = float32_linear(x, weight, bias)
    assert out is not None
    return out


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm())


# One row, no multiple of anything; two passes over more than 64 tiles of rows; several chunks of
# panels; several parts of inputs, the last one shorter.
SHAPES = [(1, 7, 3), (33, 70, 50), (32, 64, 32), (1050, 33, 5), (20, 40, 600), (40, 1300, 40)]


@BY_TILES
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_that_of_fma(compiled: Kernels, shape: tuple[int, int, int]) -> None:
    x, weight, bias = factors(*shape)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert error(computed(x, weight, bias), exact) <= 2 * error(F.linear(x, weight, bias), exact)
    exact = F.linear(x.double(), weight.double())
    assert error(computed(x, weight), exact) <= 2 * error(F.linear(x, weight), exact)


@BY_TILES
@pytest.mark.usefixtures("any_size")
def test_the_error_is_that_of_fma_where_terms_cancel(compiled: Kernels) -> None:
    x, weight, _ = factors(17, 400, 20)
    x = torch.cat([1e4 * x, -1e4 * x, x], dim=1)
    weight = torch.cat([weight, weight, weight], dim=1)
    exact = x.double() @ weight.double().T
    assert error(computed(x, weight), exact) <= 2 * error(F.linear(x, weight), exact)


@BY_TILES
@pytest.mark.usefixtures("any_size")
def test_all_24_bits_of_both_factors_count(compiled: Kernels) -> None:
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(2**23, 2**24, (2, 64), generator=generator).float()
    x, weight = bits[0, :, None] / 2**23, bits[1, :, None] / 2**23
    exact = x.double() @ weight.double().T
    # What float32 rounds, and 2^-23 at most for the products of pieces that are left out.
    assert ((computed(x, weight).double() - exact) / exact).abs().max() < 3 * 2**-24


@BY_TILES
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(
    ("of_x", "of_weight"),
    [(1e-39, 1.0), (1.0, 1e-41), (1e-44, 1e24), (1e-39, 1e25), (1e-20, 1e-20), (1e-30, 1e-30)],
)
def test_denormal_numbers_count(compiled: Kernels, of_x: float, of_weight: float) -> None:
    x, weight, _ = factors(20, 70, 18)
    x, weight = x.clamp(-2, 2) * of_x, weight * of_weight
    exact = x.double() @ weight.double().T
    # Two of the smallest float32 numbers, where results are no larger.
    allowed = 2 * error(F.linear(x, weight), exact) + exact.numel() ** 0.5 * 2 * 2**-149
    assert error(computed(x, weight), exact) <= allowed


@BY_TILES
@pytest.mark.usefixtures("any_size")
def test_a_denormal_number_beside_large_ones_counts(compiled: Kernels) -> None:
    x, weight = torch.zeros(3, 40), torch.zeros(2, 40)
    x[:, 0], x[:, 39], weight[:, 39] = 1.0, 1e-40, 1e24
    torch.testing.assert_close(computed(x, weight), F.linear(x, weight), rtol=1e-6, atol=0)


def bits(number: int) -> float:
    return float(
        torch.tensor([number - 2**32 * (number >> 31)], dtype=torch.int32).view(torch.float32)
    )


# The largest float32; the smallest that bfloat16 rounds to infinity; one that does not overflow
# until it is scaled; NaN in both halves of the word.
BAD = [float("inf"), -float("inf"), float("nan"), bits(0x7FFFFFFF), bits(0x7F800001),
       3.4028234e38, bits(0x7F7F8000), -3.39e38, 1e32]  # fmt: skip


@BY_TILES
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("number", BAD, ids=str)
@pytest.mark.parametrize("other", [0.0, 1e-9, -1.0])
def test_what_pieces_cannot_hold_is_left_to_torch(
    compiled: Kernels, number: float, other: float
) -> None:
    for where in ((0, 0), (18, 68), (7, 40)):
        x, weight, bias = factors(19, 69, 18)
        x[where], weight[:, where[1]] = number, other
        assert float32_linear(x, weight, bias) is None
        weight, x, bias = factors(19, 69, 18)
        bias = random(19)
        weight[where], x[:, where[1]] = number, other
        assert float32_linear(x, weight, bias) is None
        layer = nn.Linear(69, 19)
        layer.weight.data, layer.bias.data = weight, bias
        with torch.no_grad():
            found = TileLinear(layer)(x)
        torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=0, atol=0, equal_nan=True)


@BY_TILES
@pytest.mark.usefixtures("any_size")
def test_sums_that_overflow_when_scaled_are_left_to_torch(compiled: Kernels) -> None:
    x, weight = torch.full((4, 40), 2.0**50), torch.full((4, 40), 2.0**30)
    assert F.linear(x, weight).isfinite().all()
    assert float32_linear(x, weight, None) is None
    assert torch.equal(computed(x, weight / 2**8), F.linear(x, weight / 2**8))


@BY_TILES
@pytest.mark.usefixtures("any_size")
def test_a_bias_may_be_infinite(compiled: Kernels) -> None:
    x, weight, bias = factors(5, 33, 6)
    bias[2], bias[3] = float("inf"), float("nan")
    found = computed(x, weight, bias)
    assert torch.equal(found[:, 2], torch.full((5,), float("inf")))
    assert found[:, 3].isnan().all()
    assert found[:, [0, 1, 4, 5]].isfinite().all()


@BY_TILES
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("num_threads", [2, 5])
def test_threads_change_nothing(compiled: Kernels, num_threads: int) -> None:
    x, weight, bias = factors(70, 600, 150)
    expected = computed(x, weight, bias)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert torch.equal(computed(x, weight, bias), expected)
    finally:
        torch.set_num_threads(before)


@BY_TILES
@pytest.mark.usefixtures("any_size")
def test_a_slice_is_read_in_its_order_and_keeps_its_shape(compiled: Kernels) -> None:
    wide, weight, _ = factors(12, 100, 30)
    x = wide.view(3, 4, 100)[:, 1:, 10:80]
    weight = weight[:, :70].clone()
    found = computed(x, weight)
    assert found.shape == (3, 3, 30)
    torch.testing.assert_close(found, F.linear(x, weight), rtol=1e-5, atol=1e-5)
    assert float32_linear(x, weight.T.contiguous().T, None) is None


@BY_TILES
def test_few_rows_and_narrow_layers_are_left_to_torch(compiled: Kernels) -> None:
    rows, width = float32.LEAST_ROWS, float32.LEAST_WIDTH
    assert float32_linear(torch.zeros(rows - 1, width), torch.zeros(width, width), None) is None
    assert float32_linear(torch.zeros(rows, width), torch.zeros(width - 1, width), None) is None
    assert float32_linear(torch.zeros(rows, width - 1), torch.zeros(width, width - 1), None) is None


@BY_TILES
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(
    "other", [lambda t: t.double(), lambda t: t.to(torch.bfloat16), lambda t: t.to("meta")]
)
def test_other_dtypes_and_devices_are_left_to_torch(
    compiled: Kernels, other: Callable[[Tensor], Tensor]
) -> None:
    x, weight, _ = factors(4, 5, 6)
    assert float32_linear(other(x), other(weight), None) is None
    assert float32_linear(x[:0], weight, None) is None


@BY_TILES
@pytest.mark.usefixtures("any_size")
def test_gradients_and_autocast_are_torchs(compiled: Kernels) -> None:
    plain = nn.Linear(40, 20)
    layer, x = TileLinear(plain), random(3, 40)
    assert dict(layer.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    layer(x).sum().backward()
    assert plain.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@BY_TILES
@pytest.mark.usefixtures("any_size")
@pytest.mark.filterwarnings("ignore:.*jit.trace:DeprecationWarning")
@pytest.mark.parametrize(
    "exported",
    [torch.jit.trace, lambda layer, x: torch.export.export(layer, (x,), strict=False).module()],
    ids=["trace", "export"],
)
def test_an_exported_layer_computes_for_other_rows(
    compiled: Kernels, exported: Callable[[nn.Module, Tensor], nn.Module]
) -> None:
    layer, x = TileLinear(nn.Linear(40, 20)), random(3, 40)
    with torch.no_grad():
        found, other = exported(layer, x), random(3, 40, seed=1)
        torch.testing.assert_close(found(other), layer(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "compiled", ["avx512 emulated", "generic", "generic emulated"], indirect=True
)
@pytest.mark.usefixtures("any_size")
def test_without_tiles_all_is_left_to_torch(compiled: Kernels) -> None:
    assert float32_linear(*factors(40, 40, 40)) is None
    model = tiny_model()
    modules = list(model.modules())
    assert list(use_tiles(model).modules()) == modules


@BY_TILES
@pytest.mark.parametrize(
    ("weights", "has_tiles"),
    [
        ("auto", True),
        ("float32", True),
        (Plain("float32"), False),
        (Trainable(), False),
        ("stored", False),
        ("float16", False),
    ],
    ids=str,
)
def test_names_of_forms_mean_tiles_and_plain_modules_stay_plain(
    compiled: Kernels,
    weights: Weights,
    has_tiles: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(form_names, "_LARGE", 1000)  # small models are packed
    model = tiny_model()
    loaded = load_model(save_model(model, tmp_path / "model"), weights=weights)
    tiled = [m for m in loaded.modules() if isinstance(m, TileLinear | TileEmbedding)]
    assert bool(tiled) == has_tiles
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(parameter.dtype)), name


@torch.inference_mode()
def logits_of(model: PaliGemma) -> tuple[Tensor, ...]:
    """After prefixes of different lengths, and of four tokens more."""
    inputs: Any = tiny_inputs(model.config, (Row(prefix=5), Row(prefix=9), Row(prefix=3)))
    inputs = inputs.to(model.dtype) if model.dtype == torch.float64 else inputs
    cache = KVCache(model.config.decoder, 3, 60, dtype=model.dtype)
    first = model.prefill(inputs, cache)
    token_ids = torch.tensor([[7, 8, 9]] * 3)
    model.extend(token_ids, cache)
    return first, model.decode_step(token_ids[:, 0], cache)


@BY_TILES
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_as_exact_as_with_torchs_products(
    compiled: Kernels, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: Any) -> Tensor | None:
        out = float32_linear(*arguments)
        calls.append(out is not None)
        return out

    monkeypatch.setattr(float32, "float32_linear", counted)
    expected = logits_of(tiny_model(family))
    model = use_tiles(tiny_model(family))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    tiled = [m for m in layers if isinstance(m, TileLinear | TileEmbedding)]
    assert len(tiled) == len(layers) - 1  # the positions of patches
    found = logits_of(model)
    assert len(calls) > 3 * len(tiled) - 30
    assert all(calls)
    for ours, plain in zip(found, expected, strict=True):
        probabilities = [logits.log_softmax(-1) for logits in (ours, plain)]
        torch.testing.assert_close(*probabilities, rtol=0, atol=5e-6)
