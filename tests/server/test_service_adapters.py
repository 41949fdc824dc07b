"""Adapters by name in one running service: each question is answered by the one it names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma.adapters.lora import LoraConfig, add_lora, attach_lora, lora_layers
from paligemma.checkpoints.adapter import read_adapter, write_adapter
from paligemma.errors import OptionError, UnavailableError
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.server.jobs import JobOptions
from paligemma.server.service import Loaded, Service
from tests.agreement.tiny_predictor import build_predictor
from tests.server.serving import outcome, png, prompt, serving

NAMES = ("birds", "ships")


@pytest.fixture
def folders(tiny_tokenizer: Tokenizer, tmp_path: Path) -> dict[str, Path]:
    """Two adapters on disk, as training would leave them."""
    found = {}
    for seed, name in enumerate(NAMES):
        model = build_predictor(tiny_tokenizer).model
        add_lora(model, LoraConfig(rank=2 + seed), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in lora_layers(model).values():
                layer.lora_b.copy_(torch.randn(layer.lora_b.shape, generator=generator))
        found[name] = write_adapter(model, tmp_path / name, base_name=None, revision=None)
    return found


def load(tokenizer: Tokenizer, folders: dict[str, Path]) -> Loaded:
    predictor = build_predictor(tokenizer)
    config = predictor.model.config
    adapters = {name: read_adapter(folder, config).layers for name, folder in folders.items()}
    return Loaded(predictor=predictor, adapters=adapters)


def alone(tokenizer: Tokenizer, folder: Path | None) -> Predictor:
    """The predictor that has this adapter and serves nobody else."""
    predictor = build_predictor(tokenizer)
    if folder is not None:
        attach_lora(predictor.model, read_adapter(folder, predictor.model.config).layers)
    return predictor


def test_c12_each_question_is_answered_by_the_adapter_that_it_names(
    tiny_tokenizer: Tokenizer, folders: dict[str, Path]
) -> None:
    picture = png(7)
    names = [None, "birds", "ships"]
    predictors = {n: alone(tiny_tokenizer, folders[n] if n else None) for n in names}
    expected = {n: p.generate(picture, "ab", max_new_tokens=8) for n, p in predictors.items()}
    assert len({answer.token_ids for answer in expected.values()}) == 3
    scored = {n: p.score(picture, "ab", ["ab"])[0] for n, p in predictors.items()}

    async def main() -> None:
        loaded = load(tiny_tokenizer, folders)
        async with serving(loaded, adapter_names=NAMES) as service:
            assert service.models == {"tiny": None, "birds": "birds", "ships": "ships"}
            asked = [*names, *names, "birds", None]
            tickets = service.submit_all(
                [
                    prompt(images=(picture,), options=JobOptions(max_new_tokens=8, adapter=name))
                    for name in asked
                ]
            )
            scores = [service.score("ab", ["ab"], [picture], adapter=name) for name in names]
            for name, ticket in zip(asked, tickets, strict=True):
                found = await ticket.wait()
                assert found.token_ids == expected[name].token_ids
                assert found.logprobs == pytest.approx(expected[name].logprobs, abs=1e-4)
            for name, ticket in zip(names, scores, strict=True):
                [score] = await ticket.wait()
                assert score.logprobs == pytest.approx(scored[name].logprobs, abs=1e-4)
            assert service.stats().image_cache_misses <= 2, "adapters share what the model has seen"
            for name in ("../birds", "tiny", "", str(folders["birds"])):
                with pytest.raises(OptionError, match="Unknown adapter"):
                    service.submit(prompt(options=JobOptions(adapter=name)))

    asyncio.run(main())


def test_a_service_without_the_adapters_that_it_names_does_not_start(
    tiny_tokenizer: Tokenizer,
) -> None:
    async def main() -> Any:
        service = Service(
            lambda: build_predictor(tiny_tokenizer), name="tiny", adapter_names=("birds",)
        )
        service.start()
        with pytest.raises(UnavailableError):
            await service.wait_until_ready()
        service.close()
        return service.failure

    assert isinstance(asyncio.run(main()), OptionError)


def test_a_service_without_adapters_refuses_them_all(tiny_tokenizer: Tokenizer) -> None:
    async def main() -> None:
        async with serving(build_predictor(tiny_tokenizer)) as service:
            with pytest.raises(OptionError):
                service.submit(prompt(options=JobOptions(adapter="birds")))
            assert await outcome(service.submit(prompt())) is not None

    asyncio.run(main())
