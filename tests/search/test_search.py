"""Indexes of pictures, with a model that says what the tests tell it to."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import paligemma
from paligemma.answering import ImageQuery
from paligemma.errors import ImageError, OptionError, PaliGemmaError, PromptError
from paligemma.search import Index, IndexOptions, build_index, rerank
from paligemma.search.query import read_query
from paligemma.search.store import Picture, Store
from paligemma.tasks.yes_no import YesNo, YesNoTask
from tests.alt.scripted import Said, ScriptedAsker

CAPTIONS: dict[str, Said] = {
    "a.png": ("two frogs and a red car", 0.9),
    "b.png": ("a red house", 0.8),
    "c.png": ("Ein Café in Köln", 0.7),
}
TEXTS: dict[str, Said] = {"b.png": ("RECEIPT\nParis 12.50", 0.6), "c.png": ("unanswerable", 0.9)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one of them in a folder."""
    for name in ("a.png", "b.png", "in/c.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path / "pictures"


def asker() -> ScriptedAsker:
    return ScriptedAsker(captions=CAPTIONS, texts=TEXTS)


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> Path:
    build_index(asker(), folder, tmp_path / "index.db")
    return tmp_path / "index.db"


def found(path: Path, query: str, count: int = 10) -> list[str]:
    """The names of the pictures found."""
    with Index.open(path) as opened:
        return [Path(hit.path).name for hit in opened.search(query, count)]


def test_pictures_are_found_by_words_with_the_reason(index: Path, folder: Path) -> None:
    with Index.open(index) as opened:
        first, second = opened.search("the red receipt from Paris")
        assert len(opened) == 3
    assert (first.path, first.num_terms) == (str(folder / "b.png"), 3)
    assert [(match.field, match.word) for match in first.matches] == [
        ("caption", "red"),
        ("text", "RECEIPT"),
        ("text", "Paris"),
    ]
    assert first.marked("text", "<", ">") == "<RECEIPT>\n<Paris> 12.50"
    assert first.scores == {"caption": 0.8, "text": 0.6}
    assert (Path(second.path).name, second.num_terms) == ("a.png", 1)
    assert second.marked("caption", "[", "]") == "two frogs and a [red] car"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("FROG", ["a.png"]),  # English words in all forms
        ("cafe koln", ["c.png"]),  # without accents
        ('"red car"', ["a.png"]),
        ('"car red"', []),
        ("“red house”", ["b.png"]),
        ("hou*", ["b.png"]),
        ("red -house", ["a.png"]),
        ('red -"red car"', ["b.png"]),
        ("house red", ["b.png", "a.png"]),
        ("nothing", []),
        ("unanswerable", []),
        ("caption:frogs", []),
        ("frogs OR nothing", ["a.png"]),
        ("NEAR(frogs car)", ["a.png"]),
    ],
)
def test_words_phrases_beginnings_and_exclusions(index: Path, query: str, names) -> None:
    assert found(index, query) == names


@pytest.mark.parametrize(
    "query", ["", " ", '""', "-frog", "*", "?!", "---", '"', "\0", "_", "- -", " ".join("a" * 33)]
)
def test_queries_without_a_word_are_refused(index: Path, query: str) -> None:
    with pytest.raises(OptionError):
        found(index, query)


