"""Object lists as the model writes them: parsing, box coordinates and scores.

    output  = [text] object (" ; " object)* [" ;"]
    object  = loc loc loc loc [16 seg] [label]

The parser works on token ids, not on text, so nothing in a label can be mistaken for coordinates.
It never raises; malformed parts become a `Problem`.

A box is (x1, y1, x2, y2) in fractions of the image's width and height; its tokens are 1024 bins in
the order y1, x1, y2, x2. Bins follow big_vision (`pp/proj/paligemma`): round(v * 1023), read back
as bin / 1023. Other parsers divide by 1024, which differs by at most 0.1 % of a side.

The score of an object is the probability that it is right: that there is such an object, that the
label is its name, and that the box overlaps its box by an IoU of at least 0.5.

    existence_score  P(the list goes on): of the separator before the object, and of any location
                     token where its first one was chosen
    label_score      P(the label's tokens), 1 without a label
    coordinate_score P(IoU >= 0.5), from the distributions over the bins of the four coordinates:
                     `box_confidence`
    score            the product of these three
    mask_score       exp(mean log-probability of the 16 mask tokens), not part of `score`
    score of a text  exp(mean log-probability of all its tokens, including the final EOS); of an
                     answer to a question, the probability of all of them together

With grammar-constrained decoding, the probability of a location or mask token is relative to the
allowed ones, and that of every other token relative to the whole vocabulary, so a label that was
the only one allowed does not score higher for it. The first token of a box, where the list could
have ended instead, is of the second kind.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from paligemma.config import NUM_CODES_PER_MASK, NUM_LOC_TOKENS
from paligemma.errors import InputError, PromptError
from paligemma.results import BoxXyxy, Problem, RangeSummary, StopReason, one_line

BoxYxyxBins = tuple[int, int, int, int]
_LAST_BIN = NUM_LOC_TOKENS - 1
_ALMOST_ONE = math.nextafter(1.0, 0.0)
_MIN_IOU = 0.5
_NEAR = 0.5  # of the box's height or width
_NUM_SAMPLES = 256


def encode_box(box_normalized_xyxy: BoxXyxy) -> BoxYxyxBins:
    """Return four bins, 0 to 1023, y first; edges outside the image are clamped to its border.

    Raises InputError when an edge is not a finite number.

    >>> encode_box((0.25, 0.0, 1.0, 0.5))
    (0, 256, 512, 1023)
    """
    if not all(math.isfinite(edge) for edge in box_normalized_xyxy):
        raise InputError(
            f"The box {box_normalized_xyxy} has an edge that is not finite. Give four finite "
            "numbers, x1, y1, x2, y2."
        )
    x1, y1, x2, y2 = (
        round(min(max(float(edge), 0.0), 1.0) * _LAST_BIN) for edge in box_normalized_xyxy
    )
    return y1, x1, y2, x2


def decode_box(box_yxyx_bins: BoxYxyxBins) -> BoxXyxy:
    """Return the box in fractions of the image, x first.

    >>> decode_box((0, 341, 682, 1023)) == (1 / 3, 0.0, 1.0, 2 / 3)
    True
    """
    y1, x1, y2, x2 = (bin_ / _LAST_BIN for bin_ in box_yxyx_bins)
    return x1, y1, x2, y2


def format_box(box_normalized_xyxy: BoxXyxy) -> str:
    """Return the box as the text of its four tokens.

    >>> format_box((0.25, 0.0, 1.0, 0.5))
    '<loc0000><loc0256><loc0512><loc1023>'
    """
    return "".join(f"<loc{bin_:04d}>" for bin_ in encode_box(box_normalized_xyxy))


def mean_probability(logprobs: Sequence[float]) -> float:
    """Return exp(mean(logprobs)), at most 1; 1 for no tokens, NaN for unknown ones.

    >>> round(mean_probability([math.log(0.5), math.log(0.125)]), 6)
    0.25
    """
    if not logprobs:
        return 1.0
    # Rounding in the softmax can make a log-probability slightly positive. NaN stays NaN.
    return math.exp(min(math.fsum(logprobs) / len(logprobs), 0.0))


def joint_probability(logprobs: Sequence[float]) -> float:
    """Return exp(sum(logprobs)), at most 1; 1 for no tokens, NaN for unknown ones.

    >>> round(joint_probability([math.log(0.5), math.log(0.125)]), 6)
    0.0625
    """
    return math.exp(min(math.fsum(logprobs), 0.0))


SEPARATOR = " ; "
NUM_LOCS = 4


class TokenReader(Protocol):
    """The part of a tokenizer that tasks use."""

    @property
    def eos_id(self) -> int: ...
    @property
    def loc_offset(self) -> int: ...
    @property
    def seg_offset(self) -> int: ...
    def is_loc(self, token_id: int, /) -> bool: ...
    def is_seg(self, token_id: int, /) -> bool: ...
    def detokenize(self, token_ids: Sequence[int], /) -> str: ...


@dataclass(frozen=True, kw_only=True)
class ParsedObject:
    """One object in terms of tokens: bins and codes. The module docstring defines the scores."""

    label: str
    box_yxyx_bins: BoxYxyxBins
    seg_codes: tuple[int, ...]  # 16 mask codes, or none
    score: float
    existence_score: float
    label_score: float
    coordinate_score: float
    mask_score: float
    token_span: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ParsedObjects:
    """A parsed output: its objects, problems of skipped ones, and text outside of objects."""

    objects: tuple[ParsedObject, ...]
    problems: tuple[Problem, ...]
    texts: tuple[str, ...]


def split_phrases(phrases: str | Iterable[str]) -> tuple[str, ...]:
    """Split phrases at ";", strip them and drop duplicates (ignoring case).

    Raises PromptError when no phrase is left.

    >>> split_phrases("cat; traffic light ;cat")
    ('cat', 'traffic light')
    """
    texts: list[str] | None = None
    if isinstance(phrases, Iterable):
        texts = [phrases] if isinstance(phrases, str) else list(phrases)
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise PromptError(
            f"The phrases are {phrases!r}; expected text such as 'cat ; dog', or a list of texts."
        )
    # White space becomes a single space, because a line break would end the prefix early.
    parts = (" ".join(part.split()) for text in texts for part in text.split(";"))
    unique: dict[str, str] = {}
    for part in parts:
        if part:
            unique.setdefault(part.casefold(), part)
    if not unique:
        raise PromptError(
            "There are no phrases to look for. Give one or more, such as 'cat ; dog'."
        )
    return tuple(unique.values())


_SEPARATORS = re.compile(r"[,،、，；؛|\t\n\r]")
"""What people write between phrases, other than ";": commas and semicolons of several scripts."""
_JOINED = re.compile(r"[/&+]|\s(and|or|und|oder|et|ou|y|o|e)\s", re.IGNORECASE)
"""What may join two phrases, or belong to one: "salt and pepper shaker"."""
_LIST_MARK = re.compile(r"([*•-]|\d+[.)])\s+(?=\S)")
_QUOTED = re.compile(r"""["'“„«]([^"'“”„«»]+)["'“”»]""")
_TASK_WORD = re.compile(r"(detect|segment)(\s*:\s*|\s+)(?=\S)", re.IGNORECASE)


def read_phrases(phrases: str | Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Phrases as people type them, and notes on what was changed to understand them.

    A text without ";" is split at commas, "|" and line breaks, but not at "and", "/" and the like,
    which may be part of a phrase: `joined_phrases_note`. The task's own word in front of the
    phrases is dropped, since it is added again, and so are bullets, numbers, quotes and brackets of
    lists. A list is split at ";" alone.

    Raises PromptError when no phrase is left.

    >>> read_phrases("detect cat, dog")[0], read_phrases("man in red, left ;")[0]
    (('cat', 'dog'), ('man in red, left',))
    """
    if not isinstance(phrases, str):
        return split_phrases(phrases), ()
    notes = []
    if word := _TASK_WORD.match(phrases):
        phrases = phrases[word.end() :]
        notes.append(f"{word[1]!r} in front of the phrases was left out: it is added by itself.")
    if ";" not in phrases and _SEPARATORS.search(phrases.strip()):
        text, phrases = phrases, _SEPARATORS.sub(";", phrases)
        notes.append(
            f"{one_line(text)!r} was split at its commas and line breaks. For one phrase with a "
            "comma, end it with a semicolon."
        )
    texts = split_phrases(phrases)
    plain = split_phrases(map(_without_marks, _without_brackets(texts)))
    if plain != texts:
        notes.append(f"The phrases were read without the marks around them: {' ; '.join(plain)}.")
    return plain, tuple(notes)


