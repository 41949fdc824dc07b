"""Adapters by name in one running service: each question is answered by the one it names."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paligemma.adapters.lora import LoraConfig, add_lora, attach_lora, lora_layers
from paligemma.checkpoints.adapter import read_adapter, write_adapter
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.errors import OptionError, UnavailableError
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.server.app import create_app
from paligemma.server.jobs import JobOptions
from paligemma.server.service import Loaded, Service
from tests.agreement.tiny_predictor import build_predictor
from tests.server.asgi import Answer, call
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


def test_an_adapter_that_says_what_it_was_trained_on_needs_no_phrases(
    tiny_tokenizer: Tokenizer, folders: dict[str, Path]
) -> None:
    taught = TrainedOn(task="detect", prompt="detect a ; b", class_names=("a", "b"))
    loaded = replace(load(tiny_tokenizer, folders), trained_on={"birds": taught})
    image = base64.b64encode(png(7)).decode()

    async def main() -> None:
        service = Service(lambda: loaded, name="tiny", adapter_names=NAMES)
        service.start()
        try:
            await service.wait_until_ready()
            app = create_app(service)

            async def ask(task: str, **fields: Any) -> Answer:
                body = json.dumps({"image": image, "max_new_tokens": 9, **fields}).encode()
                kind = {"content-type": "application/json"}
                return await call(app, "POST", f"/v1/{task}", body, kind)

            asked = (await ask("detect", model="birds", phrases=["a", "b"], separate=False)).json()
            for fields in ({}, {"phrases": None}, {"separate": None}):
                answer = await ask("detect", model="birds", **fields)
                assert answer.json()["result"] == asked["result"]
            each = await ask("detect", model="birds", separate=True)
            assert each.json()["result"]["phrases"] == ["a", "b"]
            streamed = await ask("detect", model="birds", stream=True)
            assert streamed.events[-2][1]["result"]["phrases"] == ["a", "b"]
            line = json.dumps({"id": "1", "task": "detect", "model": "birds", "image": image})
            kind = {"content-type": "application/jsonl"}
            batch = await call(app, "POST", "/v1/batch", line.encode(), kind)
            assert json.loads(batch.body)["result"]["phrases"] == ["a", "b"]
            for task, model in (("segment", "birds"), ("detect", "ships"), ("detect", "tiny")):
                refused = await ask(task, model=model)
                assert (refused.status, refused.error["param"]) == (400, "phrases")
            assert (
                "not trained to segment" in (await ask("segment", model="birds")).error["message"]
            )
        finally:
            service.close()

    asyncio.run(main())
