"""Measure how documents are read: words kept, pages per minute, memory, fields of drawn forms.

    python -m benchmarks.documents words FILE.pdf... --resolutions 448,896
    python -m benchmarks.documents speed --pages 20 --model mini
    python -m benchmarks.documents memory --pages 1000
    python -m benchmarks.documents forms --number 200 --model mini

words   share of the words of a text layer that can still be read after the model's resize, of the
        page as a whole and in tiles. The reader is the program `tesseract`, so that this measures
        the images and not a model.
speed   pages per minute: the text of pages, and the fields of a schema.
memory  resident memory while the text of a long PDF file is read, page after page. With --model
        none, pages are rendered, cut and resized for mini, and nothing is computed.
forms   scores of fields on papers that mini draws (`python -m mini.paper`), of each kind in turn.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

import paligemma
from benchmarks.command import add_output_options, run_command, write_report
from mini.paper import PAPER_KINDS, PaperKind, make_page, make_paper
from mini.scene import RESOLUTION
from paligemma.answering import ImageQuery
from paligemma.cli.console import print_table
from paligemma.documents.asker import Asker
from paligemma.documents.open import open_document
from paligemma.documents.page import Page
from paligemma.documents.read import ReadOptions, read_document
from paligemma.documents.tiles import Tile, tiles_of, whole
from paligemma.errors import OptionError
from paligemma.evals.fields.evaluation import TOTAL, evaluate_fields
from paligemma.evals.fields.records import FieldRecord, TrueBox, nested
from paligemma.extraction.asking import extract
from paligemma.extraction.schema import read_schema
from paligemma.processor.processor import Processor
from paligemma.results import Text

_WORD = re.compile(r"\w+")
_READER_DPI = 300
_SEED = 2011
_CACHE_BYTES = 16 * 2**20
_MEMORY_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.documents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(dest="part", required=True)
    words = parts.add_parser("words", help="words kept by page and by tile")
    words.add_argument("files", nargs="+", type=Path, metavar="FILE", help="PDF with a text layer")
    words.add_argument("--resolutions", default="448,896", help="of models (%(default)s)")
    words.add_argument("--pages", type=int, default=1, help="first pages of each (%(default)s)")
    speed = parts.add_parser("speed", help="pages per minute")
    speed.add_argument("--pages", type=int, default=20, help="pages to read (%(default)s)")
    memory = parts.add_parser("memory", help="memory over many pages")
    memory.add_argument("--pages", type=int, default=1000, help="pages to read (%(default)s)")
    forms = parts.add_parser("forms", help="scores of fields on drawn forms")
    forms.add_argument("--number", type=int, default=200, help="papers (%(default)s)")
    forms.add_argument("--long", action="store_true", help="long papers, which need tiles")
    forms.add_argument("--seed", type=int, default=_SEED, help="random seed (%(default)s)")
    for part in (speed, memory, forms):
        part.add_argument("--model", default="mini", help="model to load (%(default)s)")
    for part in parts.choices.values():
        add_output_options(part)
    options = parser.parse_args()
    measure = {"words": _words, "speed": _speed, "memory": _memory, "forms": _forms}[options.part]
    write_report(measure(options), options)


# Words


def _words(options: argparse.Namespace) -> dict[str, Any]:
    if shutil.which("tesseract") is None:
        raise OptionError("The program tesseract is missing. Install the package tesseract-ocr.")
    resolutions = [int(text) for text in options.resolutions.split(",")]
    rows = []
    for path in options.files:
        with open_document(path) as document:
            for page in document.pages[: options.pages]:
                if page.words:
                    rows += [_kept(page, resolution) for resolution in resolutions]
    print_table(
        None,
        ("page", "words", "resolution", "whole", "tiles", "kept in tiles"),
        [
            (
                row["page"],
                str(row["words"]),
                str(row["resolution"]),
                f"{row['whole']:.2f}",
                str(row["num_tiles"]),
                f"{row['tiles']:.2f}",
            )
            for row in rows
        ],
        right=("words", "resolution", "whole", "tiles", "kept in tiles"),
    )
    return {"words": rows}


def _kept(page: Page, resolution: int) -> dict[str, Any]:
    tiles = tiles_of(page, resolution) or [whole(page)]
    return {
        "page": page.name,
        "words": sum(len(_WORD.findall(word.text)) > 0 for word in page.words),
        "resolution": resolution,
        "whole": _share_kept(page, [whole(page)], resolution),
        "num_tiles": len(tiles),
        "tiles": _share_kept(page, tiles, resolution),
    }


def _share_kept(page: Page, tiles: Sequence[Tile], resolution: int) -> float:
    """Of the words of the text layer, those that the reader finds in a tile that shows them."""
    kept: set[int] = set()
    words = {n: _WORD.findall(w.text.casefold()) for n, w in enumerate(page.words)}
    words = {n: parts for n, parts in words.items() if parts}
    for tile in tiles:
        seen = Counter(_read_image(_as_seen(tile, resolution)))
        x0, y0, x1, y1 = tile.box_xyxy
        for number, parts in words.items():
            left, top, right, bottom = page.words[number].box_xyxy
            inside = x0 <= (left + right) / 2 < x1 and y0 <= (top + bottom) / 2 < y1
            if inside and number not in kept and all(seen[part] > 0 for part in parts):
                seen.subtract(parts)
                kept.add(number)
        tile.release()
    return len(kept) / len(words)


def _as_seen(tile: Tile, resolution: int) -> Image.Image:
    """The tile squashed to the model's square, and stretched to its own shape again."""
    x0, y0, x1, y1 = tile.box_xyxy
    size = (round((x1 - x0) * _READER_DPI / 72), round((y1 - y0) * _READER_DPI / 72))
    square = tile.image(resolution).rgb.resize((resolution,) * 2, Image.Resampling.BICUBIC)
    return square.resize(size, Image.Resampling.BICUBIC)


