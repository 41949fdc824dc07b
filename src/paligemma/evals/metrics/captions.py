"""CIDEr-D, BLEU and ROUGE-L of captions, as pycocoevalcap computes them.

The official scores use the words of Stanford's PTBTokenizer (a Java program), in lower case and
without punctuation. `ptb_words` is our own implementation of those conventions, made for captions:
clitics are separated ("isn't" -> is n't), abbreviations keep their full stop, numbers stay whole,
brackets become -lrb- and -rrb-, quotation marks, commas and the like are dropped. Rare forms
(formulas, smileys, phone numbers) may differ; docs/metrics.md says how often.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from paligemma.evals.metrics.result import MetricResult, References, mean_result, pair

TextForm = Literal["ptb", "split"]

_MAX_ORDER = 4
_SIGMA = 6.0

NGram = tuple[str, ...]
# The official code's, which keep a precision of zero from failing.
_SMALL = 1e-9
_TINY = 1e-15
_BETA_SQUARED = 1.2**2


@dataclass(frozen=True, kw_only=True)
class Cider:
    """CIDEr-D of each caption against all its references; the value is the mean.

    Vedantam et al. 2015, arXiv 1411.5726, section 5: cosine of tf-idf vectors of 1- to 4-grams,
    counts clipped to the reference's, a Gaussian penalty on the difference in length (sigma 6),
    times 10. Document frequencies come from the references of the set that is scored, so the score
    of one caption depends on the whole set, and a set of one always scores 0.

    The value is 1.42 where papers print 142; good captions score above 1, and 10 is the maximum.
    `text="ptb"` makes words as the official tokenizer does (lower case, no punctuation);
    `text="split"` splits at white space and changes nothing.
    """

    text: TextForm = "ptb"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        pairs = pair(predictions, references)
        predicted = [_count_ngrams(words_of(text, self.text)) for text, _ in pairs]
        truths = [
            [_count_ngrams(words_of(r, self.text)) for r in accepted] for _, accepted in pairs
        ]
        frequency: Counter[NGram] = Counter()
        for references_of_image in truths:
            frequency.update({ngram for counts in references_of_image for ngram in counts})
        # log of the number of images divided by the number whose references have the n-gram
        log_images = math.log(len(pairs))
        rarity = {ngram: log_images - math.log(count) for ngram, count in frequency.items()}

        scores = []
        for counts, references_of_image in zip(predicted, truths, strict=True):
            vector = _Vector(counts, rarity, log_images)
            total = sum(
                vector.similarity(_Vector(reference, rarity, log_images))
                for reference in references_of_image
            )
            scores.append(10.0 * total / len(references_of_image))
        return mean_result("cider", scores)


class _Vector:
    """The tf-idf vectors of one caption, one per n."""

    def __init__(
        self, counts: Counter[NGram], rarity: dict[NGram, float], unseen_rarity: float
    ) -> None:
        self.weights: list[dict[NGram, float]] = [{} for _ in range(_MAX_ORDER)]
        for ngram, count in counts.items():
            self.weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen_rarity)
        self.norms = [math.sqrt(math.fsum(w * w for w in part.values())) for part in self.weights]
        # The official code uses the number of 2-grams as the length.
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 2)

    def similarity(self, reference: _Vector) -> float:
        """Mean over n of the clipped cosine, with the penalty on length, 0..1."""
        penalty = math.exp(-((self.length - reference.length) ** 2) / (2 * _SIGMA**2))
        total = 0.0
        for own, other, own_norm, other_norm in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            dot = math.fsum(
                min(weight, other[ngram]) * other[ngram]
                for ngram, weight in own.items()
                if ngram in other
            )
            if own_norm and other_norm:
                total += dot / (own_norm * other_norm)
        return total / _MAX_ORDER * penalty


def _count_ngrams(words: Sequence[str]) -> Counter[NGram]:
    return sum((_ngrams(words, n) for n in range(1, _MAX_ORDER + 1)), Counter())


@dataclass(frozen=True, kw_only=True)
class Bleu:
    """BLEU-1 to BLEU-`max_order` of a set; the value is the last, `details` has all of them.

    Papineni et al. 2002: geometric mean of the clipped n-gram precisions of the whole set, times a
    penalty where the set is shorter than its references (each caption's closest in length).
    `per_example` is the BLEU of each caption on its own, so its mean is not the value. `text`: see
    Cider.
    """

    max_order: int = 4
    text: TextForm = "ptb"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        pairs = pair(predictions, references)
        parts = []
        for prediction, accepted in pairs:
            truths = [words_of(reference, self.text) for reference in accepted]
            parts.append(self._counts(words_of(prediction, self.text), truths))
        whole = _Counts(
            matched=[sum(part.matched[n] for part in parts) for n in range(self.max_order)],
            written=[sum(part.written[n] for part in parts) for n in range(self.max_order)],
            length=sum(part.length for part in parts),
            reference_length=sum(part.reference_length for part in parts),
        )
        scores = whole.bleu()
        return MetricResult(
            name=f"bleu_{self.max_order}",
            value=scores[-1],
            per_example=tuple(part.bleu()[-1] for part in parts),
            details={f"bleu_{n}": score for n, score in enumerate(scores, 1)},
        )

    def _counts(self, words: Sequence[str], truths: Sequence[Sequence[str]]) -> _Counts:
        matched, written = [], []
        for n in range(1, self.max_order + 1):
            most: Counter[NGram] = Counter()
            for truth in truths:
                most |= _ngrams(truth, n)
            ngrams = _ngrams(words, n)
            matched.append((ngrams & most).total())
            written.append(ngrams.total())
        lengths = [len(truth) for truth in truths]
        return _Counts(
            matched=matched,
            written=written,
            length=len(words),
            reference_length=min(lengths, key=lambda length: (abs(length - len(words)), length)),
        )


@dataclass(frozen=True, kw_only=True)
class _Counts:
    matched: list[int]
    written: list[int]
    length: int
    reference_length: int

    def bleu(self) -> list[float]:
        scores, product = [], 1.0
        ratio = (self.length + _TINY) / (self.reference_length + _SMALL)
        penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        for n, (matched, written) in enumerate(zip(self.matched, self.written, strict=True), 1):
            product *= (matched + _TINY) / (written + _SMALL)
            scores.append(product ** (1 / n) * penalty)
        return scores


def _ngrams(words: Sequence[str], n: int) -> Counter[NGram]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


@dataclass(frozen=True, kw_only=True)
class RougeL:
    """ROUGE-L of each text, 0..1; the value is the mean. `text`: see Cider.

    Lin 2004 (Text Summarization Branches Out): F-measure of the longest common subsequence of
    words, with recall weighted by beta 1.2. The best precision and the best recall may come from
    different references.
    """

    text: TextForm = "ptb"

    def score(self, predictions: Sequence[str], references: References) -> MetricResult:
        scores = []
        for prediction, accepted in pair(predictions, references):
            # The official code reads an empty text as one empty word, equal to no other word.
            words = words_of(prediction, self.text) or [""]
            precision = recall = 0.0
            for truth in (words_of(reference, self.text) or [""] for reference in accepted):
                common = _longest_common_subsequence(words, truth)
                if common:
                    precision = max(precision, common / len(words))
                    recall = max(recall, common / len(truth))
            weighted = recall + _BETA_SQUARED * precision
            scores.append((1 + _BETA_SQUARED) * precision * recall / weighted if weighted else 0.0)
        return mean_result("rouge_l", scores)


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    best = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for index, other in enumerate(second, 1):
            before, best[index] = (
                best[index],
                before + 1 if word == other else max(best[index], best[index - 1]),
            )
    return best[-1]


# What the official evaluation removes after tokenizing.
_LEFT_OUT = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_SAME_SIGN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛‹›", "'"),
        **dict.fromkeys("“”«»", '"'),
        **dict.fromkeys("–—", "-"),
        "…": "...",
        "€": "$",
        "£": "#",
        "¢": " cents ",
        "½": " 1/2",
        "¼": " 1/4",
        "¾": " 3/4",
    }
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# Words that keep a full stop, and those that keep it only before a number.
_ABBREVIATIONS = """
mr mrs ms dr jr sr esq prof messrs mme mlle gov sen rep gen col capt lt sgt maj adm rev hon pres
st ave blvd rd sq mt ft ext ct pp vs etc al cf est assn bros co cos corp inc ltd plc dept univ
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn va vt wis wyo
"""
_BEFORE_NUMBER = "no nos art fig"
_SPLIT_WORDS = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
    "'tis": "'t is",
    "'twas": "'t was",
}
_STARTERS = "The|This|That|Then|There|They|A|An|And|He|She|It|In|On|But|We|You|I|At|As|For|His|Her"

_TOKEN = re.compile(
    rf"""
      https?://[^\s"<>|()]*[^\s"<>|().,;:!?']
    | www\.[^\s"<>|()]*[^\s"<>|().,;:!?']
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | </?[a-z][^<>]*>
    | [@\#][^\W\d_]\w*
    | \.(?:\s?\.)+ | -(?:-|(?=\s|$))+ | [!?]+ | \#{{2,}}
    | (?:[^\W\d_]\.){{2,}}(?:-\w+)* | ph\.d\.          # u.s., p.m.
    | (?<![\w'])[^\W\d_]\.(?!\w)(?!\s+(?-i:{_STARTERS})\b)  # the letter of a name: j. smith
    | (?<![\w'-])(?:{"|".join(_ABBREVIATIONS.split())})\.(?!\w)
    | (?<![\w'-])(?:{"|".join(_BEFORE_NUMBER.split())})\.(?=\s*\d)
    | '(?:tis|twas|em|n|cause|til)\b'? | (?<!\d)'\d\ds?\b
    | '(?:s|m|d|ll|re|ve)\b
    | (?<![\w)])[-+]\d+(?:[.,:]\d+)*(?!\w)
    | \d*(?:[.,:]\d+)+(?:-\w+)*
    | (?-i:[A-Z]+(?:&[A-Z]+)+)(?!\w)
    | c\+\+ | (?:us|a)\$(?=\s*\d) | \w\#(?!\w)
    | \w+(?:(?:'(?!(?:s|m|d|ll|re|ve)\b)(?!\d)|[-/]|\.(?=\D))\w+)*
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NOT = re.compile(r"(.+)(n't)")


def words_of(text: str, form: TextForm) -> list[str]:
    """The words of a text: "ptb" as below, "split" at white space only."""
    return ptb_words(text) if form == "ptb" else text.split()


def ptb_words(text: str) -> list[str]:
    """Words in lower case, without punctuation.

    >>> ptb_words("A man's hat (red) isn't here.")
    ['a', 'man', "'s", 'hat', '-lrb-', 'red', '-rrb-', 'is', "n't", 'here']
    """
    for entity, sign in _ENTITIES.items():
        text = text.replace(entity, sign)
    words: list[str] = []
    for token in _TOKEN.findall(text.translate(_SAME_SIGN)):
        for word in _parts(token.lower()):
            if word not in _LEFT_OUT and not re.fullmatch(r"\.[.\s]*|-+", word):
                words.append(_BRACKETS.get(word, word))
    return words


def _parts(token: str) -> list[str]:
    if token in _SPLIT_WORDS:
        return _SPLIT_WORDS[token].split()
    match = _NOT.fullmatch(token)
    return list(match.groups()) if match else [token]