def _without_brackets(phrases: tuple[str, ...]) -> tuple[str, ...]:
    if not (phrases[0].startswith("[") and phrases[-1].endswith("]")):
        return phrases
    return split_phrases(";".join(phrases)[1:-1])


def _without_marks(phrase: str) -> str:
    """Without a bullet or number, the task's word, or quotes around the whole phrase."""
    for mark in (_LIST_MARK, _TASK_WORD):
        if match := mark.match(phrase):
            phrase = phrase[match.end() :]
    quoted = _QUOTED.fullmatch(phrase)
    return quoted[1] if quoted else phrase


def joined_phrases_note(phrases: Iterable[str]) -> str | None:
    """A note on phrases that may be several; for those of which nothing sure was found.

    >>> joined_phrases_note(["frog and toad", "candy"])
    "Each was asked for as one thing: 'frog and toad'. To ask for several, write ';' between them."
    """
    joined = [repr(phrase) for phrase in phrases if _JOINED.search(phrase)]
    if not joined:
        return None
    return (
        f"Each was asked for as one thing: {', '.join(joined)}. To ask for several, write ';' "
        "between them."
    )


def before_eos(token_ids: Sequence[int], tokenizer: TokenReader) -> list[int]:
    """Return the ids before the first EOS."""
    ids = list(token_ids)
    return ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids


