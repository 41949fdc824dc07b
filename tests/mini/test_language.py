"""The sentences of mini's world, against sentences written by hand."""

from __future__ import annotations

import re
from collections import Counter
from string import ascii_uppercase

import pytest

from mini.language import (
    COLORS,
    KINDS,
    LANGUAGES,
    all_texts,
    ask_background,
    ask_count,
    ask_highest,
    ask_listing,
    ask_position,
    ask_presence,
    ask_reading,
    ask_value,
    caption,
    chart_text,
    describe,
    position,
    table_text,
)
from paligemma.errors import OptionError

INDEX = {kind.name: i for i, kind in enumerate(KINDS)}


def counts(text: str) -> list[tuple[int, int]]:
    """ "2 dog 1 key" as (kind index, count) pairs."""
    parts = text.split()
    return [(INDEX[name], int(n)) for n, name in zip(parts[::2], parts[1::2], strict=True)]


def test_the_kinds_stand_in_the_agreed_order() -> None:
    assert " ".join(kind.name for kind in KINDS) == (
        "dog cat bear panda pig frog lion monkey chicken penguin owl fish octopus turtle snail "
        "butterfly bee elephant rabbit snake apple banana grape strawberry lemon pineapple cherry "
        "carrot mushroom bread cheese pizza hamburger egg cake candy flower tree cactus moon star "
        "cloud umbrella snowman ball guitar drum bell key lock book phone lamp clock car bus "
        "bicycle airplane rocket boat house chair hat crown"
    )


def test_every_kind_has_a_noun_and_a_gender_in_every_language() -> None:
    genders = {"en": {"n"}, "de": {"m", "f", "n"}}
    for kind in KINDS:
        assert tuple(kind.forms) == LANGUAGES
        for language, noun in kind.forms.items():
            assert noun.singular
            assert noun.plural
            assert noun.gender in genders.get(language, {"m", "f"})


