"""Pages with new alternative texts: nothing else in them changes, in any encoding."""

from __future__ import annotations

import os
import random
import re
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.alt.charset import decode
from paligemma.alt.html import scan
from paligemma.alt.pages import Alternative, PageAlternatives, read_page
from paligemma.errors import InputError, OptionError
from tests.server.page.browser import chromium

PIECES = (
    *(
        "<p>",
        "</p>",
        "<div class='a>b'>",
        "</span>",
        "text <3 ",
        "&amp; &copy",
        "\r\n",
        "\n\t",
        "\r",
    ),
    *(
        "<!-- <img src=x> -->",
        "<!-- open ",
        "-->",
        "<!>",
        "<![CDATA[ <img> ]]>",
        "</",
        "<",
        ">",
        '"',
    ),
    *(
        "<script>'<img src=s>'</script>",
        "<script>",
        "</script>",
        "<style>",
        "</style>",
        "</textarea>",
    ),
    *("<textarea><img></textarea>", "<title>a<img></title>", "<template>", "</template>", "<svg>"),
    *("{{ x }}", "{% if a %}", "<?php echo '<img>' ?>", "<a href=/x>", "</a>", "<button>", "\0"),
    *(
        "<img src=a.png>",
        "<IMG\nSRC='b.png'/>",
        '<img src="c.png" title=\'"\' >',
        "<img/src=d.png>",
    ),
    *('<img src=e.png alt="img_1.png">', '<img src=f.png ALT\t= "img_1.png" id=x>', "<picture>"),
    *("<img src=g.png alt='' >", '<img src=h.png alt="A good text">', "<input type=image src=i>"),
)
ENCODINGS = {
    "utf-8": "é✓😀",
    "iso-8859-1": "é\xa0",
    "windows-1252": "é€",
    "shift_jis": "画像",
    "utf-16": "",
}


def alternatives_of(path: Path, texts: list[str]) -> PageAlternatives:
    """The page with an alternative text for every image, whatever it shows."""
    page = read_page(path, path.parent)
    made = tuple(
        Alternative(image="", alt=texts[number % len(texts)])
        if image.refusal is None
        else Alternative(image="", alt=None, problem=image.refusal)
        for number, image in enumerate(page.found.images)
    )
    return PageAlternatives(page=page, language="en", alternatives=made)


def without(changed: bytes, mark: bytes) -> bytes:
    """The page before, known without a parser: new texts have a mark that no page has."""
    changed = re.sub(b'(<(?:img|IMG|input)) alt="%s"' % mark, rb"\1", changed)
    return changed.replace(b'"%s"' % mark, b'"img_1.png"')


@settings(max_examples=120, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=14), encoding=st.sampled_from([*ENCODINGS])
)
def test_nothing_but_the_texts_changes(tmp_path_factory, pieces: list[str], encoding: str) -> None:
    path = tmp_path_factory.getbasetemp() / "page.html"
    body = "".join(pieces) + ENCODINGS[encoding]
    if encoding == "utf-16":
        data = b"\xff\xfe" + body.encode("utf-16-le")
        mark = "MARK".encode("utf-16-le")
        before = lambda new: _without_utf16(new)  # noqa: E731
    else:
        data = f"<meta charset={encoding}>{body}".encode(encoding, "replace")
        mark = b"MARK"
        before = lambda new: without(new, b"MARK")  # noqa: E731
    path.write_bytes(data)
    found = alternatives_of(path, ["MARK"])
    changed = found.changed()
    assert before(changed) == data
    assert changed.count(mark) == found.num_sure
    path.write_bytes(changed)
    again = alternatives_of(path, ["MARK"])  # a second run finds nothing to do
    assert again.num_sure == 0
    old, new = (_shape(data) for data in (data, changed))
    assert old == new


def _without_utf16(changed: bytes) -> bytes:
    return without(changed.decode("utf-16-le").encode(), b"MARK").decode().encode("utf-16-le")


def _shape(data: bytes) -> list[object]:
    """Every tag and text of a page but for its alternative texts."""
    page, _ = decode(data)
    return [
        (tag.kind, tag.name, [(a.name, a.value) for a in tag.attributes if a.name != "alt"])
        if tag.kind != "text"
        else page[tag.start : tag.end]
        for tag in scan(page)
    ]


@settings(max_examples=80, deadline=None)
@given(
    data=st.binary(max_size=200), tail=st.sampled_from([b"<img src=a.png>", b"", b"\r\n<img src=x"])
)
def test_any_bytes_are_kept(tmp_path_factory, data: bytes, tail: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.html"
    path.write_bytes(data + tail)
    try:
        found = alternatives_of(path, ["MARK"])
    except InputError as error:
        assert "Save it as UTF-8" in str(error)  # noqa: PT017
        return
    assert found.changed().replace(b' alt="MARK"', b"") in (data + tail, found.changed())


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        (b"\xef\xbb\xbf", "Grün ✓ “x”"),
        (b"", "Grün ✓ “x”"),
        (b"<meta charset=utf-8>", "Grün ✓ “x”"),
        (b"<meta charset='latin1'>", "Gr&#252;n &#10003; &#8220;x&#8221;"),
        (b"<?xml version='1.0' encoding='ISO-8859-15'?>", "Gr&#252;n &#10003; &#8220;x&#8221;"),
        (
            b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">',
            "Gr&#252;n",
        ),
        (b"<meta charset=x-unknown>\xe9", "Gr&#252;n"),
    ],
)
def test_texts_are_written_in_the_encoding_of_the_page(
    tmp_path: Path, declared: bytes, written: str
) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(declared + b"<img src=a.png>\r\n<p>\xc3\xa9")
    changed = alternatives_of(path, ["Grün ✓ “x”"]).changed()
    assert written.encode() in changed
    assert changed.startswith(declared)
    assert changed.endswith(b"src=a.png>\r\n<p>\xc3\xa9")


