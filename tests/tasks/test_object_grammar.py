from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paligemma.mini
from paligemma.engine.sampling import Allowed, Constraint
from paligemma.errors import OptionError, PromptError
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import StopReason
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.object_grammar import ObjectList, TokenWriter
from paligemma.tasks.objects import parse_objects
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import GuidedTask
from paligemma.tasks.text import CaptionTask
from tests.tasks.character_tokenizer import CharacterTokenizer

BOX = "<loc0256><loc0000><loc0512><loc1023>"
BOX2 = "<loc0001><loc0002><loc0003><loc0004>"
SEGS = "".join(f"<seg{i:03d}>" for i in range(16))
CHARACTERS = CharacterTokenizer()
MINI = Tokenizer.from_file(Path(paligemma.mini.__file__).parent / "model" / "tokenizer.model")


def parts(allowed: Allowed) -> tuple[int | range, ...]:
    assert isinstance(allowed, range | tuple)
    return (allowed,) if isinstance(allowed, range) else allowed


def may_take(state: ObjectList, token_id: int) -> bool:
    return any(token_id == p if isinstance(p, int) else token_id in p for p in parts(state.allowed))


def after(state: ObjectList, text: str, tokenizer: TokenWriter) -> ObjectList:
    """The state after a text, each of whose tokens must be allowed."""
    for place, token_id in enumerate(tokenizer.tokenize_text(text)):
        assert may_take(state, token_id), (text, place, token_id, state.allowed)
        state = state.advance(token_id)
    return state


def admits(state: ObjectList, text: str, tokenizer: TokenWriter) -> bool:
    """True when the text may be a whole output."""
    for token_id in tokenizer.tokenize_text(text):
        if not may_take(state, token_id):
            return False
        state = state.advance(token_id)
    return may_take(state, tokenizer.eos_id)


@pytest.fixture(scope="module")
def gemma(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_file(shared_data / "tokenizer" / "tokenizer.model")


@pytest.fixture(params=["characters", "tiny", "mini", "gemma"])
def writer(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer) -> TokenWriter:
    if request.param == "gemma":
        tokenizer: Tokenizer = request.getfixturevalue("gemma")
        return tokenizer
    writers: dict[str, TokenWriter] = {
        "characters": CHARACTERS,
        "tiny": tiny_tokenizer,
        "mini": MINI,
    }
    return writers[request.param]


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("", True),
        (f"{BOX} cat", True),
        (f"{BOX} traffic light ; {BOX2} cat", True),
        (f"{BOX} traffic", True),
        (f"{BOX} cat ; ", True),
        (f"{BOX} cat ; {BOX} dog", True),
        (f"{BOX} cat ; {BOX2} cat", True),
        (f"{BOX} cat ; {BOX} cat", True),  # dropped by the parser
        (f"{BOX} cat ; {BOX} cat ; ", False),
        (f"{BOX} traffic ; {BOX} traffic light", True),
        (f"{BOX} traffic ; {BOX} traffic ; {BOX2} dog", False),
        ("no cat", False),
        (f"{BOX} frog", False),
        (f"{BOX} ca", False),
        (f"{BOX} cat dog", False),
        (f"{BOX}", False),
        (f"{BOX}{SEGS} cat", False),
        (f"{BOX} cat {BOX2} dog", False),
        ("<loc0001><loc0002><loc0003> cat", False),
        (f"{BOX}<loc0001> cat", False),
        ("<loc0512><loc0000><loc0256><loc1023> cat", False),
        ("<loc0256><loc0007><loc0512><loc0007> cat", False),
        ("<loc1023><loc0000><loc1023><loc1023> cat", False),
        ("<loc1022><loc0000><loc1023><loc1023> cat", True),
    ],
)
def test_boxes_with_labels_that_were_asked_for_may_be_written(
    text: str, is_allowed: bool, writer: TokenWriter
) -> None:
    grammar = DetectTask.of("cat ; dog ; traffic ; traffic light").grammar(writer)
    assert admits(grammar, text, writer) == is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("", True),
        (f"{BOX}{SEGS} cat", True),
        (f"{BOX}{SEGS}", True),  # the only label may be left out
        (f"{BOX}{SEGS} ; {BOX2}{SEGS}", True),
        (f"{BOX} cat", False),
        (f"{BOX}{SEGS}<seg000> cat", False),
        (f"{BOX}{SEGS[:-8]} cat", False),
        (f"{BOX}{SEGS} cat ; {BOX}", True),
        (f"{BOX}{SEGS} cat ; {BOX}<seg000>", False),
    ],
)
def test_masks_stand_between_box_and_label(
    text: str, is_allowed: bool, writer: TokenWriter
) -> None:
    assert admits(SegmentTask.of("cat").grammar(writer), text, writer) == is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        (f"{BOX} cat", True),
        (f"{BOX}", True),
        (f"{BOX} driver's licence ; {BOX2} 猫 ; {BOX} red, green", True),
        (f"{BOX} a;b ; {BOX2}", True),
        (f"{BOX} cat ; and more", False),
        (f"{BOX} cat {BOX2}", False),
        (f"{BOX} cat\n", False),
        (f"{BOX}{SEGS} cat", False),
        (f"{BOX} cat ; {BOX} cat ; ", True),  # dropped by the parser
        (f"{BOX} cat ; {BOX} cat ; {BOX2} dog", False),
        (f"{BOX} cat ; {BOX} catfish ; {BOX2} dog", True),
    ],
)
def test_any_label_of_one_line_may_be_written_on_request(
    text: str, is_allowed: bool, writer: TokenWriter
) -> None:
    grammar = DetectTask.of("all classes", labels="any").grammar(writer)
    assert admits(grammar, text, writer) == is_allowed


