"""Ask a model about images, and make alternative texts of its answers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paligemma.alt.addresses import Source, first_usable, goal_of, load, shown
from paligemma.alt.images import PageImage
from paligemma.alt.pages import PAGE_SUFFIXES, Alternative, Page, PageAlternatives, read_page
from paligemma.alt.wording import LONGEST_TEXT, alt_of_caption, with_text
from paligemma.answering import ImageQuery, Query
from paligemma.errors import ImageError, InputError, NumericalError, OptionError, PaliGemmaError
from paligemma.extraction.values import is_absent
from paligemma.options import Option
from paligemma.processor.image import LoadedImage
from paligemma.results import Text, one_line
from paligemma.tasks.task import LANGUAGES, check_language
from paligemma.tasks.text import CaptionTask, OcrTask

if TYPE_CHECKING:
    from paligemma.documents.asker import Asker

_TINY = 2
"""Pixels along the longer side of images that only fill space or count visitors."""


@dataclass(frozen=True, kw_only=True)
class AltOptions:
    """How alternative texts are made. Raises OptionError for values that are not allowed."""

    language: Annotated[str | None, Option(shown_default="by the page, else en")] = None
    """Language code of the alternative texts, such as de."""
    min_score: Annotated[float, Option(least=0, most=1)] = 0.3
    """Minimum score; alternative texts with lower scores are listed and not written."""
    allow_urls: bool = False
    """Fetch images from http and https addresses."""
    batch_size: Annotated[int | None, Option(least=1, shown_default="by model")] = None
    """Number of questions to answer at a time."""

    def __post_init__(self) -> None:
        if self.language is not None:
            check_language(self.language)
        if not isinstance(self.min_score, int | float) or not 0 <= self.min_score <= 1:
            raise OptionError(f"min_score is {self.min_score!r}; it must be a number from 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """An image to ask about, in a language."""

    address: str
    source: Source | None
    error: str | None
    language: str

    @property
    def key(self) -> tuple[str, str]:
        return str(self.source), self.language


def describe_pages(
    asker: Asker,
    paths: Iterable[Path | str],
    options: AltOptions | None = None,
    *,
    root: Path | str | None = None,
) -> Iterator[PageAlternatives | InputError]:
    """What is proposed for each HTML page, in order; an InputError for one that cannot be used.

    `root` is the folder of the site, outside of which nothing is read; None: the folder of each
    page. An image that several pages show is asked about once.
    """
    options = options or AltOptions()
    plans: deque[_Plan | InputError] = deque()
    waiting: deque[tuple[str, str]] = deque()
    known: dict[tuple[str, str], tuple[Any, Any] | None] = {}

    def queries() -> Iterator[ImageQuery]:
        for path in map(Path, paths):
            try:
                page = read_page(path, Path(path.parent if root is None else root))
                plan = _plan(page, options, getattr(asker, "languages", None))
            except InputError as error:
                plans.append(error)
                continue
            plans.append(plan)
            for each in plan.asked:
                if each.source is not None and each.key not in known:
                    known[each.key] = None
                    waiting.append(each.key)
                    yield from _queries_about(partial(_load, each.source), each.language)

    results = iter(asker.answer(queries(), options.batch_size))
    for caption in results:
        known[waiting.popleft()] = (caption, next(results))
        while plans and _is_ready(plans[0], known):
            yield _finished(plans.popleft(), known, options)
    while plans:
        yield _finished(plans.popleft(), known, options)


def describe_pictures(
    asker: Asker, pictures: Iterable[tuple[str, Any]], options: AltOptions | None = None
) -> Iterator[Alternative]:
    """The alternative text of each picture, in order.

    `pictures` are pairs of a name and an image, or a function that returns a LoadedImage.
    """
    options = options or AltOptions()
    language = options.language or "en"
    names: list[str] = []

    def queries() -> Iterator[ImageQuery]:
        for name, picture in pictures:
            names.append(name)
            yield from _queries_about(picture, language)

    answers = iter(asker.answer(queries(), options.batch_size))
    for number, caption in enumerate(answers):
        text = next(answers)
        yield _described(names[number], (caption, text), language, options)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A page, and what to ask about each of its images."""

    page: Page
    language: str
    asked: tuple[_Asked, ...]


def _plan(page: Page, options: AltOptions, known: Sequence[str] | None) -> _Plan:
    """Raises InputError for a page in a language that the model does not know."""
    language = _language_of(page, options, known)
    asked = tuple(_asked(page, image, language, options) for image in page.found.images)
    return _Plan(page=page, language=language, asked=asked)


_Known = Mapping[tuple[str, str], tuple[Any, Any] | None]


def _is_ready(plan: _Plan | InputError, known: _Known) -> bool:
    return isinstance(plan, InputError) or all(
        each.source is None or known.get(each.key) is not None for each in plan.asked
    )