@settings(max_examples=150, deadline=None)
@given(
    query=st.one_of(
        st.text(max_size=30),
        st.lists(
            st.sampled_from(
                [
                    *('"', "'", "(", ")", "*", "^", ":", "-", "+", "{", "}", "AND", "OR", "NOT"),
                    *("NEAR", "frog", "caption", "rank", ";", "--", "x'", "%", "\\", "\0"),
                    *("\ud800", " "),
                ]
            ),
            max_size=10,
        ).map("".join),
    )
)
def test_no_query_is_syntax(query: str, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.db"
    if not path.exists():
        store = Store.write(path, {"folder": "/x"}, "unicode61")
        store.change([Picture(path="f.png", fingerprint="1", caption="frog")])
        store.close()
    try:
        found(path, query)
    except OptionError as error:
        assert "The query" in str(error)  # noqa: PT017 - and never SQLite's words


def test_only_new_and_changed_pictures_are_read_and_gone_ones_taken_out(
    folder: Path, index: Path
) -> None:
    again = asker()
    assert build_index(again, folder, index) == {}
    assert again.asked == []
    (folder / "a.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "b.png")
    Image.new("RGB", (8, 8)).save(folder / "d.png")
    changed = ScriptedAsker(captions={"b.png": ("a green tree", 0.9), "d.png": ("a boat", 0.9)})
    build_index(changed, folder, index)
    assert {name for _, name in changed.asked} == {"b.png", "d.png"}
    assert found(index, "frogs house receipt") == []
    assert (found(index, "tree"), found(index, "boat")) == (["b.png"], ["d.png"])
    check = sqlite3.connect(index)
    check.execute("INSERT INTO words(words) VALUES ('integrity-check')")
    check.close()


def test_damaged_pictures_are_told_and_read_again_later(folder: Path, index: Path) -> None:
    good = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    errors = build_index(asker(), folder, index)
    assert list(errors) == ["b.png"]
    assert found(index, "receipt") == []
    (folder / "b.png").write_bytes(good)
    assert build_index(asker(), folder, index) == {}
    assert found(index, "receipt") == ["b.png"]


def test_another_way_of_indexing_is_not_mixed_in(folder: Path, index: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="language was 'en' and is now 'de'"):
        build_index(asker(), folder, index, IndexOptions(language="de"))
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(OptionError, match="folder was '/"):
        build_index(asker(), tmp_path / "other", index)
    with pytest.raises(ImageError):
        build_index(asker(), tmp_path / "none", index)
    for name in ("text.db", "other.db"):
        path = tmp_path / name
        path.write_text("no index") if name == "text.db" else sqlite3.connect(path).execute(
            "CREATE TABLE pictures (x)"
        )
        before = path.read_bytes()
        for use in (lambda p: build_index(asker(), folder, p), Index.open):
            with pytest.raises(OptionError, match="index"):
                use(path)
        assert path.read_bytes() == before


def test_a_folder_may_move_with_its_index(folder: Path, index: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "moved")
    again = asker()
    build_index(again, moved, index)
    assert again.asked == []
    with Index.open(index) as opened:
        assert opened.search("receipt")[0].path == str(moved / "b.png")


def test_searching_changes_nothing_and_works_in_a_folder_without_rights(index: Path) -> None:
    before = index.read_bytes(), index.stat().st_mtime_ns
    found(index, "frog")
    assert (index.read_bytes(), index.stat().st_mtime_ns) == before
    assert [path.name for path in index.parent.iterdir() if "index" in path.name] == ["index.db"]
    odd = index.with_name("a?b#c %41.db")
    shutil.copy(index, odd)
    assert found(odd, "frog") == ["a.png"]
    with Index.open(odd) as opened, pytest.raises(sqlite3.OperationalError, match="readonly"):
        opened._store.connection.execute("DELETE FROM pictures")


def test_a_damaged_or_missing_index_is_told_in_one_line(index: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not exist"):
        Index.open(tmp_path / "none.db")
    data = bytearray(index.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    index.write_bytes(data)
    with pytest.raises(OptionError, match="not an index, or is damaged"):
        found(index, "frog")


def test_names_and_words_of_strangers_are_only_text(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    name = os.fsdecode(b"'; DROP TABLE \xe9 \"x\x1b.png")
    Image.new("RGB", (8, 8)).save(folder / "x.png")
    (folder / "x.png").rename(folder / name)
    said: dict[str, Said] = {name: ("frog \x02x\x03 \x1b[2J'); DROP TABLE pictures", 0.9)}
    build_index(ScriptedAsker(captions=said), folder, tmp_path / "i.db")
    with Index.open(tmp_path / "i.db") as opened:
        [hit] = opened.search("frog")
    assert hit.path == str(folder / name)
    assert hit.marked("caption", "<", ">") == ("<frog> \\x02x\\x03 \\x1b[2J'); DROP TABLE pictures")


def test_an_interrupted_run_loses_nothing_that_was_read(folder: Path, tmp_path: Path) -> None:
    def stop(name: str) -> None:
        if name == "b.png":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(asker(), folder, tmp_path / "i.db", each=stop)
    rest = asker()
    build_index(rest, folder, tmp_path / "i.db")
    assert {name for _, name in rest.asked} == {"c.png"}


@pytest.mark.slow
def test_a_killed_run_leaves_whole_groups_and_the_next_one_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    for number in range(60):
        shutil.copy(folder / "a.png", folder / f"n{number:02}.png")
    script = """
        import os, signal, sys
        from paligemma.search import build_index
        from tests.search.test_search import asker
        count = 0
        def each(name):
            global count
            count += 1
            if count == 41:
                os.kill(os.getpid(), signal.SIGKILL)
        build_index(asker(), sys.argv[1], sys.argv[2], each=each)
    """
    out = tmp_path / "killed.db"
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder), str(out)]
    killed = subprocess.run(command, check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    with Index.open(out) as opened:
        assert len(opened) == 32
    rest = asker()
    build_index(rest, folder, out)
    assert len({name for _, name in rest.asked}) == 63 - 32
    build_index(asker(), folder, tmp_path / "whole.db")
    tables = []
    for path in (out, tmp_path / "whole.db"):
        rows = sqlite3.connect(path)
        tables.append(
            rows.execute("SELECT path, caption, text FROM pictures ORDER BY 1").fetchall()
        )
        rows.close()
    assert tables[0] == tables[1]


def test_one_writes_at_a_time_while_others_read(index: Path, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("paligemma.search.store._WAIT_SECONDS", 0.01)
    writer = sqlite3.connect(index, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert found(index, "frog") == ["a.png"]
    with pytest.raises(OptionError, match="another process is writing"):
        build_index(asker(), folder, index)
    writer.execute("ROLLBACK")
    writer.close()


class Sayer:
    """Says yes to pictures by their names, with these probabilities."""

    processor = paligemma.load_processor("mini")[0]

    def __init__(self, yes: dict[str, float]) -> None:
        self.yes = yes
        self.asked: list[str] = []

    def answer(
        self, queries: Iterable[ImageQuery], batch_size: int | None = None
    ) -> Iterator[YesNo | PaliGemmaError]:
        for query in queries:
            task = query.query.task
            assert isinstance(task, YesNoTask)
            self.asked.append(task.prompt())
            [path] = query.images
            assert isinstance(path, Path)
            if (yes := self.yes.get(path.name)) is None:
                yield ImageError("gone")
            elif yes < 0:
                yield PromptError("too long")
            else:
                yield YesNo(question=task.question, yes=yes, held=0.0)


def test_the_model_can_order_what_was_found(index: Path) -> None:
    with Index.open(index) as opened:
        hits = opened.search("red")
    assert [Path(hit.path).name for hit in hits] == ["a.png", "b.png"]
    model = Sayer({"b.png": 0.88078, "a.png": 0.00001})
    ordered = rerank(model, hits, " red car")
    assert [(Path(hit.path).name, hit.likelihood) for hit in ordered] == [
        ("b.png", 0.8808),
        ("a.png", 0.0),
    ]
    assert model.asked == ["answer en is there red car?"] * 2
    assert [hit.likelihood for hit in rerank(Sayer({"b.png": 0.5}), hits, "x")] == [0.5, None]


def test_what_is_wrong_with_the_question_is_an_error(index: Path) -> None:
    with Index.open(index) as opened:
        hits = opened.search("red")
    with pytest.raises(PromptError, match="too long"):
        rerank(Sayer({"a.png": -1.0}), hits, "red car")
    with pytest.raises(PromptError, match="at least one word"):
        rerank(Sayer({}), hits, " ")


def test_what_is_looked_for_is_said() -> None:
    query = read_query("the receipt of the -“old man” caf* the")
    assert [term.fts5 for term in query.terms] == ['"receipt"', '"caf"*']
    assert query.ignored == ("the", "of", "the", "the")
    assert read_query("the").fts5 == '"the"'
    assert read_query('say ""hello"').terms[-1].text == "hello"


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM meta",
        "UPDATE meta SET value = '[1]'",
        "UPDATE meta SET value = '{}'",
        "UPDATE meta SET value = x'ff'",
        "UPDATE pictures SET scores = 'none'",
        "UPDATE pictures SET path = id",
        "CREATE VIEW v AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) "
        "SELECT n FROM r",
    ],
)
def test_an_index_of_a_stranger_is_told_in_one_line(index: Path, change: str) -> None:
    connection = sqlite3.connect(index)
    connection.execute(change)
    connection.commit()
    connection.close()
    with pytest.raises(OptionError, match=r"it is damaged|has views or triggers"):
        found(index, "red")


@pytest.mark.parametrize("path", [b"/etc/passwd", b"../secret.png", b"in/../../secret.png"])
def test_no_index_leads_out_of_its_folder(index: Path, path: bytes) -> None:
    """`rerank` would open whatever file of this machine a stranger's index names."""
    with sqlite3.connect(index) as connection:
        connection.execute("UPDATE pictures SET path = ? WHERE path = ?", (path, b"a.png"))
    connection.close()
    with pytest.raises(OptionError, match="which is outside of its folder"):
        found(index, "frogs")