def parse_objects(
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    tokenizer: TokenReader,
    *,
    locations: Sequence[RangeSummary | None] = (),
    stop_reason: StopReason = "eos",
) -> ParsedObjects:
    """Parse the objects of an output; `logprobs` and `locations` have one value per id.

    Without `locations`, how certain the boxes are is not known, and neither is the score.

    `<loc0256><loc0000><loc0512><loc1023> cat ; <loc0001>` with stop_reason "length" gives one
    object, cat, and one problem of kind "cut".
    """
    ids = before_eos(token_ids, tokenizer)
    is_loc = [tokenizer.is_loc(token_id) for token_id in ids]
    starts = [i for i, loc in enumerate(is_loc) if loc and not (i and is_loc[i - 1])]
    bounds = [*starts, len(ids)]
    objects: list[ParsedObject] = []
    problems: list[Problem] = []
    texts: list[str] = []
    seen: set[tuple[str, BoxYxyxBins]] = set()

    def read_outside(start: int, end: int) -> None:
        for is_seg, first, last in _runs(ids, start, end, tokenizer):
            if is_seg:
                detail = f"{last - first} mask tokens outside an object."
                problems.append(Problem(kind="malformed", detail=detail, token_span=(first, last)))
            elif (text := tokenizer.detokenize(ids[first:last]).strip()).strip("; "):
                texts.append(text)

    read_outside(0, bounds[0])
    for start, end in itertools.pairwise(bounds):
        piece = _read_piece(ids, start, end, tokenizer)
        is_cut = stop_reason == "length" and end == len(ids)
        scores = _scores(piece, ids, logprobs, locations, tokenizer)
        parsed = _to_object(piece, scores, is_cut=is_cut)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        elif (parsed.label, parsed.box_yxyx_bins) in seen:
            detail = f"{parsed.label!r} with the same box occurred before."
            problems.append(Problem(kind="repeated", detail=detail, token_span=piece.span))
        else:
            # The same box without a label is a repetition too.
            seen |= {(parsed.label, parsed.box_yxyx_bins), ("", parsed.box_yxyx_bins)}
            objects.append(parsed)
        if piece.text_after:
            texts.append(piece.text_after)
        read_outside(piece.end, end)
    if stop_reason == "length" and not any(problem.kind == "cut" for problem in problems):
        reason = f"the list ended at the limit of {len(ids)} tokens"
        problems.append(cut_problem(reason, "max_new_tokens", (len(ids), len(ids))))
    return ParsedObjects(objects=tuple(objects), problems=tuple(problems), texts=tuple(texts))


