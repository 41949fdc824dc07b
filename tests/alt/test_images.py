"""Which images of a page need an alternative text."""

from __future__ import annotations

import pytest

from paligemma.alt.images import find_images_of
from paligemma.alt.wording import alt_of_caption, doubt_about, with_text


def reasons(page: str) -> list[str]:
    return [image.reason for image in find_images_of(page).images]


def test_missing_and_bad_texts_are_found_and_good_or_empty_ones_left_alone() -> None:
    page = """<img src=a.png><img src=b.png alt=""><img src=c.png alt><img src=d.png alt=' '>
    <img src=photo-2.jpg alt="photo-2"><img src=e.png alt="IMG_0042"><img src=f.png alt="Image">
    <img src=g.png alt="A picture of a dog"><img src=h.png alt="A dog on a sofa">
    <img src=frog.png alt="frog"><img src=i.png role=presentation><img src=j.png aria-hidden=true>
    <img src=k.png aria-label="A dog"><input type=image src=go.png><input type=IMAGE alt="">
    <input type=text>"""
    found = find_images_of(page)
    assert [(image.line, image.reason) for image in found.images] == [
        (1, "no alt"),
        (1, "blank"),
        (2, "a file name"),
        (2, "a file name"),
        (2, "says only 'image'"),
        (3, "begins with 'A picture of'"),
        (5, "no alt"),
        (5, "blank"),
    ]
    assert (found.num_good, found.num_decorative) == (3, 4)


@pytest.mark.parametrize(
    "alt",
    [
        *("hero.JPG", "two frogs.webp", "DSC_0042", "Screenshot 2024-01-02", "PHOTO", "Bild."),
        *("image of a dog", "Foto von Anna", "une photo d'un chien", "imagen de un perro"),
        *("The image shows a dog", "https://example.com/a", "0a1b2c3d4e5f60718293", "untitled"),
        *("Ein Bild von Anna", "immagine di un cane", "\u00a0", "..."),
    ],
)
def test_texts_that_say_nothing_are_doubted(alt: str) -> None:
    assert doubt_about(alt, ["x/hero.JPG"])


@pytest.mark.parametrize(
    "alt",
    [
        *("Anna", "frog", "Logo of the city of Bonn", "2024", "Photographer at work", "A"),
        *("Imagery of war in the 20th century", "Bilderrahmen", "Fotos", "P1 headphones", "日本"),
    ],
)
def test_texts_that_say_something_are_kept(alt: str) -> None:
    assert doubt_about(alt, ["img/frog.png"]) is None


def test_a_link_or_button_without_another_name_is_known() -> None:
    page = """<a href=1><img src=a></a><a href=2><img src=b> Home</a><a href=3 aria-label=x><img
    src=c></a><a href=4><img src=d><img src=e alt="Cart"></a><button><img src=f></button>
    <button><img src=g>Go</button><a name=x><img src=h></a><a href=5><img src=i><a href=6>text</a>
    <a href=7><svg><title>Up</title></svg><img src=j></a><a href=8><!-- text --><b> &nbsp;</b><img
    src=k></a><img src=l>"""
    found = {i.addresses[0]: i.control and i.control.address for i in find_images_of(page).images}
    alone = {name for name, image in zip(found, find_images_of(page).images) if image.control}  # noqa: B905
    assert alone == {"a", "f", "i", "k"}
    assert (found["a"], found["f"], found["i"], found["k"]) == ("1", None, "5", "8")


def test_a_broken_srcset_is_read_as_browsers_do() -> None:
    page = """<img srcset="a 1.2.3x, b .5x, c .x, d 1x 2x, ,, e,"><img srcset=", ,">
    <picture><source srcset=w><img src=1><img src=2></picture>"""
    assert [image.addresses for image in find_images_of(page).images] == [
        ("a", "c", "d", "e", "b"),
        (),
        ("1", "w"),
        ("2",),
    ]


def test_all_places_of_an_image_are_known_the_likeliest_first() -> None:
    page = """<picture><source srcset="w.webp 1x, w2.webp 2x"><img src=a.png></picture>
    <img src="data:image/gif;base64,R0" data-src=b.png>
    <img srcset="s.png 100w, l.png 800w, data:image/png,x,y 50w">
    <img src=" c.png " srcset="c2.png 2x">"""
    assert [image.addresses for image in find_images_of(page).images] == [
        ("a.png", "w2.webp", "w.webp"),
        ("b.png", "data:image/gif;base64,R0"),
        ("l.png", "s.png", "data:image/png,x,y"),
        ("c.png", "c2.png"),
    ]


@pytest.mark.parametrize(
    "tag",
    [
        '<img src="a.png" :alt="name">',
        '<img src="a.png" v-bind:alt="name">',
        '<img src="a.png" [alt]="name">',
        '<img src="a.png" {% if x %}id="y"{% endif %}>',
        '<img src="a.png" <?php if ($a > 1) echo "alt"; ?>>',
        '<img src="a.png" alt="Image of {{ name }}">',
    ],
)
def test_what_a_program_fills_in_is_not_touched(tag: str) -> None:
    [image] = find_images_of(tag).images
    assert image.refusal


def test_captions_become_short_alternative_texts() -> None:
    assert alt_of_caption("an image of a red car.") == "A red car"
    assert alt_of_caption("Ein Bild von zwei Katzen") == "Zwei Katzen"
    assert alt_of_caption("a  dog\nruns") == "A dog runs"
    assert with_text("Zwei Frösche", "SOFA", "de") == "Zwei Frösche, mit dem Text “SOFA”"
    assert with_text("A sofa", "SOFA", "en") == "A sofa"
    assert with_text("Due rane", "SOFA", "fi") == "Due rane: “SOFA”"
    long = "word " * 60
    assert alt_of_caption(long) == long.strip().capitalize()