def test_labels_are_single_lowercase_words() -> None:
    assert all(re.fullmatch("[a-z]+", kind.name) for kind in KINDS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_kinds_share_a_form(language: str) -> None:
    nouns = [kind.forms[language] for kind in KINDS]
    forms = Counter(form for noun in nouns for form in {noun.singular, noun.plural})
    assert max(forms.values()) == 1


def test_german_nouns_alone_are_capitalized() -> None:
    for kind in KINDS:
        for language, noun in kind.forms.items():
            for form in (noun.singular, noun.plural):
                assert form[0].isupper() == (language == "de")
                assert form[1:] == form[1:].lower()


@pytest.mark.parametrize("language", ["fr", "es"])
def test_romance_plurals_end_in_s_or_x(language: str) -> None:
    for kind in KINDS:
        assert kind.forms[language].plural.split()[0][-1] in "sx"


@pytest.mark.parametrize(
    ("language", "label", "plural"),
    [
        ("en", "fish", "fish"),
        ("en", "snowman", "snowmen"),
        ("en", "butterfly", "butterflies"),
        ("en", "octopus", "octopuses"),
        ("de", "apple", "Äpfel"),
        ("de", "tree", "Bäume"),
        ("de", "house", "Häuser"),
        ("de", "frog", "Frösche"),
        ("de", "chicken", "Hühner"),
        ("de", "lock", "Schlösser"),
        ("de", "snowman", "Schneemänner"),
        ("de", "book", "Bücher"),
        ("de", "bicycle", "Fahrräder"),
        ("de", "chair", "Stühle"),
        ("de", "hat", "Hüte"),
        ("de", "ball", "Bälle"),
        ("de", "key", "Schlüssel"),
        ("de", "cactus", "Kakteen"),
        ("de", "bus", "Busse"),
        ("fr", "boat", "bateaux"),
        ("fr", "snowman", "bonshommes de neige"),
        ("fr", "egg", "œufs"),
        ("fr", "bear", "ours"),
        ("es", "fish", "peces"),
        ("es", "lion", "leones"),
        ("es", "bus", "autobuses"),
        ("es", "umbrella", "paraguas"),
        ("it", "egg", "uova"),
        ("it", "rabbit", "conigli"),
        ("it", "turtle", "tartarughe"),
        ("it", "bus", "autobus"),
        ("it", "snowman", "pupazzi di neve"),
        ("pt", "lion", "leões"),
        ("pt", "bread", "pães"),
        ("pt", "snail", "caracóis"),
        ("pt", "cloud", "nuvens"),
        ("pt", "bus", "ônibus"),
    ],
)
def test_irregular_plurals_are_native(language: str, label: str, plural: str) -> None:
    assert KINDS[INDEX[label]].forms[language].plural == plural


@pytest.mark.parametrize(
    ("scene", "language", "expected"),
    [
        ("1 key 2 dog", "en", "two dogs and a key"),
        ("1 key 1 dog 3 cat", "en", "three cats, a dog and a key"),
        ("1 owl", "en", "an owl"),
        ("1 umbrella 1 apple 1 hamburger", "en", "an apple, a hamburger and an umbrella"),
        ("5 fish", "en", "five fish"),
        ("4 snowman 1 house", "en", "four snowmen and a house"),
        ("2 dog 1 key", "de", "zwei Hunde und ein Schlüssel"),
        ("1 cat 1 egg 1 moon", "de", "eine Katze, ein Ei und ein Mond"),
        ("5 house", "de", "fünf Häuser"),
        ("3 key 2 tree", "de", "drei Schlüssel und zwei Bäume"),
        ("2 dog 1 key", "fr", "deux chiens et une clé"),
        ("1 snowman 1 star", "fr", "une étoile et un bonhomme de neige"),
        ("4 airplane 1 house", "fr", "quatre avions et une maison"),
        ("2 dog 1 key", "es", "dos perros y una llave"),
        ("1 banana 1 grape 1 bee", "es", "una abeja, un plátano y una uva"),
        ("3 airplane 2 clock", "es", "tres aviones y dos relojes"),
        ("2 dog 1 key", "it", "due cani e una chiave"),
        ("1 bee 1 owl 2 egg", "it", "due uova, un gufo e un'ape"),
        ("1 elephant 1 grape", "it", "un elefante e un'uva"),
        ("2 dog 1 key", "pt", "dois cachorros e uma chave"),
        ("2 house 3 boat", "pt", "três barcos e duas casas"),
    ],
)
def test_captions_agree_in_number_and_gender(scene: str, language: str, expected: str) -> None:
    assert caption(counts(scene), language) == expected


def test_the_english_article_goes_by_sound() -> None:
    vowels = {name for name in INDEX if caption(counts(f"1 {name}"), "en").startswith("an ")}
    assert vowels == {"owl", "octopus", "elephant", "apple", "egg", "umbrella", "airplane"}


@pytest.mark.parametrize(
    ("language", "empty", "one_word", "two_words"),
    [
        ("en", "an empty picture", "a word", "two words"),
        ("de", "ein leeres Bild", "ein Wort", "zwei Wörter"),
        ("fr", "une image vide", "un mot", "deux mots"),
        ("es", "una imagen vacía", "una palabra", "dos palabras"),
        ("it", "un'immagine vuota", "una parola", "due parole"),
        ("pt", "uma imagem vazia", "uma palavra", "duas palavras"),
    ],
)
def test_images_without_objects_have_captions(
    language: str, empty: str, one_word: str, two_words: str
) -> None:
    captions = [caption([], language, num_words=n) for n in range(3)]
    assert captions == [empty, one_word, two_words]


def test_a_caption_leaves_words_out_when_there_are_objects() -> None:
    assert caption(counts("1 dog"), "en", num_words=2) == "a dog"


@pytest.mark.parametrize(
    ("scene", "color", "words", "language", "expected"),
    [
        ("2 dog", "blue", ["OPEN"], "en", 'two dogs on a blue background with the word "OPEN"'),
        ("1 cat", "orange", [], "en", "a cat on an orange background"),
        ("1 cat", None, ["A", "B"], "en", 'a cat with the words "A" and "B"'),
        ("", "blue", ["A"], "en", 'the word "A" on a blue background'),
        ("", "blue", [], "en", "an empty picture on a blue background"),
        ("2 dog", "blue", ["A"], "de", 'zwei Hunde auf blauem Hintergrund mit dem Wort "A"'),
        (
            "1 hat",
            "pink",
            ["A", "B"],
            "de",
            'ein Hut auf rosa Hintergrund mit den Wörtern "A" und "B"',
        ),
        ("", "orange", ["A", "B"], "de", 'die Wörter "A" und "B" auf orangefarbenem Hintergrund'),
        ("2 dog", "white", ["A"], "fr", 'deux chiens sur un fond blanc avec le mot "A"'),
        (
            "1 hat",
            "brown",
            ["A", "B"],
            "fr",
            'un chapeau sur un fond marron avec les mots "A" et "B"',
        ),
        ("2 dog", "blue", ["A"], "es", 'dos perros sobre un fondo azul con la palabra "A"'),
        (
            "1 hat",
            "gray",
            ["A", "B"],
            "es",
            'un sombrero sobre un fondo gris con las palabras "A" y "B"',
        ),
        ("2 dog", "blue", ["A"], "it", 'due cani su uno sfondo blu con la parola "A"'),
        ("", "red", ["A", "B"], "it", 'le parole "A" e "B" su uno sfondo rosso'),
        ("2 dog", "blue", ["A"], "pt", 'dois cachorros sobre um fundo azul com a palavra "A"'),
        ("", "red", ["A", "B"], "pt", 'as palavras "A" e "B" sobre um fundo vermelho'),
    ],
)
def test_descriptions_name_background_and_words(
    scene: str, color: str | None, words: list[str], language: str, expected: str
) -> None:
    assert describe(counts(scene), color, words, language) == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "a dog on a photo"),
        ("de", "ein Hund auf einem Foto"),
        ("fr", "un chien sur une photo"),
        ("es", "un perro sobre una foto"),
        ("it", "un cane su una foto"),
        ("pt", "um cachorro sobre uma foto"),
    ],
)
def test_a_photo_is_named_as_one(language: str, expected: str) -> None:
    assert describe(counts("1 dog"), None, [], language, photo=True) == expected