def _read_image(image: Image.Image) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tile.png"
        image.save(path, dpi=(_READER_DPI, _READER_DPI))
        command = ["tesseract", str(path), "-", "--psm", "3"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _WORD.findall(text.casefold())


# Speed and memory


def _speed(options: argparse.Namespace) -> dict[str, Any]:
    model = paligemma.load(options.model)
    report: dict[str, Any] = {"pages": options.pages, "pages_per_minute": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = _pdf_of_papers(Path(folder), options.pages, "invoice")
        start = time.perf_counter()
        read_document(model, path)
        report["pages_per_minute"]["text"] = 60 * options.pages / (time.perf_counter() - start)
        schema = read_schema("invoice")
        start = time.perf_counter()
        with open_document(path) as document:
            for page in document.pages:
                image = page.render(size_wh=(RESOLUTION, RESOLUTION))
                extract(model, image, schema)
        report["pages_per_minute"]["invoice"] = 60 * options.pages / (time.perf_counter() - start)
    rows = [(name, f"{value:.1f}") for name, value in report["pages_per_minute"].items()]
    print_table(None, ("what is read", "pages per minute"), rows, right=("pages per minute",))
    return report


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    """Memory while a document that was opened once is read page by page.

    Image tokens are cached up to a limit, which is set low, so that growth has another reason; and
    answers are short, since what is written does not matter.
    """
    model: Asker = _Silent()
    if options.model != "none":
        model = replace(paligemma.load(options.model), image_cache_bytes=_CACHE_BYTES)
    reading = ReadOptions(max_new_tokens=_MEMORY_TOKENS)
    samples: list[dict[str, float]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = _pdf_of_papers(Path(folder), min(options.pages, 50), "receipt", options.pages)
        with open_document(path) as document:
            for page in document.pages:
                read_document(model, document, reading, pages=[page.number])
                if page.number % max(1, options.pages // 20) == 0:
                    megabytes = _resident_bytes() / 1e6
                    samples.append({"page": page.number, "megabytes": round(megabytes, 1)})
                    print(f"page {page.number}: {megabytes:.0f} MB", flush=True)
    seconds = time.perf_counter() - start
    print(f"{60 * options.pages / seconds:.1f} pages per minute")
    return {"pages": options.pages, "samples": samples, "seconds": round(seconds, 1)}


class _Silent:
    """Prepares every image that it is asked about, and writes nothing."""

    def __init__(self) -> None:
        self.processor: Processor = paligemma.load_processor("mini")[0]

    def answer(
        self, queries: Iterable[ImageQuery], batch_size: int | None = None
    ) -> Iterator[Text]:
        for query in queries:
            [image] = query.images
            assert callable(image)
            loaded = image()
            assert isinstance(loaded, paligemma.LoadedImage)
            self.processor.pixel_values([loaded])
            yield Text(text="", token_ids=(), logprobs=(), stop_reason="eos", score=1.0)


def _resident_bytes() -> int:
    """Memory of this process now."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def _pdf_of_papers(
    folder: Path, number: int, kind: PaperKind, num_pages: int | None = None
) -> Path:
    """A PDF file of drawn papers, which are repeated up to `num_pages`."""
    import pypdfium2

    images = [
        Image.fromarray(make_paper("test", _SEED, index, kind).draw(RESOLUTION))
        for index in range(number)
    ]
    path = folder / "papers.pdf"
    images[0].save(path, save_all=True, append_images=images[1:], resolution=72)
    if num_pages is None or num_pages == number:
        return path
    source, target = pypdfium2.PdfDocument(path), pypdfium2.PdfDocument.new()
    for start in range(0, num_pages, number):
        target.import_pages(source, list(range(min(number, num_pages - start))))
    target.save(folder / "long.pdf")
    source.close()
    target.close()
    return folder / "long.pdf"


# Forms


def _forms(options: argparse.Namespace) -> dict[str, Any]:
    model = paligemma.load(options.model)
    report: dict[str, Any] = {"number": options.number, "seed": options.seed, "kinds": {}}
    rows = []
    for kind in PAPER_KINDS:
        number = len(range(PAPER_KINDS.index(kind), options.number, len(PAPER_KINDS)))
        records = list(_papers(kind, number, options.seed, is_long=options.long))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = evaluate_fields(model, records, kind, Path(folder), name=kind)
        seconds = time.perf_counter() - start
        assert found.total is not None
        scores = [*found.fields, found.total]
        report["kinds"][kind] = {
            "papers": number,
            "pages_per_minute": 60 * number / seconds,
            "reading_order": None if found.reading_order is None else found.reading_order.distance,
            "fields": [score.to_dict() for score in scores],
        }
        for score in scores:
            coverage = score.coverage
            rows.append(
                (
                    kind if score.path == TOTAL else "",
                    score.path,
                    str(score.num_cells),
                    f"{score.exact:.3f}",
                    f"{score.anls:.3f}",
                    f"{score.f1:.3f}",
                    f"{score.evidence_iou:.3f}",
                    "" if coverage is None else f"{coverage.share:.3f}",
                )
            )
        print(json.dumps({kind: rows[-1]}), flush=True)
    columns = ("", "field", "values", "exact", "ANLS", "F1", "place IoU", "accepted")
    print_table(None, columns, rows, right=columns[2:])
    return report


def _papers(
    kind: PaperKind, number: int, seed: int, *, is_long: bool = False
) -> Iterator[FieldRecord]:
    """Papers with all values of their schema: what is not printed is known to be absent."""
    absent, items = _absent(kind)
    for index in range(number):
        make = make_page if is_long else make_paper
        paper = make("test", seed, index, kind)
        fields: dict[str, Any] = {**absent}
        for key, value in nested({each.path: each.value for each in paper.fields}).items():
            if isinstance(value, list):  # items with all their values
                value = [{**items[key], **item} if key in items else item for item in value]
            fields[key] = value
        boxes = {
            each.path: TrueBox(
                page=1,
                box_xyxy=tuple(edge * RESOLUTION for edge in each.box_xyxy),  # type: ignore[arg-type]
            )
            for each in paper.fields
        }
        yield FieldRecord(
            record_id=f"{kind} {index}",
            source=_drawer(paper),
            fields=fields,
            boxes=boxes,
            text=paper.text,
        )


def _drawer(paper: Any) -> Any:
    return lambda: Image.fromarray(paper.draw(RESOLUTION))


def _absent(kind: PaperKind) -> tuple[dict[str, Any], dict[str, dict[str, None]]]:
    """None for the values of the schema, and empty lists; and None for the values of items."""
    values: dict[str, Any] = {}
    items: dict[str, dict[str, None]] = {}
    for leaf in read_schema(kind).leaves():
        first, *rest = leaf.keys
        values[first] = [] if rest else None
        if len(rest) == 2:
            items.setdefault(first, {})[rest[1]] = None
    return values, items


if __name__ == "__main__":
    run_command(main)
