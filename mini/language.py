"""What can be said about mini's images: the 64 kinds by name, captions, questions and answers.

Speaks English, German, French, Spanish, Italian and Portuguese. Takes plain values (kind indices,
counts, color names, boxes); does not know scenes, pixels, tokens or the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase, digits
from typing import Literal, cast

from paligemma.errors import OptionError

Gender = Literal["m", "f", "n"]

FIRST_LANGUAGES = ("en", "de", "fr", "es")
"""The languages that the vocabulary was learned from; the later ones were added to it."""
LATER_LANGUAGES = ("it", "pt")
LANGUAGES = FIRST_LANGUAGES + LATER_LANGUAGES
MAX_COUNT = 5


@dataclass(frozen=True, kw_only=True)
class Noun:
    """One noun of one language; English nouns are all "n"."""

    singular: str
    plural: str
    gender: Gender


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of object: its label (the English singular) and its noun in every language."""

    name: str
    forms: dict[str, Noun]


@dataclass(frozen=True, kw_only=True)
class _Grammar:
    """The closed-class words of one language."""

    one: dict[Gender, str]
    two_to_five: tuple[str, str, str, str]
    conjunction: str
    empty: str
    word: Noun
    the_word: tuple[str, str]
    with_the_word: tuple[str, str]
    on_color: str
    on_photo: str


_GRAMMAR = {
    "en": _Grammar(
        one={},  # "a" or "an" goes by sound, see _a
        two_to_five=("two", "three", "four", "five"),
        conjunction="and",
        empty="an empty picture",
        word=Noun(singular="word", plural="words", gender="n"),
        the_word=("the word", "the words"),
        with_the_word=("with the word", "with the words"),
        on_color="on {} background",
        on_photo="on a photo",
    ),
    "de": _Grammar(
        one={"m": "ein", "f": "eine", "n": "ein"},
        two_to_five=("zwei", "drei", "vier", "fünf"),
        conjunction="und",
        empty="ein leeres Bild",
        word=Noun(singular="Wort", plural="Wörter", gender="n"),
        the_word=("das Wort", "die Wörter"),
        with_the_word=("mit dem Wort", "mit den Wörtern"),
        on_color="auf {} Hintergrund",
        on_photo="auf einem Foto",
    ),
    "fr": _Grammar(
        one={"m": "un", "f": "une"},
        two_to_five=("deux", "trois", "quatre", "cinq"),
        conjunction="et",
        empty="une image vide",
        word=Noun(singular="mot", plural="mots", gender="m"),
        the_word=("le mot", "les mots"),
        with_the_word=("avec le mot", "avec les mots"),
        on_color="sur un fond {}",
        on_photo="sur une photo",
    ),
    "es": _Grammar(
        one={"m": "un", "f": "una"},
        two_to_five=("dos", "tres", "cuatro", "cinco"),
        conjunction="y",
        empty="una imagen vacía",
        word=Noun(singular="palabra", plural="palabras", gender="f"),
        the_word=("la palabra", "las palabras"),
        with_the_word=("con la palabra", "con las palabras"),
        on_color="sobre un fondo {}",
        on_photo="sobre una foto",
    ),
    "it": _Grammar(
        one={"m": "un", "f": "una"},  # before a vowel "un'", see _counted
        two_to_five=("due", "tre", "quattro", "cinque"),
        conjunction="e",
        empty="un'immagine vuota",
        word=Noun(singular="parola", plural="parole", gender="f"),
        the_word=("la parola", "le parole"),
        with_the_word=("con la parola", "con le parole"),
        on_color="su uno sfondo {}",
        on_photo="su una foto",
    ),
    "pt": _Grammar(
        one={"m": "um", "f": "uma"},
        two_to_five=("dois", "três", "quatro", "cinco"),  # feminine "duas", see _counted
        conjunction="e",
        empty="uma imagem vazia",
        word=Noun(singular="palavra", plural="palavras", gender="f"),
        the_word=("a palavra", "as palavras"),
        with_the_word=("com a palavra", "com as palavras"),
        on_color="sobre um fundo {}",
        on_photo="sobre uma foto",
    ),
}