@pytest.mark.parametrize(
    ("second", "conjunction"),
    [("IGLU", "e"), ("HILO", "e"), ("HIELO", "y"), ("ION", "y"), ("HOLA", "y"), ("OPEN", "y")],
)
def test_spanish_y_becomes_e_before_the_sound_i(second: str, conjunction: str) -> None:
    text = describe([], None, ["SOL", second], "es")
    assert text == f'las palabras "SOL" {conjunction} "{second}"'


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_color_is_named_differently_in_every_language(language: str) -> None:
    assert len({describe([], color, [], language) for color in COLORS}) == 11


@pytest.mark.parametrize(
    ("label", "language", "question"),
    [
        ("dog", "en", "how many dogs are there?"),
        ("fish", "en", "how many fish are there?"),
        ("dog", "de", "wie viele Hunde gibt es?"),
        ("apple", "de", "wie viele Äpfel gibt es?"),
        ("dog", "fr", "combien de chiens y a-t-il ?"),
        ("bee", "fr", "combien d'abeilles y a-t-il ?"),
        ("dog", "es", "¿cuántos perros hay?"),
        ("bee", "es", "¿cuántas abejas hay?"),
        ("dog", "it", "quanti cani ci sono?"),
        ("bee", "it", "quante api ci sono?"),
        ("egg", "it", "quante uova ci sono?"),
        ("dog", "pt", "quantos cachorros há?"),
        ("bee", "pt", "quantas abelhas há?"),
    ],
)
def test_counting_questions(label: str, language: str, question: str) -> None:
    assert ask_count(INDEX[label], 3, language) == (question, "3")


