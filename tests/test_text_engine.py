"""Rows of text come and go: in what order, from which pictures, in how much memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paligemma import text_engine
from paligemma.engine.engine import Engine
from paligemma.engine.image_cache import ImageCache
from paligemma.engine.sampling import Sampling
from paligemma.errors import ImageError, OptionError, PaliGemmaError, PromptError
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.text_engine import Decoding, TextEngine, WrittenRow
from tests.agreement.tiny_predictor import build_predictor, picture

IMAGE = picture(0, (200, 100))
GREEDY = Decoding()


@pytest.fixture
def texts(tiny_tokenizer: Tokenizer) -> TextEngine:
    predictor = build_predictor(tiny_tokenizer)
    return TextEngine(
        model=predictor.model, processor=predictor.processor, image_cache=ImageCache(10**6)
    )


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The sizes of the engines that are made."""
    sizes: list[dict[str, Any]] = []

    def recorded(model: object, **options: Any) -> Engine:
        sizes.append(options)
        return Engine(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(text_engine, "Engine", recorded)
    return sizes


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the processor reads, in order."""
    sources: list[object] = []
    load = Processor.load

    def recorded(self: Processor, source: Any) -> Any:
        sources.append(source)
        return load(self, source)

    monkeypatch.setattr(Processor, "load", recorded)
    return sources


def test_an_engine_is_no_larger_than_the_rows_need(
    texts: TextEngine, engines: list[dict[str, Any]]
) -> None:
    image_places = texts.processor.num_image_tokens
    one = texts.build_row("ab", [IMAGE], 7)
    assert one.num_positions == image_places + len("ab") + 2 + 7
    list(texts.run([one], GREEDY, 32))
    list(texts.stream(one, GREEDY))
    long = texts.build_row("abcd", [], 9)
    list(texts.run([long, one, one], GREEDY, 2))
    sizes = [(size["max_rows"], size["num_positions"]) for size in engines]
    assert sizes == [(1, one.num_positions), (1, one.num_positions), (2, one.num_positions)]


def test_a_row_that_ends_makes_room_for_the_next(texts: TextEngine) -> None:
    rows = [texts.build_row("ocr", [IMAGE], limit) for limit in (6, 1, 2, 1)]
    assert [number for number, _ in texts.run(rows, GREEDY, 2)] == [1, 2, 3, 0]
    assert [number for number, _ in texts.run(rows, GREEDY, 4)] == [1, 3, 2, 0]
    lengths = {n: len(w.generation.token_ids) for n, w in texts.run(rows, GREEDY, 1)}  # type: ignore[union-attr]
    assert lengths == {0: 6, 1: 1, 2: 2, 3: 1}


def test_pictures_are_read_when_their_turn_comes_and_once_by_neighbors(
    texts: TextEngine, reads: list[object], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    rows = [texts.build_row(text, [path], 2) for path in paths for text in ("ocr", "caption en")]
    written = texts.run(rows, GREEDY, 2)
    next(written)
    assert reads == paths[:1]
    list(written)
    assert reads == paths


def test_a_row_that_cannot_begin_comes_out_in_its_turn(texts: TextEngine) -> None:
    fine = texts.build_row("ocr", [IMAGE], 2)
    missing = texts.build_row("ocr", ["nowhere.png"], 2)
    for decoding in (GREEDY, Decoding(num_beams=2)):
        found = dict(texts.run([fine, PromptError("no"), missing, fine], decoding, 1))
        kinds = [type(found[number]) for number in range(4)]
        assert kinds == [WrittenRow, PromptError, ImageError, WrittenRow]
    assert list(texts.run([], GREEDY, 1)) == []
    error = PromptError("no")
    assert list(texts.run([error], GREEDY, 1)) == [(0, error)]


def test_a_row_with_a_grammar_of_another_vocabulary_is_its_own_error(texts: TextEngine) -> None:
    class Beyond:
        allowed = range(10**6, 10**6 + 5)

        def advance(self, token_id: int, /) -> Beyond:
            return self

    rows = [texts.build_row("ocr", [IMAGE], 2, grammar) for grammar in (Beyond(), None)]
    found = dict(texts.run(rows, GREEDY, 2))
    assert isinstance(found[0], OptionError)
    assert isinstance(found[1], WrittenRow)


def test_a_grammar_that_breaks_harms_no_neighbor(texts: TextEngine) -> None:
    class Broken:
        allowed = None

        def advance(self, token_id: int, /) -> Broken:
            raise self.error

    def run(error: Exception) -> dict[int, WrittenRow | PaliGemmaError]:
        grammar = Broken()
        grammar.error = error  # type: ignore[attr-defined]
        rows = [texts.build_row("ocr", [IMAGE], 3, made) for made in (grammar, None)]
        return dict(texts.run(rows, GREEDY, 2))

    found = run(PromptError("no such word"))
    assert str(found[0]) == "no such word"
    assert isinstance(found[1], WrittenRow)
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())


def test_a_row_says_how_its_pictures_lay(texts: TextEngine) -> None:
    row = texts.build_row("ocr", [IMAGE, Image.new("RGB", (30, 70))], 1)
    [(_, written)] = texts.run([row], GREEDY, 1)
    assert isinstance(written, WrittenRow)
    assert [transform.source_wh for transform in written.transforms] == [(200, 100), (30, 70)]


def test_a_stream_reads_its_pictures_before_its_first_piece(texts: TextEngine) -> None:
    with pytest.raises(ImageError, match="nowhere"):
        texts.stream(texts.build_row("ocr", ["nowhere.png"], 2), GREEDY)


def test_a_prompt_that_is_too_long_is_refused_with_its_pictures(texts: TextEngine) -> None:
    with pytest.raises(PromptError, match="8192"):
        texts.build_row("ocr", [IMAGE] * 400, 1)
    with pytest.raises(PromptError, match="8192"):
        texts.build_row("ocr", [IMAGE], 8192)


@pytest.mark.parametrize(
    "options",
    [
        {"stop": "."},
        {"stop": ["", "a"]},
        {"stop": [None]},
        {"num_beams": 2, "stop": ["."]},
        {"num_beams": 2, "sampler": Sampling()},
    ],
)
def test_decodings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Decoding(**options)
