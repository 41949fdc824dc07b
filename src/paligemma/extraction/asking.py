"""Extraction: ask for each value of a schema, tile by tile, and assemble the object.

    questions --whole pages--> answers --below the threshold: tiles--> the best answer of each
        lists --> items --> questions about each item --> ...
    values --text layer, else detect--> places --> the object, validated

Questions about the same view are asked one after the other, so that its image is encoded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

from paligemma.answering import ImageQuery, Query
from paligemma.documents.open import DocumentInput, open_document
from paligemma.documents.page import Document
from paligemma.documents.read import upright
from paligemma.errors import (
    DocumentError,
    ImageError,
    NumericalError,
    OptionError,
    PaliGemmaError,
    counted,
)
from paligemma.extraction.assemble import Keys, assemble
from paligemma.extraction.dates import order_of_dates
from paligemma.extraction.from_xml import extract_from_xml, note_of_einvoice
from paligemma.extraction.lists import Item, PlacedItem, items_of, union_of
from paligemma.extraction.names import NameLists, Names, read_names
from paligemma.extraction.options import ExtractOptions
from paligemma.extraction.patterns import longest, pattern_of
from paligemma.extraction.questions import (
    Question,
    in_question,
    question_for,
    same_questions,
)
from paligemma.extraction.result import BoxSource, Extraction, Field, Match
from paligemma.extraction.schema import Group, Leaf, List, Node, Schema, path_of, read_schema
from paligemma.extraction.values import Reading, comparable, is_absent, read_value
from paligemma.extraction.views import WORDS_OF_A_LAYER, View, Views
from paligemma.results import BoxXyxy, ImageReference, one_line
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.field import FieldTask

if TYPE_CHECKING:
    from paligemma.documents.asker import Asker

T = TypeVar("T")

HELD_LIMIT = 0.5
"""Above this, the answer's pattern took away more than it left. A choice, by this meaning: with
mini, lower limits doubt few wrong values and no right ones (docs/document-benchmarks.md)."""
FORCED = "the model wanted to say something else than the kind of value allows"
"""The problem of a value whose `held` is above that."""
_PHRASE_LENGTH = 60
_PAGES_AT_A_TIME = 8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An answer to a question, from one view."""

    view: View
    text: str
    score: float
    held: float
    reading: Reading = Reading()  # noqa: RUF009 - immutable
    items: tuple[Item, ...] = ()
    is_cut: bool = False

    @property
    def is_value(self) -> bool:
        """Whether the answer could be read as a value."""
        return self.reading.value is not None or bool(self.items)

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Values before what cannot be read, and that before "unanswerable"."""
        return self.is_value, not is_absent(self.text), self.score


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A question to ask, and where: everywhere, or about an item where that was read."""

    question: Question
    view: View | None = None
    known: Mapping[str, str] = field(default_factory=dict)


_NOWHERE = Pending(question=Question(node=Leaf(path="", keys=(), kind="text"), keys=(), text=""))


@dataclass(kw_only=True)
class Draft:
    """A field while it is made."""

    pending: Pending
    leaf: Leaf | List
    keys: Keys
    candidate: Candidate | None
    is_item: bool = False
    """Whether it is an item of a list's answer, which had no question of its own."""
    problems: list[str] = field(default_factory=list)
    box_xyxy: BoxXyxy | None = None
    box_source: BoxSource | None = None
    matched: Match | None = None

    @property
    def value(self) -> Any:
        return None if self.candidate is None else self.candidate.reading.value