def _read_table(name: str) -> list[dict[str, str]]:
    """The rows of a tab-separated file in data/: language code -> cell."""
    text = (Path(__file__).parent / "data" / name).read_text(encoding="utf-8")
    header, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def _read_noun(cell: str) -> Noun:
    """
    >>> _read_noun("m Hund+e").plural, _read_noun("m Apfel/Äpfel").plural, _read_noun("fish").plural
    ('Hunde', 'Äpfel', 'fish')
    """
    has_gender = cell[:2] in ("m ", "f ", "n ")
    gender, forms = (cell[0], cell[2:]) if has_gender else ("n", cell)
    if "/" in forms:
        singular, plural = forms.split("/")
    else:
        singular, _, ending = forms.partition("+")
        plural = singular + ending
    return Noun(singular=singular, plural=plural, gender=cast(Gender, gender))


def _read_kind(row: dict[str, str]) -> Kind:
    forms = {language: _read_noun(row[language]) for language in LANGUAGES}
    return Kind(name=forms["en"].singular, forms=forms)


# data/nouns.tsv: the row is the kind's index; a cell is gender and noun. "Hund+e" adds an ending
# for the plural, "Apfel/Äpfel" spells out both, "Käse" does not change.
KINDS: tuple[Kind, ...] = tuple(map(_read_kind, _read_table("nouns.tsv")))
# data/colors.tsv: as used with "background": German dative, Romance languages masculine.
_COLOR_FORMS = {row["en"]: row for row in _read_table("colors.tsv")}
COLORS: tuple[str, ...] = tuple(_COLOR_FORMS)


def caption(counts: Sequence[tuple[int, int]], language: str, *, num_words: int = 0) -> str:
    """Names what is in the image: most numerous first, then by kind.

    `counts` holds (kind index, how many), each kind once. Printed words are named only when there
    is nothing else to name.

    >>> caption([(48, 1), (0, 2)], "de")
    'zwei Hunde und ein Schlüssel'
    >>> caption([], "en", num_words=1)
    'a word'

    Raises OptionError for an unknown language or kind, or a count outside 1 to 5.
    """
    grammar = _grammar(language)
    things = [_counted(KINDS[kind].forms[language], n, language) for kind, n in _ordered(counts)]
    if not things and num_words:
        things = [_counted(grammar.word, num_words, language)]
    return _listed(things, language) if things else grammar.empty


def describe(
    counts: Sequence[tuple[int, int]],
    background_color: str | None,
    words: Sequence[str],
    language: str,
    *,
    photo: bool = False,
) -> str:
    """The caption with the background and the printed words, in the order they were passed.

    A background is named by its color or, without one, as a photo if it is one. In an image of
    words alone the words themselves replace the caption.

    >>> describe([(0, 2)], "orange", ["OPEN"], "en")
    'two dogs on an orange background with the word "OPEN"'
    >>> describe([], "blue", ["A", "B"], "de")
    'die Wörter "A" und "B" auf blauem Hintergrund'

    Raises OptionError for what `caption` refuses and for an unknown color.
    """
    grammar = _grammar(language)
    quoted = _listed([f'"{word}"' for word in words], language)
    several = len(words) > 1
    parts = [caption(counts, language) if counts or not words else grammar.the_word[several]]
    if not counts and words:
        parts.append(quoted)
    if background_color is not None:
        color = _color(background_color)[language]
        parts.append(grammar.on_color.format(_a(color) if language == "en" else color))
    elif photo:
        parts.append(grammar.on_photo)
    if counts and words:
        parts += [grammar.with_the_word[several], quoted]
    return " ".join(parts)


def ask_count(kind: int, count: int, language: str) -> tuple[str, str]:
    """Question and answer: ("how many dogs are there?", "2"). The answer is a digit, "0" to "5"."""
    _grammar(language)
    if not 0 <= count <= MAX_COUNT:
        raise OptionError(f"The count is {count}; pass 0 to {MAX_COUNT}.")
    noun = _kind(kind).forms[language]
    if language == "en":
        question = f"how many {noun.plural} are there?"
    elif language == "de":
        question = f"wie viele {noun.plural} gibt es?"
    elif language == "fr":
        of = "d'" if _elides(noun.plural) else "de "
        question = f"combien {of}{noun.plural} y a-t-il ?"
    elif language == "es":
        question = f"¿{'cuántas' if noun.gender == 'f' else 'cuántos'} {noun.plural} hay?"
    elif language == "it":
        # "Uovo" changes its gender with its number.
        is_feminine = noun.gender == "f" or noun.plural == "uova"
        question = f"{'quante' if is_feminine else 'quanti'} {noun.plural} ci sono?"
    else:
        question = f"{'quantas' if noun.gender == 'f' else 'quantos'} {noun.plural} há?"
    return question, str(count)


