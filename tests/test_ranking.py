"""Labels and images are ranked by the likelihood of answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paligemma
from paligemma import OptionError, Predictor, PromptError, RankOptions, YesNoTask
from paligemma.errors import ImageError
from paligemma.processor.tokenizer import Tokenizer
from paligemma.ranking import classify, with_article
from tests.agreement.tiny_predictor import build_predictor, picture
from tests.test_predictor import counted_encodings

SAMPLE = Path(paligemma.__file__).parent / "mini" / "sample.png"
IMAGE = picture(0, (60, 40))


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer: Tokenizer) -> Predictor:
    return build_predictor(tiny_tokenizer)


@pytest.fixture(scope="module")
def mini() -> Predictor:
    return paligemma.load("mini")


def test_yes_and_no_have_the_probabilities_that_the_model_gives_them(tiny: Predictor) -> None:
    [answer] = tiny.run([(IMAGE, YesNoTask(question="is it a cat?", language="en"))])
    scores = tiny.score(IMAGE, "answer en is it a cat?", ["yes", "no"])
    yes, no = (math.exp(score.logprobs[0]) for score in scores)
    assert answer.yes == pytest.approx(yes / (yes + no), rel=1e-4)
    assert answer.held == pytest.approx(1 - yes - no, abs=1e-5)
    assert 0 < answer.yes < 1


def test_all_labels_are_asked_of_one_encoded_image(tiny: Predictor) -> None:
    with counted_encodings(tiny) as counts:
        found = tiny.classify(picture(7, (60, 40)), ["cat", "dog", "cow", "owl"])
    assert sum(counts) == 1
    assert len(found.probabilities) == 4
    assert sum(found.probabilities) + found.none_of_them == pytest.approx(1)
    assert found.notes != ()  # a model with random weights says neither yes nor no
    assert "rather answer with something else" in str(found)


def test_a_probability_is_that_of_one_label_alone(tiny: Predictor) -> None:
    """The odds of each label's answer, beside those of none."""
    labels = ["cat", "dog"]
    found = tiny.classify(IMAGE, labels)
    assert found.presences is not None
    odds = [presence / (1 - presence) for presence in found.presences]
    assert found.probabilities == pytest.approx([o / (1 + sum(odds)) for o in odds])
    assert found.none_of_them == pytest.approx(1 / (1 + sum(odds)))
    without = tiny.classify(IMAGE, labels, allow_none=False)
    assert without.probabilities == pytest.approx([o / sum(odds) for o in odds])
    assert without.none_of_them == 0
    assert without.best == labels[odds.index(max(odds))]


def test_captions_are_compared_by_their_likelihood(tiny: Predictor) -> None:
    found = tiny.classify(IMAGE, ["cat", "dog"], "caption")
    totals = [s.total for s in tiny.score(IMAGE, "caption en", ["a cat", "a dog"])]
    assert math.log(found.probabilities[0] / found.probabilities[1]) == pytest.approx(
        totals[0] - totals[1], abs=1e-4
    )
    assert (found.none_of_them, found.presences) == (0, None)
    with pytest.raises(OptionError, match="Captions say which label fits best"):
        found.present()


def test_images_are_ranked_by_the_same_scores(tiny: Predictor) -> None:
    images = [picture(seed, (60, 40)) for seed in range(4)]
    ranked = tiny.rank(images, "cat")
    assert sorted(each.index for each in ranked) == [0, 1, 2, 3]
    assert [each.score for each in ranked] == sorted((r.score for r in ranked), reverse=True)
    for each in ranked:
        presences = tiny.classify(images[each.index], ["cat"]).presences
        assert presences is not None
        assert each.score == pytest.approx(presences[0], rel=1e-4)
    ranked = tiny.rank(iter(images), "two cats", "caption")
    for each in ranked:
        score = tiny.score(images[each.index], "caption en", "two cats")
        assert each.score == pytest.approx(score.total, abs=1e-4)


