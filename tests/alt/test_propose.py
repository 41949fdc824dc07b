"""What is proposed for the images of a site, with a model that says what the tests tell it to."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from paligemma.alt import AltOptions, PageAlternatives, describe_pages, describe_pictures
from paligemma.alt.propose import pages_below
from paligemma.errors import InputError, OptionError
from tests.alt.scripted import ScriptedAsker


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose pictures have more than a pixel or two."""
    folder = tmp_path / "site"
    (folder / "img").mkdir(parents=True)
    for name in ("a", "b", "c d", "e"):
        Image.new("RGB", (8, 8)).save(folder / "img" / f"{name}.png")
    Image.new("RGB", (1, 1)).save(folder / "img" / "dot.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "img" / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def described(site: Path, page: str, asker: ScriptedAsker | None = None, **options) -> list:
    """The proposals for a page of the site."""
    path = site / "page.html"
    path.write_text(page)
    [found] = describe_pages(asker or ScriptedAsker(), [path], AltOptions(**options), root=site)
    assert isinstance(found, PageAlternatives), found
    return list(found.alternatives)


def test_captions_and_texts_become_proposals_with_scores(site: Path) -> None:
    asker = ScriptedAsker(
        captions={"a.png": ("a picture of a cat", 0.8), "b.png": ("a dog", 0.2)},
        texts={"a.png": ("SALE", 0.7), "b.png": ("HI", 0.1), "c d.png": ("x" * 101, 0.9)},
    )
    page = "<img src=img/a.png><img src=img/b.png><img src='img/c%20d.png?v=1#x'>"
    first, second, third = described(site, page, asker)
    assert (first.alt, first.score) == ("A cat, with the text “SALE”", 0.7)
    assert first.is_sure
    assert (second.alt, second.score, second.problem) == ("A dog", 0.2, "low score: below 0.3")
    assert "low score, 0.10" in (second.note or "")
    assert third.alt == "Two frogs"
    assert "101 characters" in (third.note or "")


def test_addresses_are_read_as_browsers_read_them_and_never_leave_the_folder(site: Path) -> None:
    good = ["img/a.png", "/img/a.png", "./img/../img/a.png", "img\\a.png", " img/a.png\n"]
    bad = {
        "../secret.png": "leads out of the folder",
        "/../secret.png": "leads out of the folder",
        "img/%2e%2e/%2e%2e/secret.png": "leads out of the folder",
        "img/..%2f..%2fsecret.png": "is not the name of a file",
        "img/link.png": "leads out of the folder",
        "img/none.png": "does not exist",
        "img/a.png%00": "is not the name of a file",
        "img": "does not exist",
        "file:///etc/passwd": "is not a file of the site",
        "C:\\a.png": "is not a file of the site",
        "javascript:alert(1)": "is not a file of the site",
        "https://example.com/a.png": "add --allow-urls",
        "//example.com/a.png": "add --allow-urls",
        "\\\\example.com\\a.png": "add --allow-urls",
        "img/{{ name }}.png": "made by code",
        "data:image/png;base64,AAAA": "",
        "img/dot.png": 'give it alt=""',
        "page.html": "",
    }
    asker = ScriptedAsker()
    page = "".join(f'<img src="{address}">\n' for address in (*good, *bad))
    found = described(site, page + "<img>", asker)
    assert [each.alt for each in found[: len(good)]] == ["Two frogs"] * len(good)
    assert len(asker.asked) == 2  # one image, asked about once
    for each, (address, reason) in zip(found[len(good) :], bad.items(), strict=False):
        assert each.alt is None, address
        assert reason in (each.problem or ""), address
        assert each.problem, address
    assert found[-1].problem == "it has no address"


def test_base_changes_where_addresses_count_from(site: Path) -> None:
    [found] = described(site, "<base href=img/x.html><img src=a.png>")
    assert found.is_sure
    [found] = described(site, "<base href=//cdn.example/><img src=a.png>")
    assert (
        found.problem == "https://cdn.example/a.png is a web address; add --allow-urls to fetch it"
    )


def test_a_base_that_is_no_address_is_told(site: Path) -> None:
    [found] = described(site, "<base href='http://['><a href=x><img src=a.png></a>")
    assert found.problem == "the page's <base>, http://[, is invalid"


def test_the_first_image_that_is_there_is_described(site: Path) -> None:
    page = """<picture><source srcset="img/none.webp, img/b.png 2x"><img src=img/no.png></picture>
    <img src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    data-src=img/a.png>"""
    assert [each.image for each in described(site, page)] == ["img/b.png", "img/a.png"]


def test_the_goal_of_a_link_that_has_no_text_is_described(site: Path) -> None:
    (site / "about.html").write_text("<title>About &lt;us&gt;\n now</title>")
    links = {
        "about.html#team": "About <us> now",
        "/contact-us.php?x=1": "contact us",
        "https://www.example.com/x": "example.com",
        "mailto:anna@example.com?subject=x": "anna@example.com",
        "tel:+49-228-1": "+49-228-1",
        "#top": "Two frogs",
        "../../x.html": "Two frogs",
        "img/a.png": "Two frogs",
        "{{ url }}": "Two frogs",
        "javascript:go()": "Two frogs",
        "https://[": "Two frogs",
    }
    page = "".join(f'<a href="{link}"><img src=img/a.png></a>' for link in links)
    found = described(site, page)
    assert [each.alt for each in found] == list(links.values())
    assert [each.score for each in found[:5]] == [None] * 5
    assert all("not known" in (each.note or "") for each in found[5:])
    asker = ScriptedAsker(texts={"a.png": ("Buy", 0.9)})
    found = described(site, "<button><img src=img/a.png></button>" + page, asker)
    assert [each.alt for each in found[:2]] == ["Buy", "About <us> now, with the text “Buy”"]


def test_the_language_is_that_of_the_page(site: Path) -> None:
    asker = ScriptedAsker(languages=("en", "de"))
    described(site, "<html lang=de-AT><img src=img/a.png>", asker)
    assert asker.asked[0][0] == "caption de"
    described(site, "<html lang=de><img src=img/a.png>", asker, language="en")
    assert asker.asked[2][0] == "caption en"
    path = site / "page.html"
    path.write_text("<html lang=fi><img src=img/a.png>")
    [error] = describe_pages(asker, [path])
    assert isinstance(error, InputError)
    assert "'fi'" in str(error)


def test_pages_come_one_by_one_and_a_bad_one_does_not_stop_the_others(site: Path) -> None:
    for number in range(4):
        (site / f"{number}.html").write_text(f"<img src=img/{'abe'[number % 3]}.png>")
    (site / "1.html").write_bytes(b"<meta charset=iso-2022-jp>\x1b$B\xff")
    (site / ".hidden").mkdir()
    (site / ".hidden" / "5.html").write_text("<img src=a.png>")
    pages = pages_below(site)
    assert [page.name for page in pages] == ["0.html", "1.html", "2.html", "3.html"]
    asker = ScriptedAsker()
    found = list(describe_pages(asker, pages, root=site))
    assert [isinstance(each, InputError) for each in found] == [False, True, False, False]
    assert len(asker.asked) == 4  # a.png and e.png, twice each: caption and text
    assert list(describe_pages(asker, [])) == []


def test_pictures_without_a_page(site: Path) -> None:
    asker = ScriptedAsker(texts={"a.png": ("HI", 0.9)})
    named = [(name, site / "img" / f"{name}.png") for name in ("a", "b")]
    from paligemma.processor.image import load_image

    loaders = [(name, lambda path=path: load_image(path)) for name, path in named]
    found = list(describe_pictures(asker, loaders, AltOptions(language="de")))
    assert [each.alt for each in found] == ["Two frogs, mit dem Text “HI”", "Two frogs"]


@pytest.mark.parametrize("options", [{"language": "xx yy"}, {"min_score": 2}, {"min_score": None}])
def test_options_are_checked(options) -> None:
    with pytest.raises(OptionError):
        AltOptions(**options)