def cut_problem(reason: str, option: str, span: tuple[int, int]) -> Problem:
    """A list that ended at the limit that `option` sets."""
    detail = (
        f"{reason}; more objects may follow. Ask again with a larger {option}, or for fewer "
        "phrases."
    )
    return Problem(kind="cut", detail=detail, token_span=span)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A run of location tokens and what follows, up to stray mask tokens or the next run.

    Token positions: `start`, locs, `locs_end`, (blank,) segs, `segs_end`, label, `label_end`,
    separator and further text, `end`.
    """

    start: int
    locs_end: int
    segs_end: int
    label_end: int
    end: int
    bins: tuple[int, ...]
    codes: tuple[int, ...]
    label: str
    is_closed: bool  # a separator or something else follows the label, so the label is complete
    text_after: str

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.label_end


def _read_piece(ids: list[int], start: int, limit: int, tokenizer: TokenReader) -> _Piece:
    locs_end = start
    while locs_end < limit and tokenizer.is_loc(ids[locs_end]):
        locs_end += 1
    segs_start = locs_end
    # Google's own example has a space between location and mask tokens.
    while segs_start < limit and not tokenizer.detokenize([ids[segs_start]]).strip():
        segs_start += 1
    segs_end = segs_start
    while segs_end < limit and tokenizer.is_seg(ids[segs_end]):
        segs_end += 1
    if segs_end == segs_start:
        segs_start = segs_end = locs_end
    end = next((i for i in range(segs_end, limit) if tokenizer.is_seg(ids[i])), limit)

    text = tokenizer.detokenize(ids[segs_end:end])
    label, separator, text_after = text.partition(SEPARATOR)
    label = label.rstrip()
    is_closed = bool(separator) or label.endswith(";") or end < limit
    if not separator:
        label = label.removesuffix(";").rstrip()
    return _Piece(
        start=start,
        locs_end=locs_end,
        segs_end=segs_end,
        label_end=segs_end + _count_tokens(ids[segs_end:end], len(label), tokenizer),
        end=end,
        bins=tuple(token_id - tokenizer.loc_offset for token_id in ids[start:locs_end]),
        codes=tuple(token_id - tokenizer.seg_offset for token_id in ids[segs_start:segs_end]),
        label=label.strip(),
        is_closed=is_closed,
        text_after=text_after.strip(),
    )


def _count_tokens(ids: list[int], num_characters: int, tokenizer: TokenReader) -> int:
    """Return how many of the ids make up the first `num_characters` of their text."""
    return bisect.bisect_left(
        range(len(ids)), num_characters, key=lambda n: len(tokenizer.detokenize(ids[:n]))
    )


def box_confidence(box_yxyx: Sequence[float], quantiles: Sequence[Sequence[float]]) -> float:
    """Return P(IoU >= 0.5) of a box and one drawn from the distributions of its edges.

    A model that draws boxes by sampling would draw others than this one. How often they overlap it
    is the probability, by the model's own account, that it is where the object is. `quantiles` has
    values of equal probability for each of y1, x1, y2, x2, in the unit of the box; edges are taken
    as independent. Samples combine them at random but evenly (a Latin hypercube: McKay, Beckman and
    Conover, Technometrics 21, 1979), and always in the same way.

    The distribution of an edge also has mass at the edges of other objects that could have been
    listed here. What is farther from the edge than half of the box's side belongs to those and does
    not count.

    >>> box_confidence((0, 0, 10, 10), [[0, 0], [0, 0], [10, 10], [4.9, 5.1]])
    0.5
    """
    top, left, bottom, right = box_yxyx
    near = _NEAR * max(bottom - top, 1.0), _NEAR * max(right - left, 1.0)
    y1, x1, y2, x2 = (
        _draw(edge, quantiles[side], near[side % 2], _positions()[side])
        for side, edge in enumerate(box_yxyx)
    )
    heights = np.minimum(y2, bottom) - np.maximum(y1, top)
    widths = np.minimum(x2, right) - np.maximum(x1, left)
    overlap = heights.clip(min=0) * widths.clip(min=0)
    areas = (y2 - y1).clip(min=0) * (x2 - x1).clip(min=0)
    union = areas + (bottom - top) * (right - left) - overlap
    return float((overlap >= _MIN_IOU * union).mean())


def _draw(
    edge: float, quantiles: Sequence[float], near: float, positions: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return float64[N]: the values near the edge at N positions, 0 to 1, in their distribution."""
    values = np.asarray(quantiles, dtype=np.float64)
    values = values[np.abs(values - edge) <= near]
    if not len(values):
        values = np.array([edge], dtype=np.float64)
    chosen: npt.NDArray[np.float64] = values[(positions * len(values)).astype(np.int64)]
    return chosen