def test_what_a_model_says_is_text_and_never_markup_or_code(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<img src=a.png alt='picture'>")
    evil = '"><script>x</script> {{ 7*7 }} {% y %} <?php z ?> & &lt; a\nb\x00\x1b[2J\u202e'
    changed = alternatives_of(path, [evil]).changed().decode()
    [tag] = list(scan(changed))
    assert tag.get("alt") == (
        '"><script>x</script> {{ 7*7 }} {% y %} <?php z ?> & &lt; a b\\x00\\x1b[2J\\u202e'
    )
    assert not re.search(r"[{}<>]", changed[10:-1])


def test_a_page_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "real.html"
    path.write_text("<img src=a.png>")
    path.chmod(0o640)
    link = tmp_path / "page.html"
    link.symlink_to(path)
    assert alternatives_of(link, ["x"]).write()
    assert link.is_symlink()
    assert path.read_text() == '<img alt="x" src=a.png>'
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not alternatives_of(path, ["x"]).write()
    path.write_text("<img src=b.png>")
    found = alternatives_of(path, ["x"])
    path.write_text("<img src=other.png>")
    with pytest.raises(OptionError, match="was changed while"):
        found.write()
    path.write_text("<img src=b.png>")

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OptionError, match="No space left"):
        alternatives_of(path, ["x"]).write()
    assert path.read_text() == "<img src=b.png>"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["page.html", "real.html"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("page.html", b"<p>\n<img src=a.png>\n<p>\n" * 3),
        ("my page.html", b"<p>\r\n<img src=a.png>\r\n\r\n"),
        ("sub/p.html", b"<img src=a.png alt=picture><img src=b.png>"),
        ("sub/latin.html", b"<meta charset=latin1>\xe9\n<img src=a.png>\n\xff"),
        ("mac.html", b"<p>\r<img src=a.png>\r<p>\r\n\n"),
        ('q"uo\\te.html', b"<img alt='picture\nof x' src=a.png>\n"),
        ("bom-é.html", b"\xef\xbb\xbf<img src=a.png>"),
    ],
)
def test_a_patch_gives_the_same_as_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    found = alternatives_of(path, ["Grün “x”"])
    Path("it.patch").write_bytes(found.patch())
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run(["git", "apply", "it.patch"], check=True, env=environment)
    assert path.read_bytes() == found.changed() != data


def test_pages_that_cannot_be_changed_safely_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.html"
    outside.write_text("<img src=a.png>")
    site = tmp_path / "site"
    site.mkdir()
    (site / "link.html").symlink_to(outside)
    with pytest.raises(InputError, match="outside of"):
        read_page(site / "link.html", site)
    with pytest.raises(InputError, match="cannot be opened"):
        read_page(site / "none.html", site)
    (site / "base.html").write_text("<base href='../../x/'><img src=a.png>")
    with pytest.raises(InputError, match="leads out of the folder"):
        read_page(site / "base.html", site)
    wide = site / "wide.html"
    wide.write_bytes(b"\xff\xfe" + "<img src=a.png>".encode("utf-16-le"))
    with pytest.raises(OptionError, match="UTF-16"):
        alternatives_of(wide, ["x"]).patch()
    assert b"a\0l\0t\0" in alternatives_of(wide, ["x"]).changed()


@pytest.mark.slow
def test_chromium_sees_the_same_images_in_broken_pages(tmp_path: Path) -> None:
    """The images that are found are those of a browser, and the page is the same after a change."""
    chooser = random.Random(4)
    plain = [p for p in PIECES if "{" not in p and "<?" not in p and "\0" not in p and p != "<svg>"]
    with chromium() as browser:
        tab = browser.new_page()
        for _ in range(300):
            text = "<!DOCTYPE html><meta charset=utf-8>" + "".join(chooser.choices(plain, k=14))
            path = tmp_path / "page.html"
            path.write_bytes(text.encode())
            found = alternatives_of(path, ["MARK"])
            shapes = [
                tab.evaluate(_DOM, data.decode()) for data in (path.read_bytes(), found.changed())
            ]
            assert shapes[0]["shape"] == shapes[1]["shape"], text
            assert shapes[1]["marks"] == found.num_sure, text
            needed = shapes[0]["needed"]
            assert needed == found.num_sure, text


_DOM = """text => {
    const page = new DOMParser().parseFromString(text, 'text/html');
    const roots = [page];
    const images = [], all = [];
    while (roots.length) {
        const root = roots.pop();
        root.querySelectorAll('template').forEach(each => roots.push(each.content));
        images.push(...root.querySelectorAll('[alt="MARK"]'));
        all.push(...root.querySelectorAll('img, input[type=image i]'));
    }
    const marks = images.length;
    const needed = all.filter(each => {
        const isInput = each.matches('input[type=image i]');
        const alt = each.getAttribute('alt');
        return isInput ? !alt || alt === 'img_1.png' : alt === null || alt === 'img_1.png';
    }).length;
    images.forEach(each => each.removeAttribute('alt'));
    const bare = page.documentElement.outerHTML.replaceAll(' alt="img_1.png"', '');
    return {marks, needed, shape: bare};
}"""


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.html")
    with pytest.raises(InputError, match="is a pipe"):
        read_page(tmp_path / "a.html", tmp_path)
