"""What a run may be told: which parts, how cut, with what noise, past which examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paligemma.adapters.lora import LoraConfig, add_lora
from paligemma.errors import DataError, ImageError, OptionError
from paligemma.fast.accelerate import accelerate
from paligemma.finetune.batches import ExampleSource
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.examples import Example
from paligemma.finetune.learner import finetune, restore
from paligemma.finetune.state import best_folder, folder_weights
from paligemma.finetune.trainer import LOG_NAME
from paligemma.model.gemma import DecoderBlock
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from tests.finetune.runner import DrawnExamples, predictor
from tests.tiny import Row, tiny_inputs, tiny_model


def config(**fields: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "num_steps": 3,
        "learning_rate": 1e-4,
        "batch_size": 8,
        "autocast": False,
    }
    return TrainConfig(**defaults | fields)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / LOG_NAME).read_text().splitlines()]


@pytest.fixture
def small(tiny_tokenizer: Tokenizer) -> Predictor:
    return predictor(tiny_tokenizer)


# Which parts


def test_the_frozen_encoder_stays_and_the_rest_learns(tmp_path: Path, small: Predictor) -> None:
    before = weights(small.model)
    finetune(small, DrawnExamples(), config(), tmp_path, method="frozen-encoder")
    moved = changed(small.model, before)
    assert not any(name.startswith("vision_encoder.") for name in moved)
    assert {name for name in before if not name.startswith("vision_encoder.")} == moved


def test_parts_are_frozen_by_pattern(tmp_path: Path, small: Predictor) -> None:
    before = weights(small.model)
    frozen = ("decoder.embedding.*", "*.mlp.*", "vision_encoder.*")
    finetune(small, DrawnExamples(), config(frozen=frozen), tmp_path)
    moved = changed(small.model, before)
    assert "decoder.blocks.0.attention.q_proj.weight" in moved
    assert not any(".mlp." in n or "embedding" in n or "vision" in n for n in moved)


def test_only_what_is_marked_is_trained_saved_and_restored(
    tmp_path: Path, small: Predictor, tiny_tokenizer: Tokenizer
) -> None:
    names = {"decoder.blocks.1.attention.q_proj.weight", "projector.linear.bias"}
    names &= dict(small.model.named_parameters()).keys()
    small.model.requires_grad_(False)
    for name, parameter in small.model.named_parameters():
        parameter.requires_grad_(name in names)
    before = weights(small.model)
    finetune(small, DrawnExamples(), config(), tmp_path, method="lora")
    assert changed(small.model, before) == names
    state = json.loads((best_folder(tmp_path) / "state.json").read_text())
    assert state["settings"]["method"] == "marked"  # as in older runs, which must stay resumable
    fresh = predictor(tiny_tokenizer).model
    restore(fresh, best_folder(tmp_path))
    assert changed(fresh, before) == names
    assert not changed(fresh, weights(small.model))


def test_adapters_are_trained_saved_and_resumed_alone(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    runs = []
    for name, ends in (("whole", [4]), ("parts", [2, 4])):
        for end in ends:
            small = predictor(tiny_tokenizer)
            add_lora(small.model, LoraConfig(rank=2), seed=3)
            before = weights(small.model)
            marked = {n for n, p in small.model.named_parameters() if p.requires_grad}
            examples = Stopping(end)
            how = config(num_steps=4, save_every=2, llm_dropout=0.1)
            try:
                finetune(small, examples, how, tmp_path / name, method="lora")
            except DataError:
                assert end == 2
        assert changed(small.model, before) <= marked
        saved = folder_weights(best_folder(tmp_path / name))
        assert {f"model.{n}" for n in marked} == saved.keys()
        assert len(marked) < len(before) / 2
        runs.append(saved)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


class Stopping(DrawnExamples):
    """Cannot be read any more after so many steps of 8 examples."""

    def __init__(self, num_steps: int) -> None:
        self.left = 8 * num_steps

    def __getitem__(self, index: int) -> Example:
        self.left -= 1
        if self.left < 0:
            raise DataError("no more")
        return super().__getitem__(index)


def test_unknown_methods_are_refused(tmp_path: Path, small: Predictor) -> None:
    method: Any = "prefix-tuning"
    with pytest.raises(OptionError, match="'prefix-tuning'; it must be one of"):
        finetune(small, DrawnExamples(), config(), tmp_path, method=method)


def test_an_adapter_method_is_refused_for_a_model_without_an_adapter(
    tmp_path: Path, small: Predictor
) -> None:
    small.model.requires_grad_(True)
    with pytest.raises(OptionError, match="every weight of this model is trainable"):
        finetune(small, DrawnExamples(), config(), tmp_path, method="lora")


def test_a_bfloat16_model_learns_through_master_copies(tmp_path: Path, small: Predictor) -> None:
    small.model.to(torch.bfloat16)
    before = weights(small.model)
    finetune(small, DrawnExamples(), config(master_weights=True), tmp_path / "one")
    assert small.model.dtype == torch.bfloat16
    assert changed(small.model, before)
    state = best_folder(tmp_path / "one")
    small.model.float()
    restore(small.model, state)
    # What was saved is finer than what the model shows.
    fine = small.model.get_parameter("decoder.blocks.0.mlp.up_proj.weight")
    assert not torch.equal(fine, fine.bfloat16().float())


def test_packed_weights_are_refused(tmp_path: Path, small: Predictor) -> None:
    accelerate(small.model.to(torch.bfloat16))
    with pytest.raises(OptionError, match="weights=Plain"):
        finetune(small, DrawnExamples(), config(master_weights=True), tmp_path)


# How cut


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
@pytest.mark.parametrize("num_workers", [0, 2])
def test_g8_accumulation_does_not_change_the_loss(
    tmp_path: Path, tiny_tokenizer: Tokenizer, num_workers: int
) -> None:
    runs = {}
    for accumulation in (1, 2, 4):
        out = tmp_path / str(accumulation)
        how = config(accumulation=accumulation, num_workers=num_workers if accumulation > 1 else 0)
        finetune(predictor(tiny_tokenizer), DrawnExamples(), how, out)
        runs[accumulation] = losses(out)
    assert runs[2] == pytest.approx(runs[1], rel=1e-6)
    assert runs[4] == pytest.approx(runs[1], rel=1e-6)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2)])
def test_g5_however_it_is_cut_a_step_sees_the_same_examples(
    small: Predictor, world_size: int, accumulation: int
) -> None:
    def shown(step: int, world_size: int, accumulation: int) -> list[str]:
        ids: list[str] = []
        for part in range(accumulation):
            for rank in range(world_size):
                source = ExampleSource(
                    examples=DrawnExamples(),
                    processor=small.processor,
                    batch_size=8,
                    seed=5,
                    accumulation=accumulation,
                    rank=rank,
                    world_size=world_size,
                )
                ids += source.batch(step * accumulation + part).ids
        return ids

    for step in (0, 2, 3):  # step 2 reaches into the second epoch
        assert shown(step, world_size, accumulation) == shown(step, 1, 1)


def test_a_batch_that_cannot_be_cut_evenly_is_refused(tmp_path: Path, small: Predictor) -> None:
    with pytest.raises(OptionError, match="batch of 8 cannot be divided into 3 equal parts"):
        finetune(small, DrawnExamples(), config(accumulation=3), tmp_path)


def test_examples_may_differ_from_epoch_to_epoch(tmp_path: Path, small: Predictor) -> None:
    asked: list[int] = []

    class Varied(DrawnExamples):
        def in_epoch(self, epoch: int) -> DrawnExamples:
            asked.append(epoch)
            return self

    finetune(small, Varied(), config(num_steps=4), tmp_path)
    assert asked == [0] * 22 + [1] * 10


# Memory and noise


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_give_the_same_gradients_from_less_memory(dropout: float) -> None:
    kept, gradients = [], []
    for checkpointing in (False, True):
        model = tiny_model()
        model.train()
        for block in model.decoder.blocks:
            assert isinstance(block, DecoderBlock)
            block.dropout.p = dropout
        model.decoder.checkpoint_activations = checkpointing
        model.vision_encoder.checkpoint_activations = checkpointing
        inputs = tiny_inputs(model.config, [Row(suffix=4), Row(prefix=9, suffix=2)], pad="right")
        sizes: list[int] = []
        torch.manual_seed(1)

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            total = model(inputs).square().mean()
        kept.append(sum(sizes))
        total.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert kept[1] < 0.4 * kept[0]
    assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_dropout_is_on_attention_and_mlp_outputs_while_training_only(
    tmp_path: Path, small: Predictor
) -> None:
    seen: list[tuple[float, bool]] = []
    block = small.model.decoder.blocks[0]
    assert isinstance(block, DecoderBlock)
    handle = block.dropout.register_forward_hook(
        lambda module, _, __: seen.append((module.p, module.training))
    )
    how = config(llm_dropout=0.25, num_steps=2)
    finetune(small, DrawnExamples(), how, tmp_path / "one")
    handle.remove()
    assert seen == [(0.25, True)] * 4
    assert block.dropout.p == 0.0
    assert not small.model.training


def test_dropout_changes_the_loss_and_is_the_same_each_time(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    runs = []
    for name, rate in (("a", 0.3), ("b", 0.3), ("c", 0.0)):
        torch.manual_seed(ord(name))
        finetune(
            predictor(tiny_tokenizer), DrawnExamples(), config(llm_dropout=rate), tmp_path / name
        )
        runs.append(losses(tmp_path / name))
    assert runs[0] == runs[1] != runs[2]


def test_a_fresh_model_has_no_dropout_even_in_train_mode() -> None:
    model = tiny_model()
    inputs = tiny_inputs(model.config, [Row()])
    with torch.no_grad():
        assert torch.equal(model(inputs), model.train()(inputs))


# Bad examples


class Bad(DrawnExamples):
    """Some cannot be read."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __getitem__(self, index: int) -> Example:
        if index in self.bad:
            raise ImageError(f"picture {index} is damaged")
        return super().__getitem__(index)