@cache
def _positions() -> npt.NDArray[np.float64]:
    """float64[4, N]: for each edge, N evenly spaced positions in an order of its own."""
    rng = np.random.default_rng(0)
    evenly = (np.arange(_NUM_SAMPLES) + 0.5) / _NUM_SAMPLES
    return np.stack([rng.permutation(evenly) for _ in range(4)])


def separator_start(ids: Sequence[int], end: int, tokenizer: TokenReader) -> int:
    """Return where the separator begins that ends at this index; the index itself without one."""
    start = end
    while start and tokenizer.detokenize([ids[start - 1]]).strip() in ("", SEPARATOR.strip()):
        start -= 1
    return start


class _Scores(NamedTuple):
    existence: float
    label: float
    coordinate: float
    mask: float


def _scores(
    piece: _Piece,
    ids: list[int],
    logprobs: Sequence[float],
    locations: Sequence[RangeSummary | None],
    tokenizer: TokenReader,
) -> _Scores:
    """Return the scores of a piece, as the module docstring defines them."""
    first = separator_start(ids, piece.start, tokenizer)
    existence = joint_probability(logprobs[first : piece.start])
    coordinate = math.nan
    summaries = [item for item in locations[piece.start : piece.locs_end] if item is not None]
    if len(summaries) == len(piece.bins) == NUM_LOCS:
        existence *= summaries[0].probability
        edges = [[id_ - tokenizer.loc_offset for id_ in item.quantiles] for item in summaries]
        coordinate = box_confidence(piece.bins, edges)
    return _Scores(
        existence=existence,
        label=_label_probability(logprobs[piece.segs_end : piece.label_end]),
        coordinate=coordinate,
        mask=mean_probability(logprobs[piece.segs_end - len(piece.codes) : piece.segs_end]),
    )


def _label_probability(logprobs: Sequence[float]) -> float:
    """Return 1 for no label alone, so that a label which is certain can be told from none."""
    return min(joint_probability(logprobs), _ALMOST_ONE) if logprobs else 1.0


def _to_object(piece: _Piece, scores: _Scores, *, is_cut: bool) -> ParsedObject | Problem:
    """Return the object or its problem; `is_cut` if generation stopped at the piece's end."""
    num_locs, num_codes = len(piece.bins), len(piece.codes)
    problem = None
    is_complete = piece.is_closed
    if num_locs != NUM_LOCS:
        problem = f"{num_locs} location tokens in a row; a box has {NUM_LOCS}."
        is_complete |= num_locs > NUM_LOCS or piece.locs_end < piece.end
    elif num_codes not in (0, NUM_CODES_PER_MASK):
        problem = f"{num_codes} mask tokens in a row; a mask has {NUM_CODES_PER_MASK}."
        is_complete |= num_codes > NUM_CODES_PER_MASK or piece.segs_end < piece.end
    elif piece.bins[2] <= piece.bins[0] or piece.bins[3] <= piece.bins[1]:
        problem = f"the box {piece.bins} (y1, x1, y2, x2) has no area."
        is_complete = True
    if is_cut and not is_complete:
        return cut_problem("the tokens ran out inside this object", "max_new_tokens", piece.span)
    if problem is not None:
        return Problem(kind="malformed", detail=problem, token_span=piece.span)

    y1, x1, y2, x2 = piece.bins
    return ParsedObject(
        label=piece.label,
        box_yxyx_bins=(y1, x1, y2, x2),
        seg_codes=piece.codes,
        score=scores.existence * scores.label * scores.coordinate,
        existence_score=scores.existence,
        label_score=scores.label,
        coordinate_score=scores.coordinate,
        mask_score=scores.mask,
        token_span=piece.span,
    )


def _runs(
    ids: list[int], start: int, end: int, tokenizer: TokenReader
) -> Iterator[tuple[bool, int, int]]:
    """Yield runs of mask tokens and of other tokens in [start, end): (is_seg, first, last + 1)."""
    first = start
    for is_seg, run in itertools.groupby(ids[start:end], key=tokenizer.is_seg):
        last = first + len(list(run))
        yield is_seg, first, last
        first = last