def test_inside_of_boxes_and_masks_the_next_ids_are_one_range(writer: TokenWriter) -> None:
    loc, seg = writer.loc_offset, writer.seg_offset
    state = SegmentTask.of("cat ; dog").grammar(writer)
    assert state.allowed == (writer.eos_id, range(loc, loc + 1023))
    for token_id, expected in (
        (loc + 300, range(loc, loc + 1023)),
        (loc + 1022, range(loc + 301, loc + 1024)),
        (loc + 1023, range(loc + 1023, loc + 1024)),
        (loc + 1023, range(seg, seg + 128)),
    ):
        state = state.advance(token_id)
        assert state.allowed == expected
    for code in range(15):
        state = state.advance(seg + code)
        assert state.allowed == range(seg, seg + 128)
    assert not isinstance(state.advance(seg + 127).allowed, range)


def test_a_repeated_object_ends_the_list(writer: TokenWriter) -> None:
    eos = (writer.eos_id,)
    one = after(DetectTask.of("cat").grammar(writer), f"{BOX} cat ; {BOX}", writer)
    assert one.allowed == eos
    unnamed = after(DetectTask.of("cat").grammar(writer), f"{BOX} ; {BOX}", writer)
    assert unnamed.allowed == eos
    two = DetectTask.of("cat ; dog").grammar(writer)
    assert after(two, f"{BOX} cat ; {BOX} dog ; {BOX} cat", writer).allowed == eos
    two = DetectTask.of("cat ; catfish").grammar(writer)
    state = after(two, f"{BOX} cat ; {BOX} cat", writer)
    assert not admits(state, f" ; {BOX2} cat", writer)
    free = DetectTask.of("cat", labels="any").grammar(writer)
    assert after(free, f"{BOX} cat ; {BOX} cat ; ", writer).allowed == eos


def test_a_label_that_begins_with_a_repeated_one_is_still_possible() -> None:
    grammar = DetectTask.of("cat ; cat food").grammar(CHARACTERS)
    state = after(grammar, f"{BOX} cat ; {BOX} cat", CHARACTERS)
    assert after(state, f" food ; {BOX2} cat", CHARACTERS).allowed is not None


