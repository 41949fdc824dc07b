from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import PromptError
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import RangeSummary, StopReason
from paligemma.tasks.objects import ParsedObjects, parse_objects, split_phrases
from tests.tasks.character_tokenizer import CharacterTokenizer

SEGS = "".join(f"<seg{i:03d}>" for i in range(16))
BOX = "<loc0256><loc0000><loc0512><loc1023>"
BOX2 = "<loc0001><loc0002><loc0003><loc0004>"


def parse(text: str, tokenizer: CharacterTokenizer, stop: StopReason = "eos") -> ParsedObjects:
    generation = tokenizer.generation(text, stop)
    return parse_objects(generation.token_ids, generation.logprobs, tokenizer, stop_reason=stop)


@pytest.mark.parametrize(
    ("text", "labels", "num_codes", "problems", "texts"),
    [
        ("", [], [], [], []),
        ("\n", [], [], [], []),
        ("no objects here", [], [], [], ["no objects here"]),
        (f"{BOX} cat", ["cat"], [0], [], []),
        (BOX, [""], [0], [], []),
        (f"{BOX} cat ; {BOX2} dog", ["cat", "dog"], [0, 0], [], []),
        (f"{BOX} cat ; {BOX2} dog ; ", ["cat", "dog"], [0, 0], [], []),
        (f"{BOX} cat ;", ["cat"], [0], [], []),
        (f"{BOX} cat;{BOX2} dog;", ["cat", "dog"], [0, 0], [], []),
        (f"{BOX} cat {BOX2} dog", ["cat", "dog"], [0, 0], [], []),
        (f"{BOX} ; {BOX2}", ["", ""], [0, 0], [], []),
        (f"{BOX} driver's licence", ["driver's licence"], [0], [], []),
        (f'{BOX} red, green/blue; café 24"', ['red, green/blue; café 24"'], [0], [], []),
        (f"{BOX} красный мяч ; {BOX2} 猫", ["красный мяч", "猫"], [0, 0], [], []),
        (f"{BOX} a <b> & c", ["a <b> & c"], [0], [], []),
        (f"{BOX}{SEGS} cat", ["cat"], [16], [], []),
        (f"{BOX} {SEGS} cat ; {BOX2}{SEGS}", ["cat", ""], [16, 16], [], []),
        (f"I see {BOX} cat", ["cat"], [0], [], ["I see"]),
        (f"{BOX} cat ; and more ; so", ["cat"], [0], [], ["and more ; so"]),
        (f"{BOX} cat<eos>{BOX2} dog", ["cat"], [0], [], []),
        ("<loc0256><loc0768><loc0768> cat", [], [], ["malformed"], []),
        (f"<loc0001>{BOX} cat", [], [], ["malformed"], []),
        (f"{BOX} cat ; <loc0001><loc0002> dog", ["cat"], [0], ["malformed"], []),
        (f"{BOX}<seg000><seg001> cat ; {BOX2} dog", ["dog"], [0], ["malformed"], []),
        (f"{BOX}{SEGS}<seg000> cat", [], [], ["malformed"], []),
        (f"{SEGS} cat ; {BOX} dog", ["dog"], [0], ["malformed"], ["cat ;"]),
        (f"{BOX} cat {SEGS} dog", ["cat"], [0], ["malformed"], ["dog"]),
        (
            "<loc0512><loc0000><loc0256><loc1023> up ; " + f"{BOX} cat",
            ["cat"],
            [0],
            ["malformed"],
            [],
        ),
        ("<loc0256><loc0007><loc0512><loc0007> thin", [], [], ["malformed"], []),
        (f"{BOX} cat ; {BOX} cat ; {BOX} dog", ["cat", "dog"], [0, 0], ["repeated"], []),
    ],
)
def test_outputs_are_read_as_far_as_they_make_sense(
    text: str,
    labels: list[str],
    num_codes: list[int],
    problems: list[str],
    texts: list[str],
    tokenizer: CharacterTokenizer,
) -> None:
    parsed = parse(text, tokenizer)
    assert [o.label for o in parsed.objects] == labels
    assert [len(o.seg_codes) for o in parsed.objects] == num_codes
    assert [p.kind for p in parsed.problems] == problems
    assert list(parsed.texts) == texts


@pytest.mark.parametrize(
    ("text", "labels", "problems"),
    [
        (f"{BOX} cat ; {BOX2} traffic", ["cat"], ["cut"]),
        (f"{BOX} cat ; {BOX2}", ["cat"], ["cut"]),
        (f"{BOX} cat ; <loc0001><loc0002>", ["cat"], ["cut"]),
        (f"{BOX} cat ; {BOX2}<seg001><seg002>", ["cat"], ["cut"]),
        (f"{BOX} cat ; {BOX2} dog ; ", ["cat", "dog"], ["cut"]),
        (f"{BOX} cat ; {BOX2} dog ;", ["cat", "dog"], ["cut"]),
        (f"{BOX} cat ; ", ["cat"], ["cut"]),
        (f"{BOX} cat ; <loc0001><loc0002> dog", ["cat"], ["malformed", "cut"]),
        (f"{BOX} cat ; <loc0512><loc0000><loc0256><loc1023> do", ["cat"], ["malformed", "cut"]),
        ("text only", [], ["cut"]),
    ],
)
def test_what_the_token_limit_cut_is_left_out(
    text: str, labels: list[str], problems: list[str], tokenizer: CharacterTokenizer
) -> None:
    parsed = parse(text, tokenizer, "length")
    assert [o.label for o in parsed.objects] == labels
    assert [p.kind for p in parsed.problems] == problems