@overload
def extract(
    asker: Asker | None,
    source: DocumentInput,
    schema: type[T] | Schema[T],
    options: ExtractOptions | None = None,
    names: NameLists = (),
) -> Extraction[T]: ...
@overload
def extract(
    asker: Asker | None,
    source: DocumentInput,
    schema: Mapping[str, Any] | str,
    options: ExtractOptions | None = None,
    names: NameLists = (),
) -> Extraction[Any]: ...
def extract(
    asker: Asker | None,
    source: DocumentInput,
    schema: Any,
    options: ExtractOptions | None = None,
    names: NameLists = (),
) -> Extraction[Any]:
    """Read the values of a schema from a document.

    `asker`: the model; None is enough with `source="xml"`, which asks nothing. `schema`: a pydantic
    model, a JSON schema, or the name of a built-in one. `names`: how names are spelled, for the
    values that the schema marks with `names`, or by the path of a value.

    Raises OptionError for a schema or an option that cannot be used, before anything is read;
    DocumentError and ImageError for a document that cannot be opened, or none of whose pages can
    be read. A page that cannot be read is a note of the result.
    """
    options = options or ExtractOptions()
    tree: Schema[Any] = read_schema(schema)
    known_names = read_names(names, tree)
    if options.source == "xml":
        return extract_from_xml(source, tree, options, known_names)
    if asker is None:
        raise OptionError("There is no model to read with; only source='xml' needs none.")
    with open_document(source, password=options.password, pages=options.pages) as document:
        run = Run(asker, document, tree, options)
        if options.mode == "json":
            from paligemma.extraction.json_mode import ask_for_json

            ask_for_json(run)
        else:
            run.ask_all()
            if options.check == "twice":
                run.ask_again()
        run.settle_dates()
        run.match(known_names)
        run.find_places()
        found = run.result()
        note = note_of_einvoice(document, tree)
        notes = found.notes if note is None else (*found.notes, note)
        return replace(found, notes=notes, image_reference=ImageReference(source))


def list_questions(
    schema: type[Any] | Mapping[str, Any] | str | Schema[Any], options: ExtractOptions | None = None
) -> list[tuple[str, str]]:
    """The path and prompt of everything that would be asked, without asking: items as {name}.

    With `check="twice"` a path has two prompts, and with `source="xml"` nothing is asked.
    """
    options = options or ExtractOptions()
    tree: Schema[Any] = read_schema(schema)
    if options.source == "xml":
        return []
    if options.mode == "json":
        return [("", options.json_prompt)]
    return list(_prompts(tree.root, tree, options, {}))