def ask_presence(kind: int, present: bool) -> tuple[str, str]:
    """Question and answer: ("is there an owl?", "yes")."""
    return f"is there {_a(_kind(kind).name)}?", "yes" if present else "no"


def ask_background(color: str) -> tuple[str, str]:
    """Question and answer: ("what color is the background?", "blue")."""
    return "what color is the background?", _color(color)["en"]


def ask_position(kind: int, where: str) -> tuple[str, str]:
    """Question and answer for the only object of its kind: ("where is the dog?", "top left").

    `where` comes from `position`.
    """
    return f"where is the {_kind(kind).name}?", where


def ask_listing(counts: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Question and answer: ("what is in the picture?", "dog, key"), in the caption's order.

    Without objects the answer is "nothing".
    """
    names = [KINDS[kind].name for kind, _ in _ordered(counts)]
    return "what is in the picture?", ", ".join(names) or "nothing"


def ask_reading(words: Sequence[str]) -> tuple[str, str]:
    """Question and answer: ("what is written?", "OPEN"); words are joined by spaces, as passed.

    Without words the answer is "nothing".
    """
    return "what is written?", " ".join(words) or "nothing"


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML without spaces.

    >>> table_text([["OPEN", "7"]])
    '<table><tr><td>OPEN</td><td>7</td></tr></table>'
    """
    lines = ("</td><td>".join(row) for row in rows)
    return f"<table><tr><td>{'</td></tr><tr><td>'.join(lines)}</td></tr></table>"


def chart_text(bars: Sequence[tuple[str, int]]) -> str:
    """A bar chart's labels and values, from left to right.

    >>> chart_text([("CAT", 3), ("A", 5)])
    'CAT 3 ; A 5'
    """
    return " ; ".join(f"{label} {value}" for label, value in bars)


def form_text(rows: Sequence[Sequence[str]]) -> str:
    """A form's heading and its fields, from top to bottom.

    >>> form_text([["SHOP"], ["TOTAL", "42"]])
    'SHOP ; TOTAL 42'
    """
    return " ; ".join(" ".join(row) for row in rows)


def ask_field(label: str, value: str) -> tuple[str, str]:
    """Question and answer about a form: ("what is the TOTAL?", "42")."""
    return f"what is the {label}?", value


def ask_value(label: str, value: int) -> tuple[str, str]:
    """Question and answer about a chart: ("what is the value of CAT?", "3")."""
    return f"what is the value of {label}?", str(value)


def ask_highest(label: str) -> tuple[str, str]:
    """Question and answer about a chart: ("which bar is the highest?", "CAT")."""
    return "which bar is the highest?", label


def position(box_xyxy: tuple[float, float, float, float]) -> str | None:
    """In which ninth of the image the box's center lies; None within 0.04 of a dividing line.

    The box is in unit coordinates, y downward.

    >>> position((0.1, 0.0, 0.2, 0.4)), position((0.4, 0.4, 0.6, 0.6)), position((0.3, 0, 0.4, 1))
    ('top left', 'center', None)
    """
    left, top, right, bottom = box_xyxy
    x, y = (left + right) / 2, (top + bottom) / 2
    if any(abs(center - line) <= 0.04 for center in (x, y) for line in (1 / 3, 2 / 3)):
        return None
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    return f"{row} {column}".strip() or "center"


def all_texts(languages: Sequence[str] = LANGUAGES) -> Iterator[str]:
    """A fixed sample of everything said of scenes, to learn a vocabulary from.

    Every noun in every language and number, every color, question, answer and prompt. Capitals
    stand alone wherever a printed word would be, so that words are spelled letter by letter.
    """
    letters = ascii_uppercase
    for language in languages:
        yield from (f"caption {language}", f"describe {language}", f"answer {language}")
        for num_words in range(3):
            yield caption([], language, num_words=num_words)
            yield describe([], None, letters[:num_words], language, photo=True)
        for kind in range(len(KINDS)):
            for count in range(1, MAX_COUNT + 1):
                yield caption([(kind, count)], language)
            second, third = ((kind + step) % len(KINDS) for step in (5, 23))
            pair, triple = [(kind, 1), (second, 1)], [(kind, 2), (second, 2), (third, 1)]
            first, other = letters[kind % 26], letters[(kind + 7) % 26]
            color = COLORS[kind % len(COLORS)]
            yield caption(pair, language)
            yield caption(triple, language)
            yield describe(pair, color, [first], language)
            yield describe(triple, None, [first, other], language, photo=True)
            yield describe([], color, [first, other], language)
            question, answer = ask_count(kind, kind % (MAX_COUNT + 1), language)
            yield f"answer {language} {question}"
            yield answer
    for kind in range(len(KINDS)):
        other_kind = (kind + 5) % len(KINDS)
        row, column = kind % 3, kind // 3 % 3
        where = position((column / 3, row / 3, (column + 1) / 3, (row + 1) / 3))
        for question, answer in (
            ask_presence(kind, kind % 2 == 0),
            ask_background(COLORS[kind % len(COLORS)]),
            ask_position(kind, cast(str, where)),  # the center of a ninth is never doubtful
            ask_listing([(kind, 1), (other_kind, 1)]),
            ask_reading(letters[kind % 26]),
        ):
            yield f"answer en {question}"
            yield answer
        for kinds in ((kind,), (kind, other_kind)):
            names = " ; ".join(KINDS[kind].name for kind in kinds)
            yield from (f"detect {names}", f"segment {names}")
    yield from ("ocr", ask_listing([])[1])
    yield from letters


def sheet_texts() -> Iterator[str]:
    """What is said of tables and charts, and the prompts that came with them; none twice.

    Printed words and numbers stand alone, as in `all_texts`.
    """
    yield from ("table", "chart", "detect text")
    yield from ("<table><tr><td>", "</td><td>", "</td></tr><tr><td>", "</td></tr></table>")
    yield f"answer en {ask_value('A', 0)[0]}"
    yield f"answer en {ask_highest('A')[0]}"
    yield from digits


def _grammar(language: str) -> _Grammar:
    if language not in _GRAMMAR:
        raise OptionError(f"Unknown language {language!r}. Pass one of: {', '.join(LANGUAGES)}.")
    return _GRAMMAR[language]


def _kind(index: int) -> Kind:
    if not 0 <= index < len(KINDS):
        raise OptionError(f"There is no kind {index}; pass 0 to {len(KINDS) - 1}.")
    return KINDS[index]


def _color(name: str) -> dict[str, str]:
    if name not in _COLOR_FORMS:
        raise OptionError(f"Unknown color {name!r}. Pass one of: {', '.join(COLORS)}.")
    return _COLOR_FORMS[name]


def _ordered(counts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Checked, most numerous first, then by kind."""
    for kind, _ in counts:
        _kind(kind)
    if len({kind for kind, _ in counts}) < len(counts):
        raise OptionError(f"A kind occurs twice in {list(counts)}. Add its counts up first.")
    return sorted(counts, key=lambda pair: (-pair[1], pair[0]))


def _counted(noun: Noun, count: int, language: str) -> str:
    """A number word and the noun agreeing with it: "an owl", "eine Eule", "dos búhos"."""
    if not 1 <= count <= MAX_COUNT:
        raise OptionError(f"The count is {count}; pass 1 to {MAX_COUNT}.")
    grammar = _GRAMMAR[language]
    if count == 2 and language == "pt" and noun.gender == "f":
        return f"duas {noun.plural}"
    if count > 1:
        return f"{grammar.two_to_five[count - 2]} {noun.plural}"
    if language == "en":
        return _a(noun.singular)
    if language == "it" and noun.gender == "f" and noun.singular[0] in "aeiou":
        return f"un'{noun.singular}"
    return f"{grammar.one[noun.gender]} {noun.singular}"


def _listed(things: Sequence[str], language: str) -> str:
    if len(things) < 2:
        return "".join(things)
    conjunction = _GRAMMAR[language].conjunction
    # Spanish "y" becomes "e" before the sound i, but not before a diphthong (RAE): e hilo, y hielo.
    if language == "es" and re.match(r'"?h?i(?![aeou])', things[-1], re.IGNORECASE):
        conjunction = "e"
    return f"{', '.join(things[:-1])} {conjunction} {things[-1]}"


def _a(word: str) -> str:
    """With the indefinite article; every English word here sounds as its first letter looks."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _elides(word: str) -> bool:
    """Whether French "de" becomes "d'": before a vowel or a mute h. "Hamburger" keeps its h."""
    return word[0] in "aeiouéœh" and not word.startswith("hamburger")
