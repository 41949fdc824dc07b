"""finetune: a model and examples -> the same model, adapted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paligemma.errors import CheckpointError, DataError, OptionError, check_choice
from paligemma.finetune.batches import ExampleBatch, ExampleSource
from paligemma.finetune.config import Method, TrainConfig
from paligemma.finetune.distributed import World, shard, whole_weights
from paligemma.finetune.examples import Examples
from paligemma.finetune.loss import loss_count, suffix_loss
from paligemma.finetune.optim import freeze
from paligemma.finetune.state import folder_weights
from paligemma.finetune.trainer import Objective, train
from paligemma.inputs import ModelInputs
from paligemma.model.gemma import DecoderBlock
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor

_ADAPTER_METHODS = ("lora", "qlora")
_ADAPTER_FACT = "marked"
"""The adapter methods in the settings of checkpoints: the word of older runs, to resume them."""
BAD_NAME = "bad_examples.jsonl"


def finetune(
    predictor: Predictor,
    examples: Examples,
    config: TrainConfig,
    out: Path,
    *,
    method: Method = "full",
    validate: Callable[[], Mapping[str, float]] | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> PaliGemma | None:
    """Train the predictor's model in place; the same `out` again resumes. See `trainer.train`.

    `method` "full" trains all weights, "frozen-encoder" all but the vision encoder's, "lora" and
    "qlora" those that already require a gradient: adapters that were added. `config.frozen`
    excludes more. `settings` are further facts (JSON values) that must be the same when a run is
    resumed; the number of examples, and their `fingerprint` where they have one, always must.

    Several processes (`distributed.joined`) share the work: each holds a shard of the weights, and
    afterwards the model is complete in none of them. The first process returns a complete copy on
    the host; with adapters it returns None, and `restore` loads the trained weights. All processes
    call `validate`, which must do the same in each. A single process returns the predictor's model.

    Raises OptionError unless trained weights are float32: at usual learning rates nearly every
    update would be lost to the rounding of bfloat16. Autocast still computes in bfloat16. With
    `config.master_weights` a bfloat16 model is trained through a float32 copy.

    >>> predictor = paligemma.load("google/paligemma2-3b-pt-224", weights=Plain("float32"))
    >>> examples = ExampleFile.open("train.jsonl")
    >>> finetune(predictor, examples, TrainConfig(epochs=3, learning_rate=1e-5), Path("run"))
    >>> predictor.save("my-model")
    """
    model = predictor.model
    _choose(model, method, config)
    config = config.resolved(len(examples))
    facts = {
        "method": _ADAPTER_FACT if method in _ADAPTER_METHODS else method,
        "num_examples": len(examples),
        "data": getattr(examples, "fingerprint", None),
        **(settings or {}),
    }
    world = World.current()
    source = ExampleSource(
        examples=examples,
        processor=predictor.processor,
        batch_size=config.batch_size,
        seed=config.seed,
        accumulation=config.accumulation,
        rank=world.rank,
        world_size=world.size,
        on_bad_record=config.on_bad_record,
    )
    learner = Learner(model, config, BadExamples(out, len(examples), config, world))
    if world.size > 1:
        if config.master_weights:
            model.float()  # the master copies are sharded
        shard(learner, model, bfloat16=config.master_weights)
    _set_up(model, dropout=config.llm_dropout, checkpointing=config.checkpoint_activations)
    try:
        train(
            learner,
            source,
            learner.objective(validate),
            replace(config, master_weights=config.master_weights and world.size == 1),
            out,
            settings=facts,
            steps_per_epoch=len(examples) / config.batch_size,
            on_log=on_log,
        )
    finally:
        _set_up(model, dropout=0.0, checkpointing=False)
        model.eval().requires_grad_(False)
    if world.size == 1:
        return model
    if method in _ADAPTER_METHODS:
        return None
    weights = whole_weights(model, world)
    if not world.is_first:
        return None
    with torch.device("meta"):
        copy = PaliGemma(model.config)
    copy.load_state_dict(weights, assign=True)
    return copy.eval().requires_grad_(False)


class Learner(nn.Module):
    """The model with its loss, called once per micro-batch; the unit that is sharded."""

    def __init__(self, model: PaliGemma, config: TrainConfig, bad: BadExamples) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.bad = bad

    def forward(self, batch: ExampleBatch) -> Tensor:
        """The loss, summed over what `loss_count` counts; 0 where nothing counts."""
        inputs = batch.inputs.to(self.model.device)
        hidden = self.model.hidden_states(inputs, image_tokens=self._image_tokens(inputs))
        if loss_count(batch.inputs, self.config.loss_reduction) == 0:
            return 0.0 * hidden.sum()
        total, _ = suffix_loss(
            self.model.decoder,
            hidden,
            inputs,
            reduction=self.config.loss_reduction,
            final_logit_softcap=self.config.final_logit_softcap_in_loss,
            label_smoothing=self.config.label_smoothing,
        )
        return total

    def _image_tokens(self, inputs: ModelInputs) -> Tensor:
        """The tokens of the batch's images; of a blank image that is not used, for text alone.

        Processes gather weights and add up gradients together, so all must compute the same
        modules in the same order. The encoder's gradient is then 0 instead of absent, however a
        step is divided.
        """
        pixels = inputs.required_pixel_values
        if len(pixels) == 0:
            pixels = pixels.new_zeros(1, *pixels.shape[1:])
        return self.model.embed_images(pixels)

    def objective(
        self, validate: Callable[[], Mapping[str, float]] | None = None
    ) -> Objective[ExampleBatch]:
        return Objective(
            losses=lambda batch: {"loss": self(batch)},
            count=self._count,
            num_tokens=lambda batch: int(batch.inputs.input_mask.sum()),
            ids=lambda batch: batch.ids,
            validate=validate,
        )

    def _count(self, batch: ExampleBatch) -> float:
        self.bad.add(batch)
        return loss_count(batch.inputs, self.config.loss_reduction)


def restore(model: PaliGemma, folder: Path) -> None:
    """Load the weights of a checkpoint folder (`state.best_folder(out)`) into a model, in place.

    Frozen parts are not in the checkpoint and stay as they are. Raises CheckpointError when the
    weights do not belong to the model.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in folder_weights(folder).items():
        parameter = parameters.get(name.removeprefix("model."))
        if parameter is None or parameter.shape != tensor.shape:
            raise CheckpointError(
                f"{folder} holds {name} of shape {tuple(tensor.shape)}, which the model does not "
                "have. Use the model that the run started from, with the same adapters."
            )
        with torch.no_grad():
            parameter.copy_(tensor)


