"""TrainConfig: how long, how fast, what with, how often to save. Knows no model and no data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from paligemma.errors import OptionError

Schedule = Literal["constant", "cosine", "rsqrt"]
Reduction = Literal["example", "token"]
Optimizer = Literal["adamw", "sgd"]
WeightDecayKind = Literal["adamw", "big_vision"]
OnNonFinite = Literal["stop", "skip"]
OnBadExample = Literal["error", "skip"]
BestMode = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of training.

    The length is `num_steps`, or `epochs` where the number of examples is known (`resolved`).
    The data and the dropout of step s are functions of (seed, s) only, so a run that was stopped
    goes on exactly where it was.
    """

    num_steps: int | None = None
    epochs: float | None = None
    learning_rate: float
    final_learning_rate: float = 0.0
    vision_learning_rate_scale: float = 1.0
    """Factor on the learning rate of everything named `vision_encoder`: below 1 where the encoder
    already sees and the decoder's first, loud gradients would unlearn it. (arXiv 2407.07726,
    section 3.2.2, warms the encoder's rate up slowly for the same reason.)"""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None: 5 % of all steps, as in big_vision's transfer configs."""
    schedule: Schedule = "cosine"
    """After the warm-up: "constant" stays at the peak, "cosine" falls to `final_learning_rate`,
    "rsqrt" falls as sqrt(warmup_steps / step) and has no end (arXiv 2407.07726, section 3.2.6)."""
    optimizer: Optimizer = "adamw"
    """Or plain "sgd" without momentum, which keeps no state: big_vision's recipes for one small
    GPU use it, at rates of 0.03 to 0.1."""
    weight_decay: float = 0.0
    weight_decay_kind: WeightDecayKind = "adamw"
    """"adamw": a step shrinks every matrix by learning rate times `weight_decay`. "big_vision": a
    step shrinks the kernels of vision encoder and projector, and nothing of the decoder, by
    `weight_decay` times the schedule alone (1 at the peak, whatever the learning rate); the
    transfer table of arXiv 2407.07726, appendix J, is written in these (`big_vision/optax.py`)."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    """Largest norm of the gradient of all trained weights together; None: no limit."""
    autocast: bool = True
    """Multiply matrices in bfloat16 while weights stay as they are."""
    master_weights: bool = False
    """Keep a float32 copy of weights that are bfloat16: updates too small for bfloat16 add up."""
    batch_size: int = 8
    """Examples a step, over all processes and micro-batches together."""
    accumulation: int = 1
    """Micro-batches a step: as many times less memory, the same loss."""
    loss_reduction: Reduction = "example"
    """Mean over rows of each row's mean (big_vision), or over all tokens (transformers)."""
    label_smoothing: float = 0.0
    """The true token's target is 1 - this, the others share it evenly."""
    llm_dropout: float = 0.0
    """Rate on the attention output and on the MLP output of every decoder block."""
    final_logit_softcap_in_loss: bool = False
    """transformers and Keras cap the logits in the training loss too; big_vision does not."""
    checkpoint_activations: bool = False
    """Compute every block once more in the backward pass instead of keeping what it computed."""
    frozen: tuple[str, ...] = ()
    """Names of parameters that stay as they are, with * for anything: ("decoder.embedding.*",)."""
    seed: int = 0
    save_every: int = 500
    keep_last: int = 2
    """Checkpoints kept beside the best one."""
    validate_every: int | None = None
    """Steps between validations; None: once an epoch, and at the end."""
    best_metric: str | None = None
    """The metric of validation whose best checkpoint is kept."""
    best_mode: BestMode = "max"
    log_every: int = 25
    """Steps between calls of `on_log`; the log file has every step."""
    num_workers: int = 0
    """Processes that make batches ahead of time; 0: the training process makes them itself."""
    on_non_finite: OnNonFinite = "stop"
    """What follows a loss or gradient of NaN or infinity: stop, or drop that step's update and
    write down its examples."""
    on_bad_example: OnBadExample = "error"
    """What follows an example that cannot be used: an error, or going on without it and writing it
    down. The other examples keep their places."""
    max_bad_share: float = 0.01
    """More bad examples than this (and more than one) are an error all the same."""
    strict_resume: bool = False
    """A damaged newest checkpoint is an error, instead of a warning and the one before it."""

    def __post_init__(self) -> None:
        if (self.num_steps is None) == (self.epochs is None):
            raise OptionError(
                f"num_steps is {self.num_steps} and epochs is {self.epochs}; give one of the two."
            )
        for name in ("num_steps", "batch_size", "accumulation", "save_every", "keep_last",
                     "validate_every", "log_every"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; it must be at least 1.")
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
            "on_bad_example": OnBadExample,
            "best_mode": BestMode,
        }
        for name, choice in choices.items():
            if (value := getattr(self, name)) not in get_args(choice):
                raise OptionError(f"{name} is {value!r}; it must be one of {get_args(choice)}.")

    @property
    def total_steps(self) -> int:
        """Raises OptionError while the length is known in epochs only."""
        if self.num_steps is None:
            raise OptionError(
                f"The length is {self.epochs} epochs; how many steps that is depends on the data. "
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
        """With the length in steps: enough to see every example `epochs` times.

        >>> TrainConfig(epochs=3, learning_rate=1e-5, batch_size=8).resolved(100).num_steps
        38
        """
        if self.epochs is None:
            return self
        num_steps = max(1, math.ceil(self.epochs * num_examples / self.batch_size))
        return replace(self, num_steps=num_steps, epochs=None)
