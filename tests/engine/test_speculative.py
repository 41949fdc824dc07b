from __future__ import annotations

import collections
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from paligemma.engine.constraint import Allowed
from paligemma.engine.generate import GeneratedRow, generate
from paligemma.engine.sampling import GREEDY, Sampling, distribution
from paligemma.engine.speculative import (
    DraftModel,
    PromptLookup,
    SpeculativeRow,
    _Guess,
    _LookupGuesser,
    _settle,
    generate_speculative,
)
from paligemma.errors import OptionError
from paligemma.model.kv_cache import Cache
from paligemma.model.paligemma import PaliGemma

NEVER = -1
ROWS = [
    ([2, 5, 9, 6, 5, 9], [], True),
    ([2, 11, 30], [], False),
    ([2, 4, 8, 15, 16, 23, 4, 8], [], True),
]


@dataclass(frozen=True)
class Script:
    """Allowed sets in a fixed order, then anything."""

    sets: tuple[Allowed, ...]

    @property
    def allowed(self) -> Allowed:
        return self.sets[0] if self.sets else None

    def advance(self, token_id: int, /) -> Script:
        return Script(self.sets[1:])


def other_model(make_model, **options) -> PaliGemma:
    """Same shape, weights of its own."""
    model = make_model(**options)
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model


def make_draft(kind: str, model: PaliGemma, make_model) -> DraftModel | PromptLookup:
    if kind == "lookup":
        return PromptLookup()
    return DraftModel(
        model={
            "itself": lambda: model,
            "near": lambda: other_model(make_model),
            "unrelated": lambda: make_model(gemma2=False, sliding_window=3),
        }[kind]()
    )


def assert_same(found: list[SpeculativeRow], expected: list[GeneratedRow]) -> None:
    for row, plain in zip(found, expected, strict=True):
        assert row.token_ids == plain.token_ids
        assert row.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
        assert row.stop_reason == plain.stop_reason


DRAFTS = ["itself", "near", "unrelated", "lookup"]


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("num_draft_tokens", [1, 4, 20])
@pytest.mark.parametrize("model_options", [{}, {"gemma2": False}, {"sliding_window": 5}])
def test_greedy_ids_are_those_of_the_plain_loop(
    make_model, make_inputs, kind: str, num_draft_tokens: int, model_options: dict[str, object]
) -> None:
    model = make_model(**model_options)
    options = {"max_new_tokens": [14, 1, 9], "eos_id": NEVER}
    found = generate_speculative(
        model,
        make_inputs(ROWS),
        draft=make_draft(kind, model, make_model),
        num_draft_tokens=num_draft_tokens,
        **options,
    )
    assert_same(found, generate(model, make_inputs(ROWS), **options))
    assert all(row.num_passes == len(row.token_ids) - row.num_accepted for row in found)
    assert all(row.num_accepted <= row.num_guessed for row in found)


@pytest.mark.parametrize("kind", DRAFTS)
def test_rows_end_where_they_end_in_the_plain_loop(make_model, make_inputs, kind: str) -> None:
    model = make_model()
    whole = generate(model, make_inputs(ROWS), max_new_tokens=12, eos_id=NEVER)
    draft = make_draft(kind, model, make_model)
    for eos_id, should_stop in [
        (whole[0].token_ids[4], None),
        (whole[2].token_ids[7], None),
        (NEVER, lambda row, ids: len(ids) == 3 + 2 * row),
    ]:
        options = {"max_new_tokens": 12, "eos_id": eos_id, "should_stop": should_stop}
        found = generate_speculative(model, make_inputs(ROWS), draft=draft, **options)
        assert_same(found, generate(model, make_inputs(ROWS), **options))


@pytest.mark.parametrize("sampler", [GREEDY, Sampling(seed=3), Sampling(top_k=5, top_p=0.9)])
def test_what_the_model_itself_guesses_is_always_right(
    make_model, make_inputs, sampler: Sampling
) -> None:
    model = make_model()
    rows = generate_speculative(
        model,
        make_inputs(ROWS),
        draft=DraftModel(model=model),
        max_new_tokens=16,
        eos_id=NEVER,
        sampler=sampler,
    )
    for row in rows:
        # One by the prefill, then three passes of four guesses and one token more.
        assert len(row.token_ids) == 16
        assert (row.num_passes, row.num_guessed, row.num_accepted) == (4, 12, 12)


def test_text_that_repeats_the_prompt_takes_few_passes(make_model, make_inputs) -> None:
    prompt = [2, 5, 9, 6, 31, 8, 4, 20, 21]
    copied = Script(tuple((token_id,) for token_id in [5, 9, 6, 31, 8, 4, 20, 21] * 2))
    (row,) = generate_speculative(
        make_model(),
        make_inputs([(prompt, [], True)]),
        draft=PromptLookup(),
        max_new_tokens=16,
        eos_id=NEVER,
        constraints=[copied],
    )
    assert list(row.token_ids) == prompt[1:] * 2
    assert (row.num_passes, row.num_guessed, row.num_accepted) == (4, 12, 12)