def test_a_stop_rule_leaves_the_last_object_whole(tokenizer: CharacterTokenizer) -> None:
    assert [o.label for o in parse(f"{BOX} cat", tokenizer, "stop").objects] == ["cat"]


def test_bins_codes_and_spans_are_those_of_the_tokens(tokenizer: CharacterTokenizer) -> None:
    text = f"see {BOX}{SEGS} cat ; <loc0001>"
    parsed = parse(text, tokenizer)
    assert parsed.objects[0].box_yxyx_bins == (256, 0, 512, 1023)
    assert parsed.objects[0].seg_codes == tuple(range(16))
    assert parsed.objects[0].token_span == (4, 4 + 20 + 4)
    assert parsed.problems[0].token_span == (31, 32)


def summaries(ids: list[int], tokenizer: CharacterTokenizer) -> list[RangeSummary | None]:
    """The first coordinate is one of a range with probability 0.9; each is near in 3 of 4 cases."""
    return [
        RangeSummary(0.9, (token_id, token_id, token_id, token_id - 120))
        if tokenizer.is_loc(token_id)
        else None
        for token_id in ids
    ]


def test_scores_come_from_the_tokens_they_speak_of(tokenizer: CharacterTokenizer) -> None:
    ids = tokenizer.tokenize_text(f"{BOX} x ; {BOX}{SEGS} ab ; ")
    logprobs = [-0.1] * 4 + [-5.0, -6.0] + [math.log(0.5), math.log(0.8), 0.0]
    logprobs += [-3.0] * 4 + [math.log(0.25)] * 16 + [math.log(0.5)] * 3 + [-9.0] * 3
    first, found = parse_objects(
        ids, logprobs, tokenizer, locations=summaries(ids, tokenizer)
    ).objects
    assert first.existence_score == pytest.approx(0.9)
    assert found.existence_score == pytest.approx(0.5 * 0.8 * 0.9)
    assert found.label_score == pytest.approx(0.125)
    assert found.mask_score == pytest.approx(0.25)
    # One edge off by 120 of 256 leaves an IoU above 0.5; two do not.
    assert 0 < found.coordinate_score == first.coordinate_score < 1
    assert found.score == pytest.approx(0.36 * 0.125 * found.coordinate_score)


def test_without_label_the_box_alone_counts(tokenizer: CharacterTokenizer) -> None:
    ids = tokenizer.tokenize_text(f"{BOX} ; ")
    (found,) = parse_objects(
        ids, [-0.5] * len(ids), tokenizer, locations=summaries(ids, tokenizer)
    ).objects
    assert found.label_score == 1.0
    assert found.score == pytest.approx(0.9 * found.coordinate_score)


def test_a_certain_label_can_be_told_from_none(tokenizer: CharacterTokenizer) -> None:
    ids = tokenizer.tokenize_text(f"{BOX} cat")
    (found,) = parse_objects(ids, [0.0] * len(ids), tokenizer).objects
    assert 1 - 1e-12 < found.label_score < 1.0


def test_without_distributions_the_score_is_unknown(tokenizer: CharacterTokenizer) -> None:
    (found,) = parse(f"{BOX} cat", tokenizer).objects
    assert math.isnan(found.coordinate_score)
    assert math.isnan(found.score)
    assert found.label_score == pytest.approx(math.exp(-0.5 * 4))


@given(st.data())
@settings(max_examples=400)
def test_e10_no_token_soup_breaks_the_parser(data: st.DataObject) -> None:
    tokenizer = CharacterTokenizer()
    pieces = [
        "<loc0000>",
        "<loc1023>",
        BOX,
        BOX2,
        "<seg000>",
        SEGS,
        " cat",
        " ; ",
        ";",
        " ",
        "<eos>",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from([*pieces, "é", "\n"]), max_size=40)))
    stop: StopReason = data.draw(st.sampled_from(["eos", "stop", "length"]))
    generation = tokenizer.generation(text, stop)
    parsed = parse_objects(
        generation.token_ids,
        generation.logprobs,
        tokenizer,
        locations=summaries(list(generation.token_ids), tokenizer),
        stop_reason=stop,
    )
    spans = [o.token_span for o in parsed.objects] + [p.token_span for p in parsed.problems]
    num_tokens = len(generation.token_ids)
    for start, end in spans:
        assert 0 <= start < end <= num_tokens or start == end <= num_tokens
    ordered = sorted(spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered))
    for found in parsed.objects:
        y1, x1, y2, x2 = found.box_yxyx_bins
        assert 0 <= y1 < y2 <= 1023
        assert 0 <= x1 < x2 <= 1023
        assert len(found.seg_codes) in (0, 16)
        assert 0 <= found.score <= 1
    keys = [(o.label, o.box_yxyx_bins) for o in parsed.objects]
    assert len(keys) == len(set(keys))