def _finished(
    plan: _Plan | InputError, known: _Known, options: AltOptions
) -> PageAlternatives | InputError:
    if isinstance(plan, InputError):
        return plan
    made = tuple(
        _of_page_image(image, each, known, plan.page, options)
        for image, each in zip(plan.page.found.images, plan.asked, strict=True)
    )
    return PageAlternatives(page=plan.page, language=plan.language, alternatives=made)


def _load(source: Source) -> LoadedImage:
    loaded = load(source)
    if max(loaded.size_wh) <= _TINY:
        width, height = loaded.size_wh
        raise ImageError(f'it has {width} x {height} pixels and shows nothing; give it alt=""')
    return loaded


def _queries_about(picture: Any, language: str) -> Iterator[ImageQuery]:
    for task in (CaptionTask(language=language), OcrTask()):
        yield ImageQuery(images=(picture,), query=Query(task=task))


def _asked(page: Page, image: PageImage, language: str, options: AltOptions) -> _Asked:
    address = image.addresses[0] if image.addresses else ""
    source, error = None, image.refusal
    if error is None:
        try:
            address, source = first_usable(
                page.place, image.addresses, allow_urls=options.allow_urls
            )
        except ImageError as caught:
            error = str(caught)
    if address[:5].lower() == "data:":
        address = shown(address)
    return _Asked(address=address, source=source, error=error, language=language)


def _language_of(page: Page, options: AltOptions, known: Sequence[str] | None) -> str:
    """The language of a page's alternative texts. Raises InputError for one that none knows."""
    declared = page.found.language
    if options.language is not None or declared is None:
        return options.language or "en"
    code = declared.replace("_", "-").split("-")[0].lower()
    if code not in (LANGUAGES if known is None else known):
        raise InputError(
            f"The page {str(page.path)!r} is in the language {shown(declared)!r}, which the model "
            "does not know. Choose the language of the alternative texts with --language."
        )
    return code


def _of_page_image(
    image: PageImage, asked: _Asked, known: _Known, page: Page, options: AltOptions
) -> Alternative:
    control = image.control
    goal = None if control is None else goal_of(control.address, page.place)
    around = {"line": image.line, "was": image.was, "reason": image.reason, "goal": goal}
    answers = known.get(asked.key)
    if asked.error is not None or answers is None:
        return Alternative(image=asked.address, alt=None, problem=asked.error, **around)  # type: ignore[arg-type]
    made = _described(
        asked.address, answers, asked.language, options, goal=goal, is_control=control is not None
    )
    return replace(made, **around)  # type: ignore[arg-type]


def _described(
    name: str,
    answers: tuple[Any, Any],
    language: str,
    options: AltOptions,
    *,
    goal: str | None = None,
    is_control: bool = False,
) -> Alternative:
    """The proposal that the caption and the text of an image make."""
    for answer in answers:
        if isinstance(answer, ImageError | NumericalError):
            return Alternative(image=name, alt=None, problem=one_line(str(answer)))
        if isinstance(answer, PaliGemmaError):
            raise answer
    caption, text = answers
    read, note = _text_to_add(text, options)
    used: list[Text] = [text] if read else []
    if goal is not None:
        first = goal
    elif is_control and read:
        first = ""
    else:
        first = alt_of_caption(caption.text)
        used.append(caption)
    if is_control and goal is None:
        note = "it is alone in a link or button whose goal is not known: check what it says"
    alt = with_text(first, read, language)
    score = min((round(each.score, 4) for each in used), default=None)
    return Alternative(
        image=name,
        alt=alt or None,
        score=score,
        caption=caption.text,
        text=None if _is_nothing(text) else text.text,
        problem=_problem(alt, score, options),
        note=note,
    )


def _problem(alt: str, score: float | None, options: AltOptions) -> str | None:
    if not alt.strip():
        return "the model says nothing about it"
    if score is not None and score < options.min_score:
        return f"low score: below {options.min_score:g}"
    return None


def _is_nothing(text: Text) -> bool:
    return is_absent(text.text)


def _text_to_add(text: Text, options: AltOptions) -> tuple[str, str | None]:
    """What was read, as far as it belongs in an alternative text, and a note on the rest."""
    read = one_line(text.text)
    if _is_nothing(text):
        return "", None
    if text.score < options.min_score:
        return "", f"text was read in it with a low score, {text.score:.2f}, and left out"
    if len(read) > LONGEST_TEXT:
        return "", f"the text in it has {len(read)} characters: it belongs on the page, near it"
    return read, None


def pages_below(folder: Path | str) -> list[Path]:
    """The HTML files in a folder and below, by name; none in hidden folders or behind links.

    Raises InputError for a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise InputError(
            f"The folder {error.filename!r} cannot be listed: {error.strerror}."
        ) from error

    found = []
    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(root, name)
            for name in sorted(files)
            if name.lower().endswith(PAGE_SUFFIXES) and not name.startswith(".")
        ]
    return found