@pytest.mark.parametrize(
    ("token_ids", "max_run", "expected"),
    [
        ([7, 8], 3, [9, 5, 8]),  # the longest run first
        ([5, 8], 3, [11, 6, 8]),
        ([4, 8], 3, [12, 4, 8]),  # then a shorter one, in its last place
        ([7, 8], 1, [12, 7, 8]),
        ([30, 31, 30, 31], 3, [30, 31, 30]),  # in the output, and on as it repeats
        ([33], 3, []),
    ],
)
def test_a_text_is_guessed_to_go_on_as_before(
    make_inputs, token_ids: list[int], max_run: int, expected: list[int]
) -> None:
    inputs = make_inputs([([2, 7, 8, 9, 5, 8, 11, 6, 8, 12], [], True)])
    guesser = _LookupGuesser(PromptLookup(max_run=max_run), inputs)
    guesses = guesser.guess(token_ids, None, 3)
    assert [guess.token_id for guess in guesses] == expected
    assert guesser.guess(token_ids, None, 0) == []


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("sampler", [GREEDY, Sampling(temperature=2.0, seed=1)])
def test_grammars_hold(make_model, make_inputs, kind: str, sampler: Sampling) -> None:
    places = range(20, 32)
    sets: tuple[Allowed, ...] = ((1, places), places, range(25, 32), places, (5, 6, 7), (5, 8)) * 2
    model = make_model()
    options = {
        "max_new_tokens": 12,
        "eos_id": NEVER,
        "constraints": [Script(sets), None, Script(sets[1:])],
        "sampler": sampler,
    }
    draft = make_draft(kind, model, make_model)
    found = generate_speculative(model, make_inputs(ROWS), draft=draft, **options)
    for row, own in ((found[0], sets), (found[2], sets[1:])):
        for token_id, allowed in zip(row.token_ids, own, strict=False):
            parts = (allowed,) if isinstance(allowed, range) else allowed
            assert any(token_id in (p if isinstance(p, range) else (p,)) for p in parts)
    if sampler == GREEDY:
        assert_same(found, generate(model, make_inputs(ROWS), **options))


def test_a_draft_may_see_its_pictures_in_another_size(make_model, make_inputs) -> None:
    model, draft = make_model(), other_model(make_model)
    inputs = make_inputs(ROWS[:1])
    # Two image tokens for the draft, where the model has four.
    kept = [0, 1, *range(4, inputs.token_ids.shape[1])]
    short = replace(
        inputs,
        token_ids=inputs.token_ids[:, kept],
        input_mask=inputs.input_mask[:, kept],
        mask_ar=inputs.mask_ar[:, kept],
        image_mask=inputs.image_mask[:, kept],
    )
    image_tokens = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 8, "eos_id": NEVER}
    found = generate_speculative(
        model,
        inputs,
        draft=DraftModel(model=draft, inputs=short, image_tokens=image_tokens),
        **options,
    )
    assert_same(found, generate(model, inputs, **options))
    assert found[0].num_guessed > 0


# Sampling: the distribution is the model's own


