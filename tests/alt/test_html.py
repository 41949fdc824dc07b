"""The scanner of HTML: what is a tag, what is not, and where attributes are."""

from __future__ import annotations

import time

import pytest

from paligemma.alt.html import scan
from paligemma.alt.images import find_images_of


def image_names(page: str) -> list[str]:
    """The src of every image that the scanner sees."""
    return [tag.get("src") or "" for tag in scan(page) if (tag.kind, tag.name) == ("start", "img")]


@pytest.mark.parametrize(
    "page",
    [
        "<!-- <img src=n> --><img src=y>",
        "<!--> <img src=y> <!-- <img src=n> -->",
        "<!---><img src=y>",
        "<!-- a --!><img src=y>",
        "<!-- <img src=n> -- > --><img src=y>",
        "<![if IE]><img src=y><![endif]>",
        "<script>'<img src=n>'</script><img src=y>",
        "<script><!-- <script>'</script><img src=n>' --></script><img src=y>",
        "<script><!-- <script></script> </script><img src=y>",
        "<script><!--></script><img src=y>",
        "<SCRIPT>if (a</b) '<img src=n>'</SCRIPT ><img src=y>",
        "<style>a::after { content: '<img src=n>' }</style><img src=y>",
        "<textarea><img src=n></textarea><title><img src=n></title><img src=y>",
        "<iframe><img src=n></iframe><xmp><img src=n></xmp><img src=y>",
        "<img src=y><plaintext><img src=n></plaintext>",
        "<noscript><img src=y></noscript>",
        "<template><img src=y></template>",
        "a < b <img src=y> c <> </> <3 &lt;img src=n>",
        "</img src=n><img src=y>",
        "<img title='<img src=n>' src=y>",
        '<img title=">\'<img src=n>" src=y>',
        "<IMG\n\tSRC\r\n=\n'y'>",
        "<img/src=y/>"[:-2] + ">",
        "<img src=y src=n>",
        "<?xml version='1.0'?><img src=y>",
        "<?php echo '<img src=n>'; if ($a > 1) { ?><img src=y><?php } ?>",
        "<% if a > b %><img src=y><% end %><%= '<img src=n>' %>",
        "{# <img src=n> #}{% if a > '<img src=n>' %}<img src=y>{{ '<img src=n>' }}",
        "{{ <img src=y>",
        "<svg><![CDATA[ > <img src=n> ]]></svg><img src=y>",
        "<img src=y><img src=n",
        "<img src=y><img alt='never closed src=n>",
        "<imgsrc=n><img\fsrc=y>",
        "<a href='x'><img src='y'</a><b>",
    ],
)
def test_images_are_found_where_browsers_find_them(page: str) -> None:
    assert image_names(page) == ["y"]


def test_attributes_have_their_exact_places() -> None:
    page = "<p>é<img a='1>2' ALT = \"x &amp; y\" b c=d/e =f alt=second></p>"
    [tag] = [tag for tag in scan(page) if tag.name == "img"]
    assert page[tag.start : tag.end].startswith("<img")
    assert page[tag.start : tag.end].endswith("second>")
    alt = tag.attribute("alt")
    assert alt is not None
    assert page[alt.start : alt.end] == 'ALT = "x &amp; y"'
    assert page[alt.value_start : alt.end] == '"x &amp; y"'
    assert alt.value == "x & y"
    names = [(each.name, each.value) for each in tag.attributes]
    assert names == [("a", "1>2"), ("alt", "x & y"), ("b", ""), ("c", "d/e"), ("=f", "")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a?b=1&copy=2", "a?b=1&copy=2"),
        ("a?b=1&amp;copy=2", "a?b=1&copy=2"),
        ("a?b&copyright", "a?b&copyright"),
        ("&#x41;&#66;c &eacute;", "ABc é"),
        ("&unknown;&notit;", "&unknown;&notit;"),
    ],
)
def test_character_references_in_addresses_are_read_as_browsers_do(written: str, meant: str):
    [tag] = list(scan(f'<img src="{written}">'))
    assert tag.get("src") == meant


@pytest.mark.parametrize(
    "piece", ["{{", "<!--", "<![CDATA[", "<script>", "<?php", "<a '", "</", "<img =", "&", "{#"]
)
def test_hostile_pages_take_no_longer_than_their_length(piece: str) -> None:
    page = piece * 40_000
    start = time.process_time()
    find_images_of(page)
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    "page", ["", "<", "</", "<!", "<!-", "<?", "<img", "<img a=", "<a b='", "{{"]
)
def test_a_page_may_end_anywhere(page: str) -> None:
    assert image_names(page) == []


@pytest.mark.parametrize("opening", ["{#", "{{", "<![CDATA[>", "<%", "<!--", "<svg><![CDATA["])
def test_openings_that_nothing_closes_take_no_time_each(opening: str) -> None:
    started = time.process_time()
    list(scan(opening * (400_000 // len(opening))))
    assert time.process_time() - started < 4


def test_a_mark_is_found_where_it_comes_next_however_often_it_was_looked_for() -> None:
    page = "{# a #} {{ b }} <img alt='{{ c }}'> {# d {# e #} {{ f <p> }}"
    assert [tag.name for tag in scan(page) if tag.kind == "start"] == ["img"]
