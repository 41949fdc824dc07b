"""TrainConfig: how long, how fast, how often to save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from paligemma.errors import OptionError

Schedule = Literal["constant", "cosine"]
Reduction = Literal["example", "token"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of training.

    `schedule` after a linear warm-up: "constant" stays at the peak, "cosine" falls to
    `final_learning_rate`. The data of step s is a function of (seed, s) only, so a run that was
    stopped goes on exactly where it was.
    """

    num_steps: int
    learning_rate: float
    final_learning_rate: float = 0.0
    vision_learning_rate_scale: float = 1.0
    """Factor on the learning rate of everything named `vision_encoder`: below 1 where the encoder
    already sees and the decoder's first, loud gradients would unlearn it. (arXiv 2407.07726,
    section 3.2.2, warms the encoder's rate up slowly for the same reason.)"""
    warmup_steps: int = 100
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    autocast: bool = True
    batch_size: int = 8
    loss_reduction: Reduction = "example"
    """Mean over rows of each row's mean (big_vision), or over all tokens (transformers)."""
    final_logit_softcap_in_loss: bool = False
    """transformers and Keras cap the logits in the training loss too; big_vision does not."""
    seed: int = 0
    save_every: int = 500
    log_every: int = 25
    num_workers: int = 0
    """Processes that make batches ahead of time; 0: the training process makes them itself."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.learning_rate <= 0:
            raise OptionError(f"The learning rate is {self.learning_rate}; it must be above 0.")
        if self.schedule not in get_args(Schedule):
            raise OptionError(
                f"The schedule is {self.schedule!r}; it must be one of {get_args(Schedule)}."
            )
