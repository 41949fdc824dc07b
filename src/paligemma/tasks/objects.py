"""Lists of objects as the model writes them: boxes, scores and mask codes.

    output  = [text] object (" ; " object)* [" ;"]
    object  = loc loc loc loc [16 seg] [label]

The parser walks token ids, not text: a label may hold any writing, and nothing in it can be
mistaken for coordinates. It never raises; what does not fit becomes a `Problem`.

A box is (x1, y1, x2, y2) in fractions of the image's width and height; its tokens are 1024 bins in
the order y1, x1, y2, x2. Bins follow big_vision (`pp/proj/paligemma`): round(v * 1023), read back
as bin / 1023. Other parsers divide by 1024, which differs by at most 0.1 % of a side.

Log-probabilities become scores here, and nowhere else:

    p(tokens)        = exp(mean of their log-probabilities), a geometric mean
    text             p(all tokens, the closing EOS too)
    coordinate_score p(the 4 location tokens)
    label_score      p(the label's tokens), 1 without a label
    score            sqrt(coordinate_score * label_score), coordinate_score without a label
    mask_score       p(the 16 mask tokens), kept apart from `score`

Where decoding was restricted by a grammar, a location or mask token that had to come has its share
of those that could come, and every other token its probability among the whole vocabulary: a label
that was the only possible one is not believed more for it. A box's first token, before which the
list might have ended, is of the latter kind.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from paligemma.config import NUM_CODES_PER_MASK, NUM_LOC_TOKENS
from paligemma.errors import InputError, PromptError
from paligemma.results import BoxXyxy, Problem, StopReason

BoxYxyxBins = tuple[int, int, int, int]
_LAST_BIN = NUM_LOC_TOKENS - 1


def encode_box(box_normalized_xyxy: BoxXyxy) -> BoxYxyxBins:
    """Four bins, 0 to 1023, y first; edges outside the picture are moved to its border.

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
    """The box in fractions, x first.

    >>> decode_box((0, 341, 682, 1023)) == (1 / 3, 0.0, 1.0, 2 / 3)
    True
    """
    y1, x1, y2, x2 = (bin_ / _LAST_BIN for bin_ in box_yxyx_bins)
    return x1, y1, x2, y2


def format_box(box_normalized_xyxy: BoxXyxy) -> str:
    """The box as the text of its four tokens.

    >>> format_box((0.25, 0.0, 1.0, 0.5))
    '<loc0000><loc0256><loc0512><loc1023>'
    """
    return "".join(f"<loc{bin_:04d}>" for bin_ in encode_box(box_normalized_xyxy))


def mean_probability(logprobs: Sequence[float]) -> float:
    """exp(mean(logprobs)), at most 1; 1 for no tokens.

    >>> round(mean_probability([math.log(0.5), math.log(0.125)]), 6)
    0.25
    """
    if not logprobs:
        return 1.0
    # Rounding in the softmax can leave a log-probability slightly above zero.
    return min(1.0, math.exp(min(0.0, math.fsum(logprobs) / len(logprobs))))


def object_score(coordinate_score: float, label_score: float, *, has_label: bool) -> float:
    """One number for a box: both its place and its name must be believed.

    >>> round(object_score(0.9, 0.4, has_label=True), 6)
    0.6
    """
    return math.sqrt(coordinate_score * label_score) if has_label else coordinate_score


SEPARATOR = " ; "
NUM_LOCS = 4


class TokenReader(Protocol):
    """What tasks need of a tokenizer."""

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
    """One object, still in tokens' terms. Scores: see `object_score`."""

    label: str
    box_yxyx_bins: BoxYxyxBins
    seg_codes: tuple[int, ...]
    """16 mask codes, or none."""
    score: float
    coordinate_score: float
    label_score: float
    mask_score: float
    token_span: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ParsedObjects:
    """A whole output: its objects, what was left out, and text that belongs to no object."""

    objects: tuple[ParsedObject, ...]
    problems: tuple[Problem, ...]
    texts: tuple[str, ...]


