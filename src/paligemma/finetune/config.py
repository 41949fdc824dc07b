"""TrainConfig: how long, how fast and with what to train, and how often to save."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch

from paligemma.errors import OptionError, check_choice, check_whole

Method = Literal["full", "frozen-encoder", "lora", "qlora"]
"""Which weights training changes: all, all but the vision encoder's, or those of adapters."""
Schedule = Literal["constant", "cosine", "rsqrt"]
Reduction = Literal["example", "token"]
Optimizer = Literal["adamw", "muon", "sgd"]
WeightDecayKind = Literal["adamw", "big_vision"]
OnNonFinite = Literal["stop", "skip"]
OnBadRecord = Literal["error", "skip"]
BestMode = Literal["max", "min"]

LEARNING_RATES: Mapping[Method, Mapping[str, float]] = MappingProxyType(
    {
        "full": MappingProxyType({"3b": 1e-5, "10b": 1e-6, "28b": 1e-6}),
        "frozen-encoder": MappingProxyType({"3b": 1e-5, "10b": 1e-6, "28b": 1e-6}),
        "lora": MappingProxyType({"3b": 1e-4, "10b": 1e-5, "28b": 1e-5}),
        "qlora": MappingProxyType({"3b": 1e-4, "10b": 1e-5, "28b": 1e-5}),
    }
)
"""Default peak learning rates by method and size.

Full fine-tuning: 1e-5 for 3B (arXiv 2407.07726, section 6.2); for 10B and 28B the median of the
best rates of 47 and 41 transfers (arXiv 2412.03555, table 14; PaliGemma 2 3B itself: 3e-6, one step
of the sweep below). Freezing the encoder changes neither. No paper trains adapters on PaliGemma:
their rates are ten times those of full fine-tuning, the ratio that arXiv 2405.09673 (section 5)
finds between the best rates of the two."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products, which are faster than float32.

    Processors without them compute such products twenty times more slowly.
    """
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16", True) or capabilities.get("amx_bf16"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of training.

    The length is `num_steps`, or `epochs` where the number of examples is known (`resolved`).
    The data and the dropout of step s depend on (seed, s) only, so a run that was stopped
    continues exactly where it was.
    """

    num_steps: int | None = None
    """Number of optimizer steps."""
    epochs: float | None = None
    """Number of passes over the data, instead of a number of steps."""
    learning_rate: float
    """Peak learning rate."""
    final_learning_rate: float = 0.0
    """Learning rate at the end of the cosine schedule."""
    vision_learning_rate_scale: float = 1.0
    """Factor on the learning rate of everything named `vision_encoder`: below 1 where the encoder
    is trained already and large early gradients of the decoder would damage it. (arXiv 2407.07726,
    section 3.2.2, warms the encoder's rate up slowly for the same reason.)"""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None: 5 % of all steps, as in big_vision's transfer configs."""
    schedule: Schedule = "cosine"
    """After the warm-up: "constant" stays at the peak, "cosine" falls to `final_learning_rate`,
    "rsqrt" falls as sqrt(warmup_steps / step) and has no end (arXiv 2407.07726, section 3.2.6)."""
    optimizer: Optimizer = "adamw"
    """"adamw"; "muon", which takes steps of orthogonalized momentum for the matrices of blocks, and
    AdamW's for the rest; or "sgd" without momentum, which keeps no state: big_vision's recipes for
    one small GPU use it, at rates of 0.03 to 0.1."""
    weight_decay: float = 0.0
    """Weight decay of matrices; vectors have none."""
    weight_decay_kind: WeightDecayKind = "adamw"
    """"adamw": each step shrinks every matrix by learning rate times `weight_decay`. "big_vision":
    each step shrinks the kernels of vision encoder and projector, and nothing of the decoder, by
    `weight_decay` times the schedule alone (1 at the peak, whatever the learning rate); the
    transfer table of arXiv 2407.07726, appendix J, is written in these (`big_vision/optax.py`)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    clip_norm: float | None = 1.0
    """Maximum norm of the gradient of all trained weights together; None: no limit."""
    autocast: bool = True
    """Multiply matrices in bfloat16; weights keep their dtype."""
    master_weights: bool = False
    """Keep float32 copies of bfloat16 weights, so that updates too small for bfloat16 add up."""
    batch_size: int = 8
    """Examples per step, over all processes and micro-batches together."""
    accumulation: int = 1
    """Gradient-accumulation steps: micro-batches per step. More need less memory, for the same
    loss."""
    loss_reduction: Reduction = "example"
    """Mean over rows of each row's mean (big_vision), or over all tokens (transformers)."""
    label_smoothing: float = 0.0
    """Label-smoothing factor: the true token's target is 1 minus it, the others share it evenly."""
    llm_dropout: float = 0.0
    """Dropout on the attention output and on the MLP output of every decoder block."""
    final_logit_softcap_in_loss: bool = False
    """Cap the logits in the training loss, as transformers and Keras do and big_vision does not."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass to save memory."""
    frozen: tuple[str, ...] = ()
    """Names of parameters to leave unchanged, with * as wildcard: ("decoder.embedding.*",)."""
    seed: int = 0
    """Random seed of data order, dropout and adapters."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep_last: int = 2
    """Number of checkpoints to keep in addition to the best one."""
    validate_every: int | None = None
    """Steps between validations; None: once per epoch, and at the end."""
    best_metric: str | None = None
    """Validation metric whose best checkpoint is kept."""
    best_mode: BestMode = "max"
    """Whether more ("max") or less ("min") of `best_metric` is better."""
    log_every: int = 25
    """Steps between calls of `on_log`; the log file has every step."""
    num_workers: int = 0
    """Data loader processes; 0: the training process prepares the batches itself."""
    on_non_finite: OnNonFinite = "stop"
    """What to do on a loss or gradient of NaN or infinity: stop, or skip that step's update and
    log its examples."""
    on_bad_record: OnBadRecord = "error"
    """What to do with invalid records: raise an error, or skip and log them. The other examples
    keep their places in the order."""
    max_skipped: float = 0.01
    """Maximum share of bad records that may be skipped; one is always allowed."""
    strict_resume: bool = False
    """Raise an error when the newest checkpoint is damaged, instead of a warning and a resume from
    the one before it."""

    def __post_init__(self) -> None:
        if (self.num_steps is None) == (self.epochs is None):
            raise OptionError(
                f"num_steps is {self.num_steps} and epochs is {self.epochs}; give one of the two."
            )
        for name in ("num_steps", "batch_size", "accumulation", "save_every", "keep_last",
                     "validate_every", "log_every"):  # fmt: skip
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value)
        for name in ("learning_rate", "epochs", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"{name} is {value}; it must be above 0.")
        for name in ("label_smoothing", "llm_dropout"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise OptionError(f"{name} is {value}; it must be at least 0 and below 1.")
        choices = {
            "schedule": Schedule,
            "optimizer": Optimizer,
            "weight_decay_kind": WeightDecayKind,
            "loss_reduction": Reduction,
            "on_non_finite": OnNonFinite,
            "on_bad_record": OnBadRecord,
            "best_mode": BestMode,
        }
        for name, choice in choices.items():
            check_choice(name, getattr(self, name), choice)

    @property
    def total_steps(self) -> int:
        """Raises OptionError while the length is known in epochs only."""
        if self.num_steps is None:
            raise OptionError(
                f"The length is {self.epochs} epochs; the number of steps depends on the data. "
                "Use resolved(num_examples)."
            )
        return self.num_steps

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round(0.05 * self.total_steps)

    def resolved(self, num_examples: int) -> TrainConfig:
        """The same config with its length in steps: enough to see every example `epochs` times.

        >>> TrainConfig(epochs=3, learning_rate=1e-5, batch_size=8).resolved(100).num_steps
        38
        """
        if self.epochs is None:
            return self
        num_steps = max(1, math.ceil(self.epochs * num_examples / self.batch_size))
        return replace(self, num_steps=num_steps, epochs=None)
