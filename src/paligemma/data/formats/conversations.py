"""Chats about images, as LLaVA (ShareGPT) and OpenAI write them: a JSON list, or one per line.

    {"image": "1.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                         {"from": "gpt", "value": "A dog."}]}
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ...}},
                                               {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": "A dog."}]}

Each question with its answer is a record. The model takes one question at a time, so follow-up
questions are learned without the turns before them, and system messages are left out; both are
counted. Images are paths or data URIs.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.data.formats.jsonl import is_chat_file
from paligemma.data.record import Record
from paligemma.data.source import (
    Entry,
    ImageFinder,
    ReadRequest,
    Source,
    choose_split,
    read_text,
)
from paligemma.errors import DataError, OptionError, counted
from paligemma.processor.image import ImageSource

NAME = "conversations"
_ASKING, _ANSWERING = ("human", "user"), ("gpt", "assistant", "model")


def recognizes(path: Path) -> bool:
    """A file of chats, or a folder with one."""
    return is_chat_file(path) if path.is_file() else bool(_files(path))


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError for a file that is not JSON, OptionError where a split has several files."""
    groups = {"": [path]} if path.is_file() else _files(path)
    split, files = choose_split(groups, options, str(path))
    if len(files) > 1:
        raise OptionError(
            f"Several files could be meant: {', '.join(map(str, files))}. Give one as the data."
        )
    tally: Counter[str] = Counter()
    file = files[0]
    finder = ImageFinder([options.images or file.parent], tally)
    reading = _Reading(finder=finder, tally=tally)
    entries: list[Entry] = []
    for name, chat in _chats(file):
        entries += reading.entries(chat, name, f"{name.capitalize()} of {str(file)!r}")
    if not entries:
        raise DataError(f"{str(file)!r} holds no question about an image.")
    return Source(
        summary=f"{counted(len(entries), 'question')} in {file.name}",
        entries=entries,
        tally=tally,
        split=split or None,
        splits=tuple(filter(None, groups)),
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """By split: `train.jsonl` and `llava.train.json` are "train"."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and is_chat_file(path):
            groups.setdefault(path.stem.split(".")[-1], []).append(path)
    return groups


def _chats(file: Path) -> Iterator[tuple[str, Any]]:
    """Each with its name: "item 1", "line 1"."""
    text = read_text(file)
    if file.suffix.lower() == ".json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{str(file)!r} is not JSON: {error}.") from error
        if not isinstance(content, list):
            raise DataError(f"{str(file)!r} is not a list of chats.")
        yield from ((f"item {number}", chat) for number, chat in enumerate(content, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"line {number}", None


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one file have in common."""

    finder: ImageFinder
    tally: Counter[str]

    def entries(self, chat: Any, name: str, where: str) -> Iterator[Entry]:
        """One per question; a chat without an image has none."""
        try:
            images, turns = _turns_of(chat, where)
        except DataError as error:
            yield Entry(name, where, partial(_raise, error))
            return
        if isinstance(chat.get("id"), str | int):
            name = str(chat["id"])
        self.tally["system messages left out"] += sum(role == "system" for role, _ in turns)
        turns = [turn for turn in turns if turn[0] != "system"]
        if not images:
            self.tally["chats without an image left out"] += 1
            return
        for number, start in enumerate(range(0, len(turns), 2)):
            pair = turns[start : start + 2]
            record_id = name if number == 0 else f"{name} question {number + 1}"
            self.tally["follow-up questions, learned without what was said before"] += number > 0
            yield Entry(record_id, where, partial(self.record, images, pair, record_id, where))

    def record(
        self, images: list[str], pair: list[tuple[str, str]], record_id: str, where: str
    ) -> Record:
        if [role in part for (role, _), part in zip(pair, (_ASKING, _ANSWERING), strict=False)] != [
            True,
            True,
        ]:
            raise DataError(
                f"{where}: the turns are {', '.join(role for role, _ in pair)}; questions and "
                "answers must alternate."
            )
        prefix, suffix = (text.replace("<image>", "").strip() for _, text in pair)
        if not prefix or not suffix:
            raise DataError(f"{where} has an empty question or answer. Fill it in.")
        first, *more = (self._image(image, where) for image in images)
        return Record(
            record_id=record_id,
            image=first,
            prefix=prefix,
            suffix=suffix,
            references=(suffix,),
            where=where,
            more_images=tuple(more),
        )

    def _image(self, name: str, where: str) -> Path | Callable[[], ImageSource]:
        if name.startswith("data:"):
            return partial(_decoded, name, where)
        if name.startswith(("http://", "https://")):
            raise DataError(f"{where} names the image {name!r}. Download it, and give its path.")
        return self.finder.find(name.removeprefix("file://"), where)


def _raise(error: DataError) -> Record:
    raise error


def _decoded(uri: str, where: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where} has an image that is not base64: {error}.") from error


def _turns_of(chat: Any, where: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Images, and turns of role and text. Raises DataError."""
    try:
        names = chat.get("images", chat.get("image")) or []
        images = [names] if isinstance(names, str) else list(names)
        turns = []
        for turn in chat.get("conversations") or chat["messages"]:
            role = turn["from"] if "from" in turn else turn["role"]
            content = turn["value"] if "value" in turn else turn["content"]
            texts = []
            for part in [content] if isinstance(content, str) else content:
                if isinstance(part, str):
                    texts.append(part)
                elif "text" in part:
                    texts.append(part["text"])
                else:
                    url = part.get("image_url", part.get("image"))
                    images.append(url["url"] if isinstance(url, dict) else url)
            turns.append((str(role), "\n".join(texts)))
        if not all(isinstance(image, str) for image in images):
            raise TypeError("an image is not named by text")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is not a chat about images: {error}.") from error
    return images, turns