def assert_follows(counts: collections.Counter, expected: dict, num_samples: int) -> None:
    """Chi-square: within four standard deviations of its mean."""
    assert set(counts) <= set(expected)
    statistic = sum(
        (counts[key] - num_samples * p) ** 2 / (num_samples * p) for key, p in expected.items()
    )
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("is_drawn", [True, False])
@pytest.mark.parametrize(
    "sampler", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.7)]
)
def test_a_judged_guess_has_the_models_distribution(sampler: Sampling, is_drawn: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    guessed = distribution(torch.tensor([[1.5, 0.0, 0.5, 0.5, -2.0]]), sampler)[0]
    own = distribution(logits, sampler)[0]
    num_samples = 4000
    counts: collections.Counter[int] = collections.Counter()
    for token_id in torch.multinomial(guessed, num_samples, replacement=True, generator=generator):
        guess = _Guess(token_id=int(token_id), probabilities=guessed if is_drawn else None)
        counts[_settle(logits, guess, sampler, generator)] += 1
    expected = {token_id: float(p) for token_id, p in enumerate(own) if p > 0}
    assert_follows(counts, expected, num_samples)


@pytest.mark.parametrize("kind", ["near", "lookup"])
def test_sampled_texts_have_the_plain_loops_distribution(
    make_model, make_inputs, kind: str
) -> None:
    model = make_model(vocab_size=9)
    prompt = make_inputs([([2, 5, 6, 5, 3, 7, 6], [], False)])
    near = DraftModel(model=other_model(make_model, vocab_size=9))
    draft = near if kind == "near" else PromptLookup()
    sampler = Sampling(temperature=1.5, top_k=3)
    # The probability of each text of three tokens, by the plain rule.
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for ids, p in expected.items():
            with torch.inference_mode():
                logits = model(make_inputs([([2, 5, 6, 5, 3, 7, 6], list(ids), False)]))[:, -1]
            for token_id, share in enumerate(distribution(logits, sampler)[0].tolist()):
                if share > 0:
                    longer[(*ids, token_id)] = p * share
        expected = longer
    assert len(expected) == 27
    counts: collections.Counter[tuple[int, ...]] = collections.Counter()
    num_samples, num_guessed, num_accepted = 300, 0, 0
    for number in range(num_samples):
        (row,) = generate_speculative(
            model,
            prompt,
            draft=draft,
            num_draft_tokens=2,
            max_new_tokens=3,
            eos_id=NEVER,
            sampler=sampler,
            row_numbers=[number],
        )
        counts[row.token_ids] += 1
        num_guessed += row.num_guessed
        num_accepted += row.num_accepted
    assert 0 < num_accepted < num_guessed
    assert_follows(counts, expected, num_samples)


def test_the_same_seed_and_row_number_give_the_same_sample(make_model, make_inputs) -> None:
    model = make_model()
    options = {
        "draft": DraftModel(model=other_model(make_model)),
        "max_new_tokens": 10,
        "eos_id": NEVER,
        "sampler": Sampling(seed=2),
    }
    rows = generate_speculative(model, make_inputs(ROWS), **options)
    alone = generate_speculative(model, make_inputs(ROWS[1:2]), row_numbers=[1], **options)
    assert alone[0].token_ids == rows[1].token_ids
    assert (
        rows[1].token_ids
        != generate_speculative(model, make_inputs(ROWS[1:2]), row_numbers=[7], **options)[
            0
        ].token_ids
    )


# Faults


class PoisonedModel(PaliGemma):
    """Breaks the second logits of its second pass after the prefill."""

    def extend(
        self, token_ids: Tensor, kv_cache: Cache, vocab_range: range | None = None
    ) -> Tensor:
        logits = super().extend(token_ids, kv_cache, vocab_range).clone()
        self.num_passes = getattr(self, "num_passes", 0) + 1
        if self.num_passes == 2:
            logits[:, -1] = math.nan
        return logits


def test_broken_logits_end_the_row_and_what_came_before_is_kept(make_model, make_inputs) -> None:
    model = make_model()
    clean = generate(model, make_inputs(ROWS), max_new_tokens=16, eos_id=NEVER)
    draft = DraftModel(model=make_model())
    model.__class__ = PoisonedModel
    found = generate_speculative(
        model, make_inputs(ROWS), draft=draft, max_new_tokens=16, eos_id=NEVER
    )
    # One token by the prefill, five by the next pass, four guesses judged before the break.
    assert found[0].stop_reason == "numerical_error"
    assert found[0].token_ids == clean[0].token_ids[:10]
    assert_same(found[1:], clean[1:])


def test_a_broken_draft_costs_time_only(make_model, make_inputs) -> None:
    model, draft = make_model(), make_model()
    with torch.no_grad():
        draft.decoder.final_norm.weight[3] = math.nan
    options = {"max_new_tokens": 6, "eos_id": NEVER}
    found = generate_speculative(model, make_inputs(ROWS), draft=DraftModel(model=draft), **options)
    assert_same(found, generate(model, make_inputs(ROWS), **options))
    assert [row.num_guessed for row in found] == [0, 0, 0]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_numbers_below_one_are_refused(make_model, make_inputs, value: object) -> None:
    model = make_model()
    with pytest.raises(OptionError, match="max_run"):
        PromptLookup(max_run=value)
    with pytest.raises(OptionError, match="num_draft_tokens"):
        generate_speculative(
            model,
            make_inputs(ROWS),
            draft=PromptLookup(),
            num_draft_tokens=value,
            max_new_tokens=4,
            eos_id=1,
        )


def test_a_draft_that_does_not_fit_is_refused(make_model, make_inputs) -> None:
    model = make_model()
    options = {"max_new_tokens": 4, "eos_id": 1}
    draft = DraftModel(model=make_model(vocab_size=38))
    with pytest.raises(OptionError, match="vocabulary of 38"):
        generate_speculative(model, make_inputs(ROWS), draft=draft, **options)
    draft = DraftModel(model=model, inputs=make_inputs(ROWS[1:2]))
    with pytest.raises(OptionError, match="have 1 rows"):
        generate_speculative(model, make_inputs(ROWS), draft=draft, **options)