def _prompts(
    node: Node, schema: Schema[Any], options: ExtractOptions, known: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """The path and prompt of what is asked about a node; `known` stands for an item's text."""
    if isinstance(node, Group):
        for child in node.children:
            yield from _prompts(child, schema, options, known)
        return
    question = question_for(node, tuple(node.keys), schema, options.question_language, known)
    yield node.path, prompt_of(question.text, options.language)
    if options.check == "twice":
        yield node.path, prompt_of(*_second_of(question, options.language))
    if isinstance(node, List) and isinstance(node.item, Group):
        name = str(node.key_leaf.keys[-1])
        inside = {"": f"{{{name}}}", name: f"{{{name}}}"}
        for child in node.item.children:
            if child is not node.key_leaf:
                yield from _prompts(child, schema, options, inside)


def prompt_of(question: str, language: str) -> str:
    """The prompt of a question."""
    return f"answer {language} {question}" if language else question


def _second_of(question: Question, language: str) -> tuple[str, str]:
    """Text and language of a question that is asked in a second way."""
    if question.second_text:
        return question.second_text, language
    return question.text, "" if language else "en"


class Run:
    """One extraction: the questions asked so far, and the fields made of their answers."""

    def __init__(
        self, asker: Asker, document: Document, schema: Schema[Any], options: ExtractOptions
    ) -> None:
        self.asker = asker
        self.schema = schema
        self.options = options
        self.turns = _turns(asker, document) if options.turn else {}
        self.views = Views(document, asker.processor.resolution, self.turns)
        self.drafts: dict[Keys, Draft] = {}
        self.lengths: dict[Keys, int] = {}
        self.problems: list[str] = []
        self.num_asked = 0
        self.settled = ""
        self.formats = options.formats

    # Asking

    def ask_all(self) -> None:
        """Ask round by round: values and lists, then what belongs to the items of the lists."""
        pending = list(self._questions_in(self.schema.root, (), _NOWHERE))
        while pending:
            candidates = self._answers(pending)
            if self.views.errors and not self.drafts and not any(candidates):
                raise self.views.errors[0]
            following: list[Pending] = []
            for each, answers in zip(pending, candidates, strict=True):
                node = each.question.node
                if isinstance(node, List):
                    following += self._take_list(each, node, answers)
                else:
                    self._take_answers(each, node, answers)
            pending = following

    def _questions_in(self, node: Node, keys: Keys, parent: Pending) -> Iterator[Pending]:
        """The questions about a node, without those about items that are still to be found."""
        if isinstance(node, Group):
            for child in node.children:
                yield from self._questions_in(child, (*keys, child.keys[-1]), parent)
            return
        question = question_for(
            node, keys, self.schema, self.options.question_language, parent.known
        )
        yield replace(parent, question=question)

    def _answers(self, pending: Sequence[Pending]) -> list[list[Candidate]]:
        """The candidates for each question: about whole pages, then about tiles where needed."""
        answers: list[list[Candidate]] = [[] for _ in pending]
        first = [
            (view, index)
            for index, each in enumerate(pending)
            for view in ([each.view] if each.view is not None else self.views.wholes)
        ]
        self._ask(first, pending, answers)
        second = [
            (view, index)
            for index, each in enumerate(pending)
            for page in self._pages_to_look_at(each, answers[index])
            for view in self._views_of(page, each)
        ]
        self._ask(second, pending, answers)
        return answers

    def _pages_to_look_at(self, pending: Pending, answers: Sequence[Candidate]) -> list[int]:
        """The pages whose tiles are asked: all, unless an answer is good enough."""
        enough = self.options.whole_page_score
        good = {c.view.page_index for c in answers if c.is_value and c.score >= enough}
        if pending.view is not None:
            return [] if good else [pending.view.page_index]
        if isinstance(pending.question.node, List):
            return [v.page_index for v in self.views.wholes if v.page_index not in good]
        return [] if good else [v.page_index for v in self.views.wholes]

    def _views_of(self, page: int, pending: Pending) -> list[View]:
        """The tiles of a page; for an item that was read from one, also the whole page."""
        if pending.view is None:
            return self.views.tiles(page)
        wholes = [view for view in self.views.wholes if view.page_index == page]
        return [view for view in (*wholes, *self.views.tiles(page)) if view != pending.view]

    def _ask(
        self,
        asked: Iterable[tuple[View, int]],
        pending: Sequence[Pending],
        answers: list[list[Candidate]],
    ) -> None:
        """Add the answers to questions about views, ordered by view."""
        pairs = sorted(asked)
        queries = (
            ImageQuery(
                images=(self.views.reader(view),), query=self._query(pending[index].question)
            )
            for view, index in pairs
        )
        for (view, index), result in zip(pairs, self.replies(queries), strict=True):
            candidate = self._candidate(view, pending[index].question, result)
            if candidate is not None:
                answers[index].append(candidate)

    def replies(self, queries: Iterable[ImageQuery]) -> Iterator[Any]:
        """The result or error of each query, in order. Raises DocumentError beyond the limit."""

        def counted_queries() -> Iterator[ImageQuery]:
            for query in queries:
                self.num_asked += 1
                limit = self.options.max_questions
                if limit is not None and self.num_asked > limit:
                    raise DocumentError(
                        f"The document needs more than {limit} questions, which is the limit. Read "
                        "fewer pages, or a schema with fewer values."
                    )
                yield query

        return self.asker.answer(counted_queries(), self.options.batch_size)

    def _query(self, question: Question, *, is_second: bool = False) -> Query:
        text, language = question.text, self.options.language
        if is_second:
            text, language = _second_of(question, language)
        task = FieldTask(
            question=text, language=language or None, pattern=pattern_of(question.node)
        )
        return Query(task=task, max_new_tokens=longest(question.node) + 8)

    def _candidate(self, view: View, question: Question, result: Any) -> Candidate | None:
        if isinstance(result, DocumentError | ImageError | NumericalError):
            self.views.fail(view.page_index, result)
            return None
        if isinstance(result, PaliGemmaError):
            raise result
        node = question.node
        made = Candidate(
            view=view,
            text=result.text,
            score=result.score,
            held=result.held,
            is_cut=result.is_cut,
        )
        if isinstance(node, List):
            items = tuple(items_of(result, self.asker.processor.tokenizer, self.options.language))
            score = min((item.score for item in items), default=result.score)
            return replace(made, items=items, score=score)
        return replace(made, reading=read_value(node, result.text, self.formats))

    # Answers -> fields

    def take_value(self, question: Question, leaf: Leaf, answers: Sequence[Candidate]) -> None:
        """Make the field of a value from the answers to a question of another kind."""
        self._take_answers(replace(_NOWHERE, question=question), leaf, answers)

    def take_nothing(self, question: Question, node: List) -> None:
        """Make the field of a list without items."""
        pending = replace(_NOWHERE, question=question)
        draft = Draft(pending=pending, leaf=node, keys=question.keys, candidate=None)
        self.drafts[draft.keys] = draft

    def _take_answers(self, pending: Pending, leaf: Leaf, answers: Sequence[Candidate]) -> None:
        best = _best(answers)
        draft = Draft(pending=pending, leaf=leaf, keys=pending.question.keys, candidate=best)
        self.drafts[draft.keys] = draft
        if best is None or not best.is_value:
            return
        enough = max(self.options.min_score, best.score / 2)
        others: dict[Any, Candidate] = {comparable(best.reading.value): best}
        for other in sorted(answers, key=lambda c: -c.score):
            is_cut = leaf.kind == "text" and _is_part(other, best)
            if other.is_value and other.score >= enough and not is_cut:
                others.setdefault(comparable(other.reading.value), other)
        for other in list(others.values())[1:]:
            is_elsewhere = other.view.page_index != best.view.page_index
            where = f" on page {self.views.number(other.view)}" if is_elsewhere else ""
            draft.problems.append(
                f"read differently{where}: {one_line(other.text)} ({other.score:.2f})"
            )

    def _take_list(
        self, pending: Pending, node: List, answers: Sequence[Candidate]
    ) -> Iterator[Pending]:
        keys = pending.question.keys
        chosen = self._readable(path_of(keys), node.key_leaf, self._items(answers))
        if len(chosen) > node.max_items:
            self.problems.append(
                f"{path_of(keys)}: {counted(len(chosen), 'item')} were read; "
                f"the first {node.max_items} are kept"
            )
        chosen = chosen[: node.max_items]
        self.lengths[keys] = len(chosen)
        if not chosen:
            best = _best(answers)
            self.drafts[keys] = Draft(pending=pending, leaf=node, keys=keys, candidate=best)
        counts = Counter(comparable(item.text) for _, item, _ in chosen)
        for number, (candidate, item, is_doubtful) in enumerate(chosen):
            draft = self._item_draft(pending, node, (*keys, number), candidate, item)
            self.drafts[draft.keys] = draft
            if is_doubtful:
                draft.problems.append("may be a part of another item")
            if isinstance(node.item, Leaf):
                continue
            if counts[comparable(item.text)] > 1:
                draft.problems.append("several items have this text, and their values may be mixed")
            known = {**pending.known, "": item.text, str(node.key_leaf.keys[-1]): item.text}
            inner = replace(_NOWHERE, view=candidate.view, known=known)
            for each in self._questions_in(node.item, (*keys, number), inner):
                if each.question.node is not node.key_leaf:
                    yield each

    def _readable(
        self, path: str, leaf: Leaf, chosen: Sequence[tuple[Candidate, Item, bool]]
    ) -> list[tuple[Candidate, Item, bool]]:
        """The items that are values of their kind. The others are problems."""
        kept = []
        for each in chosen:
            reading = read_value(leaf, each[1].text, self.formats)
            if reading.value is not None:
                kept.append(each)
            else:
                text = one_line(each[1].text)
                shown = text if len(text) <= 60 else f"{text[:60]}..."
                self.problems.append(f"{path}: left out {shown!r}: {reading.problem}")
        return kept

    def _item_draft(
        self, pending: Pending, node: List, keys: Keys, candidate: Candidate, item: Item
    ) -> Draft:
        leaf = node.key_leaf
        if isinstance(node.item, Group):
            keys = (*keys, leaf.keys[-1])
        own = replace(
            candidate,
            text=item.text,
            score=item.score,
            items=(),
            reading=read_value(leaf, item.text, self.formats),
        )
        return Draft(pending=pending, leaf=leaf, keys=keys, candidate=own, is_item=True)

    def _items(self, answers: Sequence[Candidate]) -> list[tuple[Candidate, Item, bool]]:
        """The items of all pages: of the whole page where that is enough, else of its tiles."""
        chosen: list[tuple[Candidate, Item, bool]] = []
        for page in sorted({c.view.page_index for c in answers}):
            of_page = [c for c in answers if c.view.page_index == page and c.items]
            wholes = [c for c in of_page if c.view.tile == 0]
            tiles = sorted((c for c in of_page if c.view.tile), key=lambda c: c.view)
            if wholes and (wholes[0].score >= self.options.whole_page_score or not tiles):
                chosen += [(wholes[0], item, False) for item in wholes[0].items]
            else:
                chosen += self._union(tiles)
        return chosen

    def _union(self, tiles: Sequence[Candidate]) -> list[tuple[Candidate, Item, bool]]:
        placed = [
            PlacedItem(
                item=item, view=number, box_xyxy=self.views.find_here(candidate.view, item.text)
            )
            for number, candidate in enumerate(tiles)
            for item in candidate.items
        ]
        boxes = [candidate.view.shown_xyxy for candidate in tiles]
        neighbors = [[_touch(a, b) for b in boxes] for a in boxes]
        return [(tiles[p.view], p.item, p.is_doubtful) for p in union_of(placed, neighbors)]

    # A second formulation

    def ask_again(self) -> None:
        """Ask for every value in a second way, and note where the answers differ."""
        asked: dict[Keys, tuple[View, Pending, list[Draft]]] = {}
        for draft in self.drafts.values():
            view = draft.candidate.view if draft.candidate else self.views.wholes[0]
            key = (*draft.pending.question.keys, view.page_index, view.tile)
            asked.setdefault(key, (view, draft.pending, []))[2].append(draft)
        groups = sorted(asked.values(), key=lambda group: group[0])
        queries = (
            ImageQuery(
                images=(self.views.reader(view),),
                query=self._query(pending.question, is_second=True),
            )
            for view, pending, _ in groups
        )
        for (view, pending, drafts), result in zip(groups, self.replies(queries), strict=True):
            second = self._candidate(view, pending.question, result)
            for draft in drafts if second is not None else ():
                assert second is not None
                _compare(draft, second)

    # Dates, names and places

    def settle_dates(self) -> None:
        """Read dates that may be two by the order of the document's other dates."""
        drafts = [d for d in self.drafts.values() if d.candidate and d.candidate.text]
        unclear = [d for d in drafts if d.candidate and d.candidate.reading.is_ambiguous]
        if not unclear:
            return
        answers = [d.candidate.text for d in drafts if d.candidate]
        views = [view for view in self.views.wholes[:_PAGES_AT_A_TIME]]
        printed = [word.text for view in views for word in self.views.words(view)]
        order = order_of_dates([*answers, *printed])
        if order == "auto":
            return
        self.formats = replace(self.formats, date_order=order)
        for draft in unclear:
            assert draft.candidate is not None
            assert isinstance(draft.leaf, Leaf)
            reading = read_value(draft.leaf, draft.candidate.text, self.formats)
            draft.candidate = replace(draft.candidate, reading=reading)
        first = "day" if order == "dmy" else "month"
        self.settled = f"Dates that may be two were read {first} first, as others in the document."

    def match(self, names: Names) -> None:
        """Compare the values with the user's lists of names."""
        for draft in self.drafts.values():
            if isinstance(draft.value, str):
                draft.matched, problem = names.match(draft.leaf, draft.value)
                if problem:
                    draft.problems.append(problem)

    def find_places(self) -> None:
        """Give each value its place: by the text layer, else found by the model, else the view."""
        to_search: list[tuple[View, Draft, str]] = []
        items = {_item_keys(draft.keys): draft for draft in self.drafts.values() if draft.is_item}
        # Items first, since the values of an item are printed near it.
        for draft in sorted(self.drafts.values(), key=lambda d: (_view_of(d), not d.is_item)):
            candidate = draft.candidate
            if candidate is None or not candidate.is_value:
                continue
            draft.box_xyxy, draft.box_source = candidate.view.box_xyxy, "tile"
            item = None if draft.is_item else items.get(_item_keys(draft.keys))
            box = self._printed_place(draft, candidate, item)
            if box is not None:
                draft.box_xyxy, draft.box_source = box, "text layer"
            elif self.options.detect and (phrase := _phrase(draft)):
                to_search.append((candidate.view, draft, phrase))
        queries = (
            ImageQuery(
                images=(self.views.reader(view),),
                query=Query(task=DetectTask(phrases=(phrase,), max_objects=1)),
            )
            for view, _, phrase in to_search
        )
        for (view, draft, _), result in zip(to_search, self.replies(queries), strict=True):
            if isinstance(result, PaliGemmaError) or not len(result):
                continue
            if result[0].score >= self.options.min_box_score:
                fractions = result[0].box_normalized_xyxy
                draft.box_xyxy = self.views.place(view, fractions)
                draft.box_source = "detect"

    def _printed_place(
        self, draft: Draft, candidate: Candidate, item: Draft | None
    ) -> BoxXyxy | None:
        """Where the text layer has a value; a problem if there is a text layer without it."""
        leaf, view = draft.leaf, candidate.view
        if not isinstance(leaf, Leaf) or not self.views.words(view):
            return None
        near = None
        if item is not None and item.box_source == "text layer":
            near = item.box_xyxy
        box = self.views.find_value(view, candidate.text, draft.value, leaf, self.formats, near)
        is_printed = leaf.kind not in ("boolean", "choice")
        if box is None and is_printed and self.views.num_printed(view) >= WORDS_OF_A_LAYER:
            draft.problems.append("the text layer of the page does not have these words")
        return box

    # The result

    def result(self) -> Extraction[Any]:
        """The fields in the order of the schema, and the object that they make."""
        order = {node.keys: number for number, node in enumerate(self.schema.nodes())}
        drafts = sorted(self.drafts.values(), key=lambda d: _order_of(d.keys, order))
        values = {d.keys: d.value for d in drafts if isinstance(d.leaf, Leaf)}
        made = assemble(self.schema, values, self.lengths)
        invalid, of_object = made.problems_by(self.drafts)
        for keys, problem in invalid:
            if self.drafts[keys].value is not None:
                self.drafts[keys].problems.append(problem)
        same = same_questions(self.schema, self.options.question_language)
        notes = [*self.schema.notes, *same, *filter(None, [self.settled]), *self.views.notes]
        for draft in drafts:
            self._note_absence(draft, notes)
        if self.schema.model is not None and self.schema.name == "Prescription":
            from paligemma.extraction.builtin import NOT_MEDICAL, Prescription

            if self.schema.model is Prescription:
                notes.insert(0, NOT_MEDICAL)
        return Extraction(
            value=made.value,
            fields=tuple(self._field(draft) for draft in drafts),
            schema_name=self.schema.name,
            page_numbers=tuple(self.views.number(view) for view in self.views.wholes),
            object_problems=(*self.problems, *of_object),
            notes=tuple(notes),
            min_score=self.options.min_score,
            turns=self.turns,
        )

    def _note_absence(self, draft: Draft, notes: list[str]) -> None:
        candidate, leaf = draft.candidate, draft.leaf
        if candidate is not None and candidate.reading.problem:
            draft.problems.insert(0, candidate.reading.problem)
        if candidate is not None and candidate.is_cut:
            draft.problems.append("the answer was cut off at the limit of its length")
        is_nothing = draft.value is None
        if is_nothing and leaf.is_required and not leaf.is_nullable:
            draft.problems.append("required, and not found")
        if is_nothing and isinstance(leaf, Leaf) and leaf.has_default:
            notes.append(
                f"{path_of(draft.keys)} was not found: the object has the schema's default."
            )
        if candidate is not None and not is_nothing and candidate.held > HELD_LIMIT:
            draft.problems.append(FORCED)

    def _field(self, draft: Draft) -> Field:
        candidate, question = draft.candidate, draft.pending.question
        has_value = draft.value is not None
        view = candidate.view if candidate is not None else None
        return Field(
            path=path_of(draft.keys),
            value=draft.value,
            raw=None if candidate is None else candidate.text,
            score=candidate.score if candidate is not None and has_value else 0.0,
            held=0.0 if candidate is None else candidate.held,
            page=self.views.number(view) if view is not None and has_value else None,
            box_xyxy=draft.box_xyxy,
            box_source=draft.box_source,
            question=question.text,
            list_path=path_of(question.keys) if isinstance(question.node, List) else None,
            prompt=""
            if self.options.mode == "json"
            else prompt_of(question.text, self.options.language),
            tile_xyxy=None if view is None else view.box_xyxy,
            source="model" if has_value else None,
            problems=tuple(draft.problems),
            matched=draft.matched,
        )


def _best(answers: Sequence[Candidate]) -> Candidate | None:
    """The answer with the highest score, or one that it is a part of: tiles may cut a text off."""
    best = max(answers, key=lambda c: c.rank, default=None)
    while best is not None:
        longer = [c for c in answers if c.score >= best.score / 2 and _is_part(best, c)]
        if not longer:
            break
        best = max(longer, key=lambda c: (len(c.text), c.score))
    return best


def _is_part(short: Candidate, long: Candidate) -> bool:
    """Whether an answer is the beginning or the end of a longer one from a neighboring view."""
    first, second = short.text.casefold(), long.text.casefold()
    is_near = short.view.page_index == long.view.page_index
    is_near = is_near and _touch(short.view.shown_xyxy, long.view.shown_xyxy)
    is_inside = second.startswith(first) or second.endswith(first)
    return is_near and is_inside and len(first) < len(second) and long.is_value and short.is_value


def _turns(asker: Asker, document: Document) -> dict[int, int]:
    """How far each page must be turned to be upright, for those that lie on their side."""
    turns = {}
    pages = document.pages
    for start in range(0, len(pages), _PAGES_AT_A_TIME):
        group = list(pages[start : start + _PAGES_AT_A_TIME])
        for page, turned in zip(group, upright(asker, group), strict=True):
            if turned is not page:
                turns[page.number] = (turned.turned - page.turned) % 360
    return turns


def _compare(draft: Draft, second: Candidate) -> None:
    """Note where the second answer says something else."""
    if draft.is_item:
        texts = {comparable(item.text) for item in second.items}
        if draft.candidate is not None and comparable(draft.candidate.text) not in texts:
            draft.problems.append("asked in another way, the list does not have it")
        return
    first = draft.candidate.reading.value if draft.candidate else None
    is_same = comparable(first) == comparable(second.reading.value)
    if not is_same or (isinstance(draft.leaf, List) and second.items):
        draft.problems.append(
            f"asked in another way, the answer is: {one_line(second.text)} ({second.score:.2f})"
        )


def _phrase(draft: Draft) -> str | None:
    """What to search for as evidence of a value."""
    how = draft.leaf.detect if isinstance(draft.leaf, Leaf) else False
    if how is False or draft.candidate is None:
        return None
    text = in_question(draft.candidate.text) if how is True else how
    text = text.replace("{value}", in_question(draft.candidate.text))
    phrase = one_line(text.replace(";", " "))[:_PHRASE_LENGTH].strip()
    return phrase or None


def _touch(first: BoxXyxy, second: BoxXyxy) -> bool:
    """Whether two tiles have a part of the page in common."""
    return (
        min(first[2], second[2]) > max(first[0], second[0])
        and min(first[3], second[3]) > max(first[1], second[1])
    )  # fmt: skip


def _item_keys(keys: Keys) -> Keys:
    """The innermost item of a list that a value belongs to; () for none."""
    last = max((index for index, key in enumerate(keys) if isinstance(key, int)), default=-1)
    return keys[: last + 1]


def _view_of(draft: Draft) -> tuple[int, int]:
    view = draft.candidate.view if draft.candidate is not None else None
    return (-1, -1) if view is None else (view.page_index, view.tile)


def _order_of(keys: Keys, order: Mapping[tuple[str, ...], int]) -> list[int]:
    """What sorts fields as in the schema, the items of a list one after the other."""
    plain = tuple("[]" if isinstance(key, int) else key for key in keys)
    return [
        key if isinstance(key, int) else order[plain[: index + 1]] for index, key in enumerate(keys)
    ]
