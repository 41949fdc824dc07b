from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from paligemma.engine import generate as generate_module
from paligemma.engine.generate import generate
from paligemma.engine.sampling import (
    GREEDY,
    Allowed,
    Sampling,
    choose_allowed,
    common_range,
    finite_rows,
    mask_bits,
    row_generator,
)
from paligemma.model.kv_cache import Cache
from paligemma.model.paligemma import PaliGemma
from tests.engine.conftest import MadeRows
from tests.tiny import FLOAT32_TOLERANCE

SAMPLERS = [
    GREEDY,
    Sampling(seed=5),
    Sampling(temperature=3.0, seed=6),
    Sampling(temperature=2.0, top_k=4, seed=7),
    Sampling(temperature=2.0, top_k=30, seed=8),
    Sampling(temperature=2.0, top_p=0.8, seed=9),
]
PLACES = range(20, 32)
ROWS: MadeRows = [
    ([2, 5, 9, 6], [], True),
    ([2, 11, 30], [], False),
    ([2, 4, 8, 15], [], True),
]
NEVER = -1


@dataclass(frozen=True)
class Script:
    """Allowed sets in a fixed order, then anything."""

    sets: tuple[Allowed, ...]

    @property
    def allowed(self) -> Allowed:
        return self.sets[0] if self.sets else None

    def advance(self, token_id: int, /) -> Script:
        assert is_in(token_id, self.allowed)
        return Script(self.sets[1:])


def is_in(token_id: int, allowed: Allowed) -> bool:
    if allowed is None or isinstance(allowed, range):
        return allowed is None or token_id in allowed
    if isinstance(allowed, Tensor):
        return token_id < len(bits := mask_bits(allowed)) and bool(bits[token_id])
    return any(token_id == p if isinstance(p, int) else token_id in p for p in allowed)


def choose_rows(
    logits: Tensor,
    sets: Sequence[Allowed],
    sampler: Sampling = GREEDY,
    vocab_range: range | None = None,
) -> tuple[list[int], list[float]]:
    rows = [None if allowed is None else Script((allowed,)) for allowed in sets]
    generators = [row_generator(sampler, n) for n in range(len(rows))]
    chosen = choose_allowed(logits, rows, sampler, generators, vocab_range)
    return chosen.token_ids.tolist(), chosen.logprobs.tolist()


def probabilities_of(logits: Tensor, sets: Sequence[Allowed]) -> list[float]:
    """The probability of the allowed ids in each row."""
    rows = [None if allowed is None else Script((allowed,)) for allowed in sets]
    generators = [row_generator(GREEDY, n) for n in range(len(rows))]
    return choose_allowed(logits, rows, GREEDY, generators).allowed_probabilities.tolist()


def words_of(bits: Tensor) -> Tensor:
    """bool[V] -> int32[ceil(V / 32)], as llguidance packs it."""
    words = []
    for start in range(0, len(bits), 32):
        word = sum(1 << n for n, bit in enumerate(bits[start : start + 32].tolist()) if bit)
        words.append(word - (1 << 32) if word >= 1 << 31 else word)
    return torch.tensor(words, dtype=torch.int32)


def mask_of(allowed: tuple[int | range, ...], length: int = 37) -> Tensor:
    """The same ids as bool[length]."""
    return torch.tensor([is_in(token_id, allowed) for token_id in range(length)])