def test_g6_a_bad_example_is_an_error_by_default(tmp_path: Path, small: Predictor) -> None:
    with pytest.raises(ImageError, match="picture 3 is damaged"):
        finetune(small, Bad(3), config(), tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_g6_skipped_examples_are_named_once_and_leave_the_others_in_place(
    tmp_path: Path, small: Predictor, num_workers: int
) -> None:
    how = config(num_steps=6, on_bad_record="skip", num_workers=num_workers)
    finetune(small, Bad(3), how, tmp_path)
    (line,) = (tmp_path / "bad_examples.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "3", "reason": "picture 3 is damaged"}
    parts: dict[str, Any] = {"processor": small.processor, "batch_size": 8, "seed": 0}
    for number in range(4):
        good = ExampleSource(examples=DrawnExamples(), **parts).batch(number)
        left = ExampleSource(examples=Bad(3), on_bad_record="skip", **parts).batch(number)
        assert left.ids == tuple(i for i in good.ids if i != "drawn-3")


def test_g6_too_many_bad_examples_are_an_error(tmp_path: Path, small: Predictor) -> None:
    how = config(on_bad_record="skip")
    with pytest.raises(DataError, match="2 of 22 examples cannot be used, more than 1"):
        finetune(small, Bad(1, 2), how, tmp_path / "few")
    finetune(small, Bad(1, 2), config(on_bad_record="skip", max_skipped=0.2), tmp_path / "many")


def test_g6_a_micro_batch_of_bad_examples_alone_teaches_nothing(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    how: dict[str, Any] = {
        "batch_size": 2,
        "on_bad_record": "skip",
        "max_skipped": 0.5,
        "num_steps": 11,
    }
    for accumulation in (1, 2):
        out = tmp_path / str(accumulation)
        how["accumulation"] = accumulation
        finetune(predictor(tiny_tokenizer), Bad(3, 7), config(**how), out)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-6)


def test_no_examples_are_an_error(tmp_path: Path, small: Predictor) -> None:
    class Empty(DrawnExamples):
        def __len__(self) -> int:
            return 0

    with pytest.raises(DataError, match="holds no example"):
        finetune(small, Empty(), config(), tmp_path)


def test_the_model_itself_comes_back_ready_for_use(tmp_path: Path, small: Predictor) -> None:
    model = finetune(small, DrawnExamples(), config(checkpoint_activations=True), tmp_path)
    assert model is small.model
    assert isinstance(model, PaliGemma)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.decoder.checkpoint_activations
