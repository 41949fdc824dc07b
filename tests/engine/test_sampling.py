from __future__ import annotations

import math

import pytest
import torch

from paligemma.engine.sampling import GREEDY, Sampling, choose, row_generator
from paligemma.errors import OptionError

BANNED = -math.inf
LOGITS = torch.tensor(
    [
        [0.0, 2.0, 1.0, -1.0, 0.5],
        [BANNED, BANNED, 3.0, BANNED, 2.5],
        [1e4, -1e4, 0.0, 1e4, 1.0],
        [-3e38, 3e38, 0.0, 0.0, 0.0],
    ]
)


def draw(sampler: Sampling, logits: torch.Tensor = LOGITS) -> list[int]:
    return choose(logits, sampler, [row_generator(sampler, r) for r in range(len(logits))]).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-5, 1.0, 2.0, 1e30])
@pytest.mark.parametrize("top_k", [None, 1, 3, 99])
@pytest.mark.parametrize("top_p", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_e6_every_option_gives_an_allowed_token(
    temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    sampler = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    ids = draw(sampler)
    assert all(0 <= token_id < 5 for token_id in ids)
    assert ids[1] in (2, 4)


@pytest.mark.parametrize(
    "sampler",
    [
        GREEDY,
        Sampling(temperature=1e-5),
        Sampling(top_k=1),
        Sampling(top_p=0.0),
        Sampling(temperature=2.0, top_k=1, top_p=0.0),
    ],
)
def test_the_narrowest_sampling_is_greedy(sampler: Sampling) -> None:
    assert [draw(sampler)[row] for row in (0, 1, 3)] == [1, 2, 1]


@pytest.mark.parametrize("value", [math.nan, BANNED])
@pytest.mark.parametrize("sampler", [GREEDY, Sampling(), Sampling(top_k=2, top_p=0.5)])
def test_e6_a_hopeless_row_leaves_the_others_alone(value: float, sampler: Sampling) -> None:
    poisoned = torch.cat([LOGITS[:1], torch.full((1, 5), value), LOGITS[2:]])
    ids = draw(sampler, poisoned)
    assert 0 <= ids[1] < 5
    clean = draw(sampler)
    assert (ids[0], ids[2:]) == (clean[0], clean[2:])


def frequencies(sampler: Sampling, logits: list[float], num_draws: int = 4000) -> list[float]:
    generator = row_generator(sampler, 0)
    rows = torch.tensor(logits).expand(num_draws, -1)
    ids = choose(rows, sampler, [generator] * num_draws)
    return (torch.bincount(ids, minlength=len(logits)) / num_draws).tolist()


def test_draws_follow_the_tempered_distribution() -> None:
    logits = [1.0, 0.0, 2.0, BANNED]
    found = frequencies(Sampling(temperature=2.0, seed=5), logits)
    expected = torch.softmax(torch.tensor(logits) / 2.0, dim=0).tolist()
    assert found == pytest.approx(expected, abs=0.03)
    assert found[3] == 0.0


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.0, {1}), (0.45, {1}), (0.6, {1, 3}), (0.9, {0, 1, 3})]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: set[int]) -> None:
    logits = [math.log(p) for p in (0.15, 0.5, 0.05, 0.3)]
    found = frequencies(Sampling(top_p=top_p, seed=1), logits)
    assert {i for i, f in enumerate(found) if f > 0} == kept


def test_top_k_keeps_the_likeliest_tokens_in_their_proportion() -> None:
    logits = [math.log(p) for p in (0.15, 0.5, 0.05, 0.3)]
    found = frequencies(Sampling(top_k=2, seed=1), logits)
    assert found == pytest.approx([0.0, 0.625, 0.0, 0.375], abs=0.03)


def test_rows_and_seeds_have_their_own_randomness() -> None:
    flat = torch.zeros(1, 10_000)
    ids = {
        int(choose(flat, Sampling(seed=seed), [row_generator(Sampling(seed=seed), row)]))
        for seed in range(5)
        for row in range(5)
    }
    assert len(ids) > 20


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"temperature": True},
        {"top_k": 0},
        {"top_k": 1.5},
        {"top_k": -1},
        {"top_p": -0.01},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 0.5},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Sampling(**options)  # type: ignore[arg-type]