class BadExamples:
    """The examples that were left out, each counted once and listed in a file."""

    def __init__(self, out: Path, num_examples: int, config: TrainConfig, world: World) -> None:
        name = BAD_NAME if world.is_first else f"{world.rank}.{BAD_NAME}"
        self.path = out / name
        self.max_bad = max(1, int(config.max_skipped * num_examples))
        self.num_examples = num_examples
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.ids = {json.loads(line)["id"] for line in lines if line.endswith("}")}

    def add(self, batch: ExampleBatch) -> None:
        """Raises DataError when there are more bad examples than the config allows."""
        for bad in batch.bad:
            if bad.example_id not in self.ids:
                self.ids.add(bad.example_id)
                with self.path.open("a", encoding="utf-8") as file:
                    line = {"id": bad.example_id, "reason": bad.reason}
                    file.write(json.dumps(line) + "\n")
        if len(self.ids) > self.max_bad:
            raise DataError(
                f"{len(self.ids)} of {self.num_examples} examples cannot be used, more than "
                f"{self.max_bad}; {self.path} lists them. Fix them, or raise max_skipped."
            )


def _choose(model: PaliGemma, method: Method, config: TrainConfig) -> None:
    check_choice("method", method, Method)
    if method not in _ADAPTER_METHODS:
        if not all(isinstance(block, DecoderBlock) for block in model.decoder.blocks):
            raise OptionError(
                "The model's weights are packed for speed and cannot be trained. Load it with "
                "weights=Plain('float32')."
            )
        model.requires_grad_(True)
    elif all(parameter.requires_grad for parameter in model.parameters()):
        raise OptionError(
            f"Method {method!r} trains only an adapter's weights, but every weight of this model "
            "is trainable. Add an adapter to the model first, or use method='full'."
        )
    if method == "frozen-encoder":
        freeze(model, ["vision_encoder.*"])
    freeze(model, config.frozen)
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad} - {torch.float32}
    if dtypes and not config.master_weights:
        raise OptionError(
            f"Trained weights are {dtypes.pop()}, but training needs float32. Load the model "
            "with weights=Plain('float32'), or set master_weights, which keeps a float32 copy."
        )


def _set_up(model: PaliGemma, *, dropout: float, checkpointing: bool) -> None:
    for block in model.decoder.blocks:
        if isinstance(block, DecoderBlock):
            block.dropout.p = dropout
    model.decoder.checkpoint_activations = checkpointing
    model.vision_encoder.checkpoint_activations = checkpointing
