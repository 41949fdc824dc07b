"""Words of a caption, as in the Penn Treebank, for CIDEr, BLEU and ROUGE-L.

The official scores use the words of Stanford's PTBTokenizer (a Java program), in lower case and
without punctuation. This is our own implementation of those conventions, made for captions: clitics
are separated ("isn't" -> is n't), abbreviations keep their full stop, numbers stay whole, brackets
become -lrb- and -rrb-, quotation marks, commas and the like are dropped. Rare forms (formulas,
smileys, phone numbers) may differ; docs/metrics.md says how often.
"""

from __future__ import annotations

import re
from typing import Literal

TextForm = Literal["ptb", "split"]

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
