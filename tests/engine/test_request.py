from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from paligemma.engine.image_cache import KeyedImage
from paligemma.engine.request import Request, RequestState
from paligemma.engine.sampling import Allowed
from paligemma.errors import InputError, OptionError, PromptError
from tests.tiny import Row, tiny_config, tiny_inputs

IDS = torch.tensor([0, 2, 9])
NO_IMAGE = torch.tensor([False, False, False])


def request(**options: Any) -> Request:
    given: dict[str, Any] = {
        "token_ids": IDS,
        "image_mask": NO_IMAGE,
        "max_new_tokens": 3,
        "eos_id": 1,
    }
    return Request(**(given | options))


def state(**options: Any) -> RequestState:
    return RequestState(request_id=4, request=request(**options), vocab_size=20)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("token_ids", [0, 2, 9], PromptError),
        ("token_ids", IDS.int(), PromptError),
        ("token_ids", IDS[None], PromptError),
        ("token_ids", IDS[:0], PromptError),
        ("image_mask", NO_IMAGE[:2], PromptError),
        ("image_mask", NO_IMAGE.long(), PromptError),
        ("image_mask", None, PromptError),
        ("images", [], PromptError),
        ("images", (torch.zeros(3, 4, 4),), PromptError),
        ("max_new_tokens", 0, OptionError),
        ("max_new_tokens", True, OptionError),
        ("max_new_tokens", 2.0, OptionError),
        ("max_new_tokens", None, OptionError),
        ("eos_id", "1", OptionError),
        ("eos_id", None, OptionError),
        ("row_number", 0.0, OptionError),
        ("client", None, OptionError),
        ("sampler", 0.7, OptionError),
        ("sampler", None, OptionError),
        ("should_stop", "\n", OptionError),
        ("deadline", "soon", OptionError),
        ("deadline", float("nan"), OptionError),
    ],
)
def test_what_cannot_be_a_request_is_refused_by_name(
    name: str, value: object, error: type[InputError]
) -> None:
    with pytest.raises(error, match=name):
        request(**{name: value})


def test_a_row_of_a_batch_becomes_a_request_without_its_pads() -> None:
    inputs = tiny_inputs(tiny_config(), [Row(images=(1, 0), prefix=9), Row(images=(1,), prefix=4)])
    images = [KeyedImage(pixel_values=pixels) for pixels in inputs.required_pixel_values]
    made = Request.from_row(inputs, 1, images, max_new_tokens=3, eos_id=1)
    assert made.token_ids.tolist() == inputs.token_ids[1, -29:].tolist()
    assert made.image_mask.tolist() == [True] * 25 + [False] * 4
    assert made.images == (images[1],)
    assert made.num_positions == 32


def test_a_request_ends_at_its_eos_its_stop_or_its_length() -> None:
    made = state()
    made.accept(5, -0.5)
    assert made.stop_reason is None
    made.accept(1, -0.25)
    assert str(made.stop_reason) == "eos"
    assert (made.token_ids, made.logprobs) == ([5, 1], [-0.5, -0.25])
    made = state(should_stop=lambda ids: ids == [5, 6])
    made.accept(5, 0.0)
    assert made.stop_reason is None
    made.accept(6, 0.0)
    assert made.stop_reason == "stop"
    made = state(max_new_tokens=1)
    made.accept(5, 0.0)
    assert made.stop_reason == "length"
    made = state(max_new_tokens=1, should_stop=lambda ids: True)
    made.accept(1, 0.0)
    assert made.stop_reason == "eos"


def test_an_exception_of_its_own_callback_ends_it_and_is_kept() -> None:
    def should_stop(ids: list[int]) -> bool:
        raise KeyError("mine")

    made = state(should_stop=should_stop)
    made.accept(5, -0.5)
    assert made.stop_reason == "failed"
    assert isinstance(made.error, KeyError)
    assert made.token_ids == [5]


@dataclass(frozen=True)
class Fixed:
    """Allows `allowed` now and `later` after any token."""

    allowed: Allowed
    later: Allowed = None

    def advance(self, token_id: int, /) -> Fixed:
        return Fixed(self.later)


GOOD = [None, range(3, 9), range(20), (3, 5), (1, range(4, 6))]
BAD = [
    (),
    range(0),
    range(5, 5),
    range(18, 21),
    (19, 20),
    (-1, 3),
    (4, range(7, 21)),
    range(0, 9, 2),
]


@pytest.mark.parametrize("allowed", GOOD)
def test_a_constraint_within_the_vocabulary_is_followed(allowed: Allowed) -> None:
    made = state(constraint=Fixed(range(9), later=allowed))
    made.accept(5, 0.0)
    assert made.stop_reason is None
    assert made.constraint == Fixed(allowed)


def words(*ids: int) -> Tensor:
    """A mask of one word per 32 ids."""
    bits = torch.zeros(64, dtype=torch.int64)
    bits[list(ids)] = 1
    return (bits.reshape(2, 32) << torch.arange(32)).sum(dim=1).to(torch.int32)


GOOD_MASKS = [words(0), words(3, 19), torch.ones(20, dtype=torch.bool), words(7)[:1]]
BAD_MASKS = [words(), words(3, 20), words(40), torch.ones(21, dtype=torch.bool)]


@pytest.mark.parametrize("mask", GOOD_MASKS)
def test_a_mask_within_the_vocabulary_is_followed(mask: Tensor) -> None:
    made = state(constraint=Fixed(range(9), later=mask))
    made.accept(5, 0.0)
    assert made.stop_reason is None


@pytest.mark.parametrize("allowed", [*BAD, *BAD_MASKS])
def test_a_constraint_beyond_the_vocabulary_is_refused_when_it_shows(allowed: Allowed) -> None:
    with pytest.raises(OptionError, match="ids 0 to 19"):
        state(constraint=Fixed(allowed))
    made = state(constraint=Fixed(range(9), later=allowed))
    made.accept(5, 0.0)
    assert made.stop_reason == "failed"
    assert isinstance(made.error, OptionError)