def test_a_long_output_is_read_in_linear_time(tokenizer: CharacterTokenizer) -> None:
    generation = tokenizer.generation("x" * 30_000 + BOX + "y" * 30_000 + "<loc0001>" * 30_000)
    start = time.perf_counter()
    parse_objects(generation.token_ids, generation.logprobs, tokenizer)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("given_phrases", "expected"),
    [
        ("cat", ("cat",)),
        ("cat ; dog", ("cat", "dog")),
        (" cat;dog ;; Cat; ", ("cat", "dog")),
        (["cat", "traffic  light\n"], ("cat", "traffic light")),
        (["cat ; dog", "cow"], ("cat", "dog", "cow")),
        ("red, green", ("red, green",)),
    ],
)
def test_phrases_are_split_stripped_and_kept_once(
    given_phrases: str | list[str], expected: tuple[str, ...]
) -> None:
    assert split_phrases(given_phrases) == expected


@pytest.mark.parametrize("nothing", ["", " ; ", [], ["", " "], [3]])
def test_asking_for_nothing_is_refused(nothing: str | list[str]) -> None:
    with pytest.raises(PromptError):
        split_phrases(nothing)


@pytest.fixture(scope="module")
def gemma(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_file(shared_data / "tokenizer" / "tokenizer.model")


def parse_gemma(text: str, gemma: Tokenizer) -> ParsedObjects:
    ids = [*gemma.tokenize_text(text.removesuffix("<eos>")), gemma.eos_id]
    return parse_objects(ids, [-0.1] * len(ids), gemma)


def test_known_parser_cases_give_their_boxes(shared_data: Path, gemma: Tokenizer) -> None:
    table = json.loads((shared_data / "vectors" / "parse_detection.json").read_text())
    for case in table["cases"]:
        # These three are rules of another parser: labels are required, unknown classes are
        # dropped, and an empty picture raises.
        if case["name"] in ("no class", "class not in list", "zero width"):
            continue
        found = parse_gemma(case["text"], gemma).objects
        assert [o.label for o in found] == case["expected"]["class_name"], case["name"]
        width, height = case["resolution_wh"]
        for item, box in zip(found, case["expected"]["xyxy"], strict=True):
            y1, x1, y2, x2 = (b / 1024 for b in item.box_yxyx_bins)
            assert [x1 * width, y1 * height, x2 * width, y2 * height] == pytest.approx(box)


def test_outputs_of_public_checkpoints_are_read_in_full(
    shared_data: Path, gemma: Tokenizer
) -> None:
    num_objects = 0
    for name in ("checkpoint_outputs", "finetuned_outputs"):
        for case in json.loads((shared_data / "outputs" / f"{name}.json").read_text())["cases"]:
            text = case["raw_output"]
            if not text or "<loc" not in text:
                continue
            parsed = parse_gemma(text, gemma)
            units = [unit.strip() for unit in text.removesuffix("<eos>").split(";")]
            units = [unit for unit in units if unit]
            whole = [unit for unit in units if unit.count("<loc") == 4]
            num_repeated = len(whole) - len(set(whole))
            num_malformed = len(units) - len(whole)
            assert [o.label for o in parsed.objects] == [
                unit.split(">")[-1].strip() for unit in dict.fromkeys(whole)
            ], text
            assert sorted(p.kind for p in parsed.problems) == (
                ["malformed"] * num_malformed + ["repeated"] * num_repeated
            ), text
            assert parsed.texts == (), text
            num_objects += len(parsed.objects)
    assert num_objects > 50


def test_googles_segmentation_example_is_read(shared_data: Path, gemma: Tokenizer) -> None:
    cases = json.loads((shared_data / "segmentation" / "cases.json").read_text())["cases"]
    (case,) = (c for c in cases if c["id"] == "bigvision-space-example-string")
    parsed = parse_gemma(case["raw_output"], gemma)
    assert parsed.problems == ()
    assert [
        {"name": o.label, "loc_yxyx": list(o.box_yxyx_bins), "seg": list(o.seg_codes)}
        for o in parsed.objects
    ] == [{key: o[key] for key in ("name", "loc_yxyx", "seg")} for o in case["expected"]["objects"]]


def test_a_label_of_split_characters_is_scored_whole(gemma: Tokenizer) -> None:
    (found,) = parse_gemma(f"{BOX} \U0001f9f8\u0f40 ; ", gemma).objects
    assert found.label == "\U0001f9f8\u0f40"
