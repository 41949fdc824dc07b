from __future__ import annotations

import math

import pytest

from paligemma.errors import OptionError
from paligemma.processor.image import ImageTransform
from paligemma.tasks.detect import place_box
from paligemma.tasks.objects import BoxYxyxBins, joint_probability, mean_probability
from paligemma.tasks.task import LANGUAGES, check_language, read_scored_text
from tests.tasks.character_tokenizer import CharacterTokenizer


def test_all_35_languages_are_accepted() -> None:
    assert len(set(LANGUAGES)) == 35
    assert [check_language(code) for code in LANGUAGES] == list(LANGUAGES)


@pytest.mark.parametrize("code", ["quz", "iw", "zh-TW", "pt-BR"])
def test_codes_beyond_the_35_are_accepted(code: str) -> None:
    assert check_language(code) == code


@pytest.mark.parametrize(
    "code", ["", "e", "EN", "english", "en\n", "e1", "en us", "<loc0001>", None]
)
def test_what_is_no_code_is_refused_and_the_35_are_named(code: str) -> None:
    with pytest.raises(OptionError, match=r"ar bn cs .* vi zh"):
        check_language(code)


@pytest.mark.parametrize(
    ("bins", "pixels", "fractions"),
    [
        ((0, 0, 1023, 1023), (0, 0, 640, 480), (0, 0, 1, 1)),
        ((341, 0, 682, 1023), (0, 160, 640, 320), (0, 1 / 3, 1, 2 / 3)),
    ],
)
def test_boxes_land_on_the_source_image(
    bins: BoxYxyxBins, pixels: tuple[float, ...], fractions: tuple[float, ...]
) -> None:
    box, normalized = place_box(bins, ImageTransform(source_wh=(640, 480), resolution=224))
    assert box == pytest.approx(pixels)
    assert normalized == pytest.approx(fractions)


def test_a_padded_images_border_is_not_part_of_it() -> None:
    transform = ImageTransform(source_wh=(640, 480), resolution=224, resize="pad")
    box, normalized = place_box((0, 0, 1023, 1023), transform)
    assert box == pytest.approx((0, 0, 640, 480))
    assert normalized == pytest.approx((0, 0, 1, 1))


def test_text_ends_at_eos_and_its_score_counts_every_token(tokenizer: CharacterTokenizer) -> None:
    generated = tokenizer.generation(" a cow \n", logprob=math.log(0.5))
    text = read_scored_text(generated, tokenizer)
    assert text.text == "a cow"
    assert text.score == pytest.approx(0.5)
    assert text.token_ids == generated.token_ids
    assert len(text.logprobs) == len(text.token_ids)


def test_probabilities_are_bounded() -> None:
    assert mean_probability([]) == 1.0
    assert mean_probability([1e-6]) == 1.0
    assert mean_probability([-math.inf, -0.1]) == 0.0
    assert joint_probability([math.log(0.5), math.log(0.5)]) == pytest.approx(0.25)
    assert joint_probability([]) == 1.0
    assert joint_probability([1e-6]) == 1.0
    assert joint_probability([-math.inf, -0.1]) == 0.0
    assert math.isnan(joint_probability([math.nan]))