def random_logits(rows: int, seed: int = 1) -> Tensor:
    return 3 * torch.randn(rows, 37, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_allowed_tokens_are_chosen(sampler: Sampling) -> None:
    sets: list[Allowed] = [PLACES, (1,), (1, PLACES), None, (3, 7, 30), range(36, 37)]
    for seed in range(40):
        ids, _ = choose_rows(random_logits(len(sets), seed), sets, sampler)
        assert all(is_in(token_id, allowed) for token_id, allowed in zip(ids, sets, strict=True))


def test_the_likeliest_allowed_token_is_the_greedy_one() -> None:
    logits = torch.tensor([[0.0, 9.0, 2.0, 5.0, 3.0]])
    assert choose_rows(logits, [None])[0] == [1]
    assert choose_rows(logits, [(0, range(2, 4))])[0] == [3]
    assert choose_rows(logits, [(4, 2)])[0] == [4]


def test_a_row_held_to_a_range_is_judged_by_it_and_any_other_by_all_ids() -> None:
    logits = random_logits(1).repeat(4, 1)
    ids, logprobs = choose_rows(logits, [PLACES, (PLACES,), (1,), None])
    whole = torch.log_softmax(logits[0], dim=0)
    among = torch.log_softmax(logits[0, 20:32], dim=0)
    assert ids[0] == ids[1] == 20 + int(among.argmax())
    assert ids[2] == 1
    assert logprobs == pytest.approx(
        [float(among.max()), float(whole[ids[1]]), float(whole[1]), float(whole.max())], abs=1e-6
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_logits_of_the_places_alone_give_the_same_as_all(sampler: Sampling) -> None:
    sets: list[Allowed] = [PLACES, range(25, 32), range(20, 21), range(22, 30)]
    for seed in range(40):
        logits = random_logits(len(sets), seed)
        ids, logprobs = choose_rows(logits, sets, sampler)
        part_ids, part_logprobs = choose_rows(logits[:, 20:32], sets, sampler, PLACES)
        assert part_ids == ids
        assert part_logprobs == pytest.approx(logprobs, abs=FLOAT32_TOLERANCE)


SETS: list[tuple[int | range, ...]] = [
    (1,),
    (1, PLACES),
    (3, 7, 31, 32, 36),
    (range(0, 37),),
    (range(31, 33), 0),
    (36,),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_masks_give_the_same_as_sets_of_ids(sampler: Sampling) -> None:
    for seed in range(40):
        logits = random_logits(len(SETS) + 1, seed)
        expected = choose_rows(logits, [*SETS, None], sampler)
        bits = [mask_of(allowed) for allowed in SETS]
        assert choose_rows(logits, [*bits, None], sampler) == expected
        assert choose_rows(logits, [*map(words_of, bits), None], sampler) == expected
        mixed = [words_of(bits[0]), SETS[1], bits[2], *SETS[3:], None]
        assert choose_rows(logits, mixed, sampler) == expected


def test_masks_of_another_length_than_the_vocabulary() -> None:
    """A tokenizer may have fewer ids than the model has rows; a mask ends with a whole word."""
    logits = random_logits(1)
    logits[0, 33] = 20.0
    short = torch.ones(20, dtype=torch.bool)
    assert choose_rows(logits, [short])[0][0] == int(logits[0, :20].argmax())
    assert choose_rows(logits, [words_of(short)])[0][0] == int(logits[0, :20].argmax())
    padded = words_of(mask_of((3, 33), 64))
    assert choose_rows(logits, [padded])[0] == [33]


def test_masks_are_unpacked_bit_by_bit() -> None:
    generator = torch.Generator().manual_seed(2)
    for length in (1, 31, 32, 33, 64, 100):
        bits = torch.rand(length, generator=generator) < 0.5
        for start in (0, 1, 31, 32, 40):
            unpacked = mask_bits(words_of(bits), start)
            assert unpacked[: max(0, length - start)].equal(bits[start:])
            assert not unpacked[max(0, length - start) :].any()
            assert mask_bits(bits, start).equal(bits[start:])


def test_the_probability_of_what_is_allowed() -> None:
    logits = random_logits(1).repeat(6, 1)
    whole = torch.softmax(logits[0], dim=0)
    sets: list[Allowed] = [None, PLACES, (1, PLACES), mask_of((5, 6)), (7,), (range(0, 37),)]
    among = float(whole[1] + whole[20:32].sum())
    expected = [1.0, 1.0, among, float(whole[5] + whole[6]), float(whole[7]), 1.0]
    assert probabilities_of(logits, sets) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_mates_change_nothing(sampler: Sampling) -> None:
    logits = random_logits(5)
    generators = [row_generator(sampler, n) for n in range(5)]
    masks = [mask_of((1, PLACES)), words_of(mask_of((7, 36)))]
    sets: list[Allowed] = [PLACES, (1, PLACES), None, *masks]
    batch = choose_rows(logits, sets, sampler)
    for n in range(len(sets)):
        rows = [None if sets[n] is None else Script((sets[n],))]
        alone = choose_allowed(logits[n : n + 1], rows, sampler, [generators[n]])
        assert alone.token_ids.tolist() == [batch[0][n]]
        assert alone.logprobs.tolist() == [batch[1][n]]


def test_a_broken_row_leaves_constrained_mates_alone() -> None:
    for last in ((1, 2), words_of(mask_of((1, 2)))):
        logits = random_logits(3)
        sets: list[Allowed] = [PLACES, PLACES, last]
        clean, probabilities = choose_rows(logits, sets), probabilities_of(logits, sets)
        logits[1] = math.nan
        ids, logprobs = choose_rows(logits, sets)
        assert (ids[0], ids[2], logprobs[0], logprobs[2]) == (
            clean[0][0],
            clean[0][2],
            clean[1][0],
            clean[1][2],
        )
        assert probabilities_of(logits, sets)[2] == probabilities[2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_held_to_a_range_is_as_sound_as_its_range(value: float) -> None:
    logits = random_logits(4)
    logits[:, 22] = value
    masks = [Script((mask_of((1, 25)),)), Script((words_of(mask_of((1, 25))),))]
    rows = [Script((range(23, 30),)), Script((PLACES,)), Script(((1, 25),)), None]
    assert finite_rows(logits, rows) == [True, False, False, False]
    assert finite_rows(logits[:2], masks) == [False, False]
    assert finite_rows(logits[:2, 20:32], rows[:2], PLACES) == [True, False]


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ((), "no id at all"),
        (torch.zeros(37, dtype=torch.bool), "no id at all"),
        (torch.tensor([0, 1 << 8], dtype=torch.int32), "no id at all"),
        (range(5, 5), "allows range"),
        ((37,), "0 to 36"),
        (range(30, 38), "0 to 36"),
        ((-1,), "0 to 36"),
        (range(0, 10, 2), "allows range"),
    ],
)
def test_a_grammar_that_allows_nothing_real_is_found_out(allowed: Allowed, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        choose_rows(random_logits(1), [allowed])


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ([PLACES], PLACES),
        ([PLACES, range(25, 32)], PLACES),
        ([range(30, 31), range(22, 24)], range(22, 31)),
        ([PLACES, (1, PLACES)], None),
        ([PLACES, words_of(mask_of((PLACES,)))], None),
        ([PLACES, None], None),
        ([], None),
    ],
)
def test_the_common_range_holds_every_row_or_there_is_none(
    sets: list[Allowed], expected: range | None
) -> None:
    assert common_range(Script((allowed,)) for allowed in sets) == expected
    assert common_range([None]) is None


SCRIPTS = [
    Script(((1, PLACES), PLACES, range(27, 32), PLACES, (5, 6), (6,))),
    Script((range(20, 24), PLACES, PLACES, range(22, 23), (1, range(3, 19)))),
    Script((PLACES, PLACES)),
]


class WatchedModel(PaliGemma):
    """Remembers the ranges that it was asked for."""

    def decode_step(
        self, token_ids: Tensor, kv_cache: Cache, vocab_range: range | None = None
    ) -> Tensor:
        self.asked = [*getattr(self, "asked", []), vocab_range]
        return super().decode_step(token_ids, kv_cache, vocab_range)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_loop_follows_each_rows_grammar(make_model, make_inputs, sampler: Sampling) -> None:
    rows = generate(
        make_model(),
        make_inputs(ROWS),
        max_new_tokens=8,
        eos_id=NEVER,
        sampler=sampler,
        constraints=[*SCRIPTS[:2], None],
    )
    for row, script in zip(rows, SCRIPTS[:2], strict=False):
        assert len(row.token_ids) == 8
        assert all(map(is_in, row.token_ids, script.sets))
    free = generate(
        make_model(), make_inputs(ROWS), max_new_tokens=8, eos_id=NEVER, sampler=sampler
    )
    assert rows[2].token_ids == free[2].token_ids
    assert rows[0].token_ids != free[0].token_ids


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("max_new_tokens", [8, [8, 3, 5]])
def test_computing_the_places_only_changes_no_result(
    make_model, make_inputs, monkeypatch, sampler: Sampling, max_new_tokens: int | list[int]
) -> None:
    model = make_model()
    model.__class__ = WatchedModel
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos_id": NEVER,
        "sampler": sampler,
        "constraints": SCRIPTS,
    }
    found = generate(model, make_inputs(ROWS), **options)
    assert model.asked[0] == PLACES
    assert None in model.asked
    monkeypatch.setattr(generate_module, "common_range", lambda constraints: None)
    model.asked = []
    full = generate(model, make_inputs(ROWS), **options)
    assert set(model.asked) == {None}
    for row, expected in zip(found, full, strict=True):
        assert row.token_ids == expected.token_ids
        assert row.logprobs == pytest.approx(expected.logprobs, abs=FLOAT32_TOLERANCE)


def test_a_row_has_the_same_logprobs_alone_and_among_rows_that_need_all_logits(
    make_model, make_inputs
) -> None:
    model = make_model()
    options: dict[str, Any] = {"max_new_tokens": 5, "eos_id": NEVER}
    batch = generate(model, make_inputs(ROWS), constraints=[None, SCRIPTS[1], None], **options)[1]
    alone = generate(model, make_inputs(ROWS[1:2]), constraints=[SCRIPTS[1]], **options)[0]
    assert batch.token_ids == alone.token_ids
    assert batch.logprobs == pytest.approx(alone.logprobs, abs=FLOAT32_TOLERANCE)


def test_an_ended_row_no_longer_widens_what_is_computed(make_model, make_inputs) -> None:
    model = make_model()
    model.__class__ = WatchedModel
    places = Script((PLACES,) * 6)
    generate(
        model,
        make_inputs(ROWS),
        max_new_tokens=[6, 2, 6],
        eos_id=NEVER,
        constraints=[places, Script((PLACES, (1, 2))), places],
    )
    assert model.asked == [None, PLACES, PLACES, PLACES, PLACES]