def split_phrases(phrases: str | Iterable[str]) -> tuple[str, ...]:
    """The things asked for, each once, without surrounding space.

    Raises PromptError when nothing is left.

    >>> split_phrases("cat; traffic light ;cat")
    ('cat', 'traffic light')
    """
    given = [phrases] if isinstance(phrases, str) else list(phrases)
    if not all(isinstance(phrase, str) for phrase in given):
        raise PromptError(f"The phrases are {given!r}; each must be a str.")
    # Runs of white space are one space: a line break would end the prefix early.
    parts = (" ".join(part.split()) for phrase in given for part in phrase.split(";"))
    unique: dict[str, str] = {}
    for part in parts:
        if part:
            unique.setdefault(part.casefold(), part)
    if not unique:
        raise PromptError(
            "There are no phrases to look for. Give one or more, such as 'cat ; dog'."
        )
    return tuple(unique.values())


def before_eos(token_ids: Sequence[int], tokenizer: TokenReader) -> list[int]:
    """The ids up to the first EOS, without it."""
    ids = list(token_ids)
    return ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids


def parse_objects(
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    tokenizer: TokenReader,
    *,
    stop_reason: StopReason = "eos",
) -> ParsedObjects:
    """Read the objects of an output; `logprobs` holds one number for each id.

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
        found = _judge(piece, logprobs, is_cut=stop_reason == "length" and end == len(ids))
        if isinstance(found, Problem):
            problems.append(found)
        elif (found.label, found.box_yxyx_bins) in seen:
            detail = f"{found.label!r} with the same box occurred before."
            problems.append(Problem(kind="repeated", detail=detail, token_span=piece.span))
        else:
            # A box that came with a label says nothing new without one.
            seen |= {(found.label, found.box_yxyx_bins), ("", found.box_yxyx_bins)}
            objects.append(found)
        if piece.text_after:
            texts.append(piece.text_after)
        read_outside(piece.end, end)
    return ParsedObjects(objects=tuple(objects), problems=tuple(problems), texts=tuple(texts))


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A run of location tokens and what follows it, up to mask tokens astray or the next run.

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
    is_closed: bool
    """A separator or something else follows the label, so that it is whole."""
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
    """How many of the ids make up the first characters of their text."""
    return bisect.bisect_left(
        range(len(ids)), num_characters, key=lambda n: len(tokenizer.detokenize(ids[:n]))
    )


def _judge(piece: _Piece, logprobs: Sequence[float], *, is_cut: bool) -> ParsedObject | Problem:
    """The object, or why it is none; `is_cut` when the tokens ran out at the piece's end."""
    num_locs, num_codes = len(piece.bins), len(piece.codes)
    fault = None
    is_whole = piece.is_closed
    if num_locs != NUM_LOCS:
        fault = f"{num_locs} location tokens in a row; a box has {NUM_LOCS}."
        is_whole |= num_locs > NUM_LOCS or piece.locs_end < piece.end
    elif num_codes not in (0, NUM_CODES_PER_MASK):
        fault = f"{num_codes} mask tokens in a row; a mask has {NUM_CODES_PER_MASK}."
        is_whole |= num_codes > NUM_CODES_PER_MASK or piece.segs_end < piece.end
    elif piece.bins[2] <= piece.bins[0] or piece.bins[3] <= piece.bins[1]:
        fault = f"the box {piece.bins} (y1, x1, y2, x2) has no area."
        is_whole = True
    if is_cut and not is_whole:
        detail = "the tokens ran out inside this object."
        return Problem(kind="cut", detail=detail, token_span=piece.span)
    if fault is not None:
        return Problem(kind="malformed", detail=fault, token_span=piece.span)

    y1, x1, y2, x2 = piece.bins
    coordinate_score = mean_probability(logprobs[piece.start : piece.locs_end])
    label_score = mean_probability(logprobs[piece.segs_end : piece.label_end])
    return ParsedObject(
        label=piece.label,
        box_yxyx_bins=(y1, x1, y2, x2),
        seg_codes=piece.codes,
        score=object_score(coordinate_score, label_score, has_label=bool(piece.label)),
        coordinate_score=coordinate_score,
        label_score=label_score,
        mask_score=mean_probability(logprobs[piece.segs_end - num_codes : piece.segs_end]),
        token_span=piece.span,
    )


def _runs(
    ids: list[int], start: int, end: int, tokenizer: TokenReader
) -> Iterator[tuple[bool, int, int]]:
    """Stretches of mask tokens and of others in [start, end): (is_seg, first, last + 1)."""
    first = start
    for is_seg, run in itertools.groupby(ids[start:end], key=tokenizer.is_seg):
        last = first + len(list(run))
        yield is_seg, first, last
        first = last
