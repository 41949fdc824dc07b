"""TrainConfig: how long, how fast, how often to save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paligemma.errors import OptionError


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
    already sees and the decoder's first, loud gradients would unlearn it (arXiv 2407.07726,
    section 3.2.2)."""
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    autocast: bool = True
    batch_size: int = 8
    final_logit_softcap_in_loss: bool = False
    """transformers and Keras cap the logits in the training loss too; big_vision does not."""
    seed: int = 0
    save_every: int = 500
    log_every: int = 25

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise OptionError(f"num_steps is {self.num_steps}; training needs at least 1.")
        if self.learning_rate <= 0:
            raise OptionError(f"The learning rate is {self.learning_rate}; it must be above 0.")