@pytest.mark.parametrize("how", ["ask", "caption"])
def test_an_image_that_cannot_be_read_comes_last_with_its_error(
    how: Any, tiny: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    images: list[Any] = [tmp_path / "bad.png", IMAGE]
    with pytest.raises(ImageError):
        tiny.rank(images, "cat", how)
    good, bad = tiny.rank(images, "cat", how, errors="return")
    assert (good.index, good.error, bad.index) == (1, None, 0)
    assert math.isnan(bad.score)
    assert bad.error is not None
    assert bad.to_dict()["score"] is None


def test_mini_says_what_is_there_and_that_nothing_is(mini: Predictor) -> None:
    """The sample shows three guitars and a banana."""
    found = mini.classify(SAMPLE, ["owl", "guitar", "car", "banana"])
    assert set(found.present()) == {"guitar", "banana"}
    assert found.best in ("guitar", "banana")
    assert found.notes == ()
    assert mini.classify(SAMPLE, ["owl", "car"]).best is None
    assert mini.classify(SAMPLE, ["owl", "car"], allow_none=False).best is not None
    assert mini.classify(SAMPLE, ["three guitars and a banana", "an owl"], "caption").best == (
        "three guitars and a banana"
    )
    assert [each.index for each in mini.rank([IMAGE, SAMPLE], "guitar")] == [1, 0]


def test_a_question_may_be_ones_own() -> None:
    options = RankOptions(question="are {label} here, or {a}?", language=None)
    assert options.task("owl {a}").prompt() == "are owl {a} here, or an owl {a}?"
    assert RankOptions().task("red car").prompt() == "answer en is there a red car?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owl", "an owl"),
        ("Airplane", "an Airplane"),
        ("the dog", "the dog"),
        ("Two dogs", "Two dogs"),
        ("3 dogs", "3 dogs"),
        ("some water", "some water"),
        ("猫", "a 猫"),
    ],
)
def test_a_label_gets_its_article(text: str, expected: str) -> None:
    assert with_article(text) == expected


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (OptionError, "pass a list", lambda m: m.classify(IMAGE, "cat ; dog")),
        (OptionError, "pass a list", lambda m: m.classify(IMAGE, [])),
        (OptionError, "'cat' is given more than once", lambda m: m.classify(IMAGE, ["cat", "cat"])),
        (OptionError, "how is 'guess'", lambda m: m.classify(IMAGE, ["cat"], "guess")),
        (OptionError, "errors is 'skip'", lambda m: m.rank([IMAGE], "cat", errors="skip")),
        (PromptError, "at least one word", lambda m: m.classify(IMAGE, ["cat", " "])),
        (PromptError, "at least one word", lambda m: m.rank([IMAGE], "")),
        (PromptError, "at least one word", lambda m: m.rank([IMAGE], " ", "caption")),
        (PromptError, "<image>", lambda m: m.classify(IMAGE, ["<image>"])),
        (PromptError, "<eos>", lambda m: m.rank([IMAGE], "a<eos>", "caption")),
        (OptionError, "it must have {a}", lambda m: RankOptions(question="is it?")),
        (OptionError, "needs a language", lambda m: RankOptions(how="caption", language=None)),
    ],
)
def test_what_cannot_be_asked_is_refused(
    kind: type[Exception], message: str, call: Callable[[Any], object], tiny: Predictor
) -> None:
    with pytest.raises(kind, match=message):
        call(tiny)


def test_classification_prints_from_the_best_to_none() -> None:
    class Sure:
        def answer(self, queries: Any, batch_size: Any = None) -> Any:
            for query, yes in zip(queries, (0.2, 0.9), strict=True):
                yield paligemma.YesNo(question=query.query.text, yes=yes, held=0.0)

    found = classify(Sure(), IMAGE, ["cat", "dog"], RankOptions())  # type: ignore[arg-type]
    assert str(found) == "0.88  dog\n0.02  cat\n0.10  none of them"
    assert found.present() == ("dog",)
    assert found.present(0.1) == ("cat", "dog")