@pytest.mark.parametrize("labels", ["asked", "any"])
def test_a_list_ends_at_the_largest_number_of_objects(labels, writer: TokenWriter) -> None:
    grammar = DetectTask.of("cat", labels=labels, max_objects=2).grammar(writer)
    assert admits(grammar, f"{BOX} cat ; {BOX2} cat", writer)
    assert after(grammar, f"{BOX} cat ; {BOX2} cat ; ", writer).allowed == (writer.eos_id,)


def test_a_list_goes_on_until_the_least_number_of_objects(writer: TokenWriter) -> None:
    grammar = DetectTask.of("cat ; dog", min_objects=2).grammar(writer)
    assert not may_take(grammar, writer.eos_id)
    assert not admits(grammar, f"{BOX} cat", writer)
    assert not may_take(after(grammar, f"{BOX} cat ; ", writer), writer.eos_id)
    assert admits(grammar, f"{BOX} cat ; {BOX2} dog", writer)
    assert admits(grammar, f"{BOX} cat ; {BOX2} dog ; {BOX2} cat", writer)


def test_a_repeated_object_ends_even_a_list_that_is_too_short(writer: TokenWriter) -> None:
    grammar = DetectTask.of("cat", min_objects=3).grammar(writer)
    assert after(grammar, f"{BOX} cat ; {BOX}", writer).allowed == (writer.eos_id,)


def test_more_objects_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(OptionError, match=r"from 0 to max_objects \(2\)"):
        DetectTask.of("cat", max_objects=2, min_objects=3)


def test_an_endless_label_is_closed(writer: TokenWriter) -> None:
    state = after(DetectTask.of("cat", labels="any").grammar(writer), BOX, writer)
    (letter,) = writer.tokenize_text("x")
    for _ in range(32):
        assert may_take(state, letter)
        state = state.advance(letter)
    separator = writer.tokenize_text(" ; ")
    for token_id in separator:
        assert not may_take(state, letter)
        assert may_take(state, token_id)
        state = state.advance(token_id)
    assert state.allowed == (writer.eos_id, range(writer.loc_offset, writer.loc_offset + 1023))


def test_with_any_label_all_text_but_line_breaks_is_open(gemma: Tokenizer) -> None:
    state = after(DetectTask.of("cat", labels="any").grammar(gemma), BOX, gemma)
    open_ids = {gemma.eos_id}
    for part in parts(state.allowed):
        open_ids |= {part} if isinstance(part, int) else set(part)
    # Pieces at the top of Gemma's table, and line breaks, one to thirty-one.
    closed = set(range(gemma.loc_offset)) - open_ids
    assert closed == {0, 2, 3, *range(108, 139)}
    assert {gemma.detokenize([i]).strip("\n") for i in range(108, 139)} == {""}
    assert max(open_ids) < gemma.loc_offset


def walk(
    state: Constraint, choose: Callable[[Sequence[int | range]], int], eos_id: int, limit: int
) -> tuple[list[int], StopReason]:
    ids: list[int] = []
    while len(ids) < limit:
        ids.append(choose(parts(state.allowed)))
        if ids[-1] == eos_id:
            return ids, "eos"
        state = state.advance(ids[-1])
    return ids, "length"