def test_french_elides_before_vowels_and_mute_h_only() -> None:
    elided = [name for name, i in INDEX.items() if " d'" in ask_count(i, 0, "fr")[0]]
    assert " ".join(elided) == "bear snail bee elephant pineapple egg tree star clock airplane"
    assert ask_count(INDEX["hamburger"], 0, "fr")[0] == "combien de hamburgers y a-t-il ?"
    assert ask_count(INDEX["clock"], 0, "fr")[0] == "combien d'horloges y a-t-il ?"


def test_english_questions_and_answers() -> None:
    assert ask_presence(INDEX["dog"], True) == ("is there a dog?", "yes")
    assert ask_presence(INDEX["owl"], False) == ("is there an owl?", "no")
    assert ask_background("blue") == ("what color is the background?", "blue")
    assert ask_position(INDEX["dog"], "top left") == ("where is the dog?", "top left")
    assert ask_listing(counts("1 key 2 dog")) == ("what is in the picture?", "dog, key")
    assert ask_listing(counts("1 dog 2 key"))[1] == "key, dog"
    assert ask_listing([])[1] == "nothing"
    assert ask_reading(["OPEN"]) == ("what is written?", "OPEN")
    assert ask_reading(["OPEN", "NOW"])[1] == "OPEN NOW"
    assert ask_reading([])[1] == "nothing"


def test_what_sheets_say() -> None:
    rows = [("OPEN", "7"), ("CAT", "12")]
    told = "<table><tr><td>OPEN</td><td>7</td></tr><tr><td>CAT</td><td>12</td></tr></table>"
    assert table_text(rows) == told
    assert chart_text([("CAT", 3), ("A", 5)]) == "CAT 3 ; A 5"
    assert ask_value("CAT", 3) == ("what is the value of CAT?", "3")
    assert ask_highest("A") == ("which bar is the highest?", "A")


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.1, 0.1, "top left"),
        (0.5, 0.1, "top"),
        (0.9, 0.1, "top right"),
        (0.1, 0.5, "left"),
        (0.5, 0.5, "center"),
        (0.9, 0.5, "right"),
        (0.1, 0.9, "bottom left"),
        (0.5, 0.9, "bottom"),
        (0.9, 0.9, "bottom right"),
        (0.30, 0.5, None),
        (0.37, 0.5, None),
        (0.5, 0.63, None),
        (0.5, 0.70, None),
        (0.29, 0.5, "left"),
        (0.38, 0.5, "center"),
        (0.5, 0.62, "center"),
        (0.5, 0.71, "bottom"),
    ],
)
def test_positions_are_ninths_of_the_image_and_never_doubtful(
    x: float, y: float, expected: str | None
) -> None:
    assert position((x - 0.05, y - 0.08, x + 0.05, y + 0.08)) == expected


def test_the_sample_covers_every_noun_color_and_answer() -> None:
    texts = list(all_texts())
    assert texts == list(all_texts())
    everything = "\n".join(texts)
    for kind in KINDS:
        for noun in kind.forms.values():
            assert re.search(rf"\b{noun.singular}\b", everything)
            assert re.search(rf"\b{noun.plural}\b", everything)
    wanted = {"yes", "no", "nothing", "top left", "top", "top right", "left", "center", "right"}
    wanted |= {"bottom left", "bottom", "bottom right", *"012345", *COLORS, *ascii_uppercase}
    assert wanted <= set(texts)


def test_the_sample_spells_nothing_in_capitals() -> None:
    assert not [text for text in all_texts() if re.search("[A-Z]{2}|[A-Z] [A-Z]", text)]


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(OptionError, match="'pl'"):
        caption([], "pl")
    with pytest.raises(OptionError, match="kind -1"):
        caption([(-1, 1)], "en")
    with pytest.raises(OptionError, match="kind 64"):
        caption([(64, 1)], "en")
    with pytest.raises(OptionError, match="count is 6"):
        caption([(0, 6)], "en")
    with pytest.raises(OptionError, match="count is 6"):
        ask_count(0, 6, "en")
    with pytest.raises(OptionError, match="twice"):
        caption([(0, 1), (0, 1)], "en")
    with pytest.raises(OptionError, match="'mauve'"):
        ask_background("mauve")
