"""Several adapters in one batch: each row is what a model with that adapter alone gives it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from paligemma.adapters.bank import AdapterBank
from paligemma.adapters.lora import LowRank, attach_lora, freeze_base, linear_layers
from paligemma.engine.engine import Engine
from paligemma.engine.image_cache import KeyedImage
from paligemma.engine.request import Request
from paligemma.errors import OptionError
from paligemma.model.paligemma import PaliGemma
from tests.tiny import Row, tiny_inputs, varied_model

NAMES = ("plain", "stabilized", "directed")


def low_rank(
    model: PaliGemma, name: str, rank: int, seed: int, *, use_rslora: bool, use_dora: bool
) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    num_outputs, num_inputs = model.get_submodule(name).weight.shape  # type: ignore[misc]
    magnitude = torch.rand(num_outputs, generator=generator) + 0.5 if use_dora else None
    return LowRank(
        a=torch.randn(rank, num_inputs, generator=generator) * num_inputs**-0.5,
        b=torch.randn(num_outputs, rank, generator=generator) * 0.3,
        magnitude=magnitude,
        alpha=2.0 * rank,
        use_rslora=use_rslora,
    )


@pytest.fixture
def adapters() -> dict[str, Mapping[str, LowRank]]:
    """Of different ranks, on different layers, and of each kind."""
    model = varied_model()
    layers = list(linear_layers(model, ("decoder",)))
    some = [name for name in layers if "q_proj" in name or "down_proj" in name]
    made: dict[str, Mapping[str, LowRank]] = {}
    for number, (kind, names) in enumerate(zip(NAMES, (layers, some, layers[::2]), strict=True)):
        made[kind] = {
            name: low_rank(
                model,
                name,
                2 + number,
                100 * number + place,
                use_rslora=kind == "stabilized",
                use_dora=kind == "directed",
            )
            for place, name in enumerate(names)
        }
    return made


def requests(model: PaliGemma, names: list[str], max_new_tokens: int = 6) -> list[Request]:
    inputs = tiny_inputs(model.config, [Row(prefix=3 + n % 3) for n in range(len(names))])
    images = [KeyedImage(pixel_values=pixels) for pixels in inputs.required_pixel_values]
    return [
        Request.from_row(
            inputs, row, images, max_new_tokens=max_new_tokens, eos_id=-1, adapter=name
        )
        for row, name in enumerate(names)
    ]


def test_rows_of_one_batch_have_each_their_own_adapter(
    adapters: dict[str, Mapping[str, LowRank]],
) -> None:
    names = ["plain", "", "directed", "stabilized", "plain", "directed", ""]
    model = varied_model()
    bank = AdapterBank(model, adapters)
    mixed = Engine(model, num_positions=60, max_rows=5, adapters=bank).run(requests(model, names))
    answers = set()
    for name in ("", *NAMES):
        alone = varied_model()
        if name:
            attach_lora(alone, adapters[name])
        own = requests(alone, [""] * len(names))
        for row, expected in enumerate(Engine(alone, num_positions=60).run(own)):
            if names[row] != name:
                continue
            assert mixed[row].token_ids == expected.token_ids, (name, row)
            assert mixed[row].logprobs == pytest.approx(expected.logprobs, abs=1e-4)
            answers.add((name, expected.token_ids))
    assert len({ids for _, ids in answers}) > len(NAMES), "the adapters must change the answers"


def test_a_batch_without_adapters_is_bit_equal_to_the_model_without_a_bank(
    adapters: dict[str, Mapping[str, LowRank]],
) -> None:
    bare, model = varied_model(), varied_model()
    bank = AdapterBank(model, adapters)
    expected = Engine(bare, num_positions=60).run(requests(bare, ["", "", ""]))
    found = Engine(model, num_positions=60, adapters=bank).run(requests(model, ["", "", ""]))
    assert [row.logprobs for row in found] == [row.logprobs for row in expected]


def test_a_frozen_base_takes_adapters(adapters: dict[str, Mapping[str, LowRank]]) -> None:
    model, alone = (freeze_base(varied_model(), "int8") for _ in range(2))
    bank = AdapterBank(model, {"directed": adapters["directed"]})
    attach_lora(alone, adapters["directed"])
    found = Engine(model, num_positions=60, adapters=bank).run(requests(model, ["directed", ""]))
    expected = Engine(alone, num_positions=60).run(requests(alone, ["", ""]))
    assert found[0].token_ids == expected[0].token_ids
    assert found[0].logprobs == pytest.approx(expected[0].logprobs, abs=1e-4)


def test_what_cannot_be_is_refused(adapters: dict[str, Mapping[str, LowRank]]) -> None:
    model = varied_model()
    with pytest.raises(OptionError, match="none"):
        Engine(model, num_positions=60).add(requests(model, ["plain"])[0])
    vision = next(iter(linear_layers(model, ("vision_encoder",))))
    wrong = {vision: low_rank(model, vision, 2, 0, use_rslora=False, use_dora=False)}
    with pytest.raises(OptionError, match="outside the decoder"):
        AdapterBank(model, {"wrong": wrong})
    with pytest.raises(OptionError, match="Give each adapter a name"):
        AdapterBank(model, {"": adapters["plain"]})
    bank = AdapterBank(model, adapters)
    with pytest.raises(OptionError, match="Unknown adapter 'other'"):
        Engine(model, num_positions=60, adapters=bank).add(requests(model, ["other"])[0])
    with pytest.raises(OptionError, match="already has adapters"):
        AdapterBank(attach_lora(varied_model(), adapters["plain"]), adapters)