PHRASES = ["cat", "cat food", "dog", "traffic light", "traffic", "猫", "é 3"]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_the_parser_reads_all_that_the_grammar_allows(data: st.DataObject) -> None:
    writers: list[TokenWriter] = [CHARACTERS, MINI]
    tokenizer = data.draw(st.sampled_from(writers))
    phrases = data.draw(st.lists(st.sampled_from(PHRASES), min_size=1, unique=True))
    kinds_of_task: list[type[DetectTask] | type[SegmentTask]] = [DetectTask, SegmentTask]
    kind = data.draw(st.sampled_from(kinds_of_task))
    kinds_of_labels: list[Literal["asked", "any"]] = ["asked", "any"]
    labels = data.draw(st.sampled_from(kinds_of_labels))
    task = kind.of(phrases, labels=labels, max_objects=data.draw(st.integers(1, 5)))
    # Few places and few words, so that boxes and labels repeat.
    words = {i for text in (" ; ", ";", "x", " cat") for i in tokenizer.tokenize_text(text)}
    source = random.Random(data.draw(st.integers(0, 2**32)))

    def choose(allowed: Sequence[int | range]) -> int:
        found = []
        for part in allowed:
            if isinstance(part, int):
                found += [part] * 3
            elif tokenizer.is_loc(part.start):
                found += [part[0]] * 6 + [part[-1]]
            elif tokenizer.is_seg(part.start):
                found.append(source.choice(part))
            else:
                found += [word for word in words if word in part]
        return source.choice(found)

    limit = data.draw(st.integers(1, 150))
    ids, stop_reason = walk(task.grammar(tokenizer), choose, tokenizer.eos_id, limit)
    parsed = parse_objects(ids, [-0.1] * len(ids), tokenizer, stop_reason=stop_reason)
    kinds = [problem.kind for problem in parsed.problems]
    if stop_reason == "length" and "cut" in kinds:
        assert kinds.pop() == "cut"
    assert set(kinds) <= {"repeated"}
    assert len(kinds) <= 1 or labels == "any"
    assert len(parsed.objects) <= task.max_objects
    assert parsed.texts == ()
    for item in parsed.objects:
        assert len(item.seg_codes) == (16 if kind is SegmentTask else 0)
        if labels == "asked":
            assert item.label in phrases or (len(phrases) == 1 and item.label == "")


def test_what_models_wrote_is_allowed(shared_data: Path, gemma: Tokenizer) -> None:
    num_checked = 0
    for name in ("checkpoint_outputs", "finetuned_outputs"):
        for case in json.loads((shared_data / "outputs" / f"{name}.json").read_text())["cases"]:
            text = (case["raw_output"] or "").removesuffix("<eos>")
            parsed = parse_objects(ids := gemma.tokenize_text(text), [0.0] * len(ids), gemma)
            if not parsed.objects or parsed.problems:
                continue
            names = list(dict.fromkeys(item.label for item in parsed.objects))
            for task in (DetectTask.of(names), DetectTask.of(names, labels="any")):
                assert admits(task.grammar(gemma), text, gemma), text
            num_checked += 1
    assert num_checked > 30


@pytest.mark.parametrize(
    "phrase",
    ["cat", "traffic light", "red, green", "driver's licence", '24" screen', "красный мяч"],
)
def test_a_label_has_the_tokens_that_it_has_in_a_whole_output(
    phrase: str, writer: TokenWriter
) -> None:
    text = f"{BOX} {phrase} ; {BOX2} {phrase} ; {BOX2} dog"
    after(DetectTask.of([phrase, "dog"]).grammar(writer), f"{text} ; {BOX}", writer)


def test_a_phrase_of_places_is_refused(writer: TokenWriter) -> None:
    with pytest.raises(PromptError, match="must not contain location tokens"):
        DetectTask.of("cat <loc0001>").grammar(writer)


@pytest.mark.parametrize("kind", [DetectTask, SegmentTask])
@pytest.mark.parametrize(
    "options", [{"labels": "all"}, {"max_objects": 0}, {"max_objects": True}, {"max_objects": 2.5}]
)
def test_options_that_make_no_sense_are_refused(kind, options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        kind.of("cat", **options)


def test_tasks_with_a_grammar_can_be_told_from_those_without() -> None:
    assert isinstance(DetectTask.of("cat"), GuidedTask)
    assert isinstance(SegmentTask.of("cat"), GuidedTask)
    assert not isinstance(CaptionTask(), GuidedTask)
