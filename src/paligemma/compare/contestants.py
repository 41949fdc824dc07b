"""Contestants: who answers, as `--models` names them.

mini                                a checkpoint, as `load` takes it
google/paligemma2-3b-mix-448@int8   the same in another form of its weights
runs/x/adapter                      an adapter, on the base that it names
base+runs/x/adapter@int8            an adapter on a base
openai:NAME@URL                     a chat model behind an OpenAI-compatible address
openai:NAME@URL#VARIABLE            with the key in that environment variable
paligemma:NAME@URL                  a PaliGemma behind such an address
transformers:MODEL                  a model of transformers: a folder, or a downloaded hub id
answers.jsonl                       recorded answers
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from paligemma.checkpoints.hub import Source, resolve
from paligemma.errors import OptionError
from paligemma.loading import MINI, find_checkpoint

Kind = Literal["checkpoint", "openai", "paligemma", "transformers", "recorded"]
FORMS = ("float32", "bfloat16", "float16", "int8", "int4")
OPENAI_VARIABLE = "OPENAI_API_KEY"
_OPENAI_HOST = "api.openai.com"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_ADAPTER_FILE = "adapter_config.json"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RECORDED = (".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One model, or one file of answers."""

    name: str
    """As the user wrote it, without the name of a key's variable."""
    kind: Kind
    model: str
    """What to load, the name at an address, or a file."""
    adapter: str | None = None
    form: str = "auto"
    url: str = ""
    key_variable: str | None = None
    """Environment variable that holds the key."""

    @property
    def is_remote(self) -> bool:
        return self.kind in ("openai", "paligemma")

    @property
    def is_chat_model(self) -> bool:
        """Whether it is asked in sentences instead of PaliGemma's prompts."""
        return self.kind == "openai"

    @property
    def key(self) -> str | None:
        """From the environment. Raises OptionError for a variable that is named and not set."""
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key and self.key_variable != OPENAI_VARIABLE:
            raise OptionError(
                f"{self.name} takes its key from the environment variable {self.key_variable}, "
                f"which is not set. Set it: export {self.key_variable}=..."
            )
        if not (key.isascii() and key.isprintable()):
            raise OptionError(
                f"The environment variable {self.key_variable} holds no key: keys are of printable "
                "ASCII characters."
            )
        return key or None

    def settings(self) -> dict[str, Any]:
        """What tells it from another one that would answer differently."""
        names = () if self.is_remote else (self.model, self.adapter)
        files = [
            find_checkpoint(MINI, Source()) if name == MINI else Path(name)
            for name in names
            if name
        ]
        digest = hashlib.sha256()
        for path in files:
            for file in _files(path):
                stat = file.stat()
                digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return {"name": self.name, "kind": self.kind, "files": digest.hexdigest()[:16]}

    def folder_name(self) -> str:
        """A name for its folder: readable, and its own."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")[:48]
        return f"{readable or 'model'}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


def read_contestants(specs: Sequence[str]) -> tuple[Contestant, ...]:
    """The contestants of `--models`; each text may hold several, separated by commas.

    Raises OptionError, CheckpointError or HubError for one that cannot be, before any is asked.
    """
    names = []
    for spec in specs:
        names += [spec] if os.path.exists(spec) else [part.strip() for part in spec.split(",")]
    found = tuple(read_contestant(name) for name in names if name)
    if not found:
        raise OptionError("There is nobody to compare. Name models: --models mini,mini@int8.")
    for index, contestant in enumerate(found):
        if contestant.name in {other.name for other in found[:index]}:
            raise OptionError(f"{contestant.name!r} is named twice. Name each contestant once.")
    return found


def read_contestant(spec: str) -> Contestant:
    """
    >>> read_contestant("mini@int8").form
    'int8'
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind in ("openai", "paligemma"):
        return _endpoint(spec, kind, rest)  # type: ignore[arg-type]
    if colon and kind == "transformers":
        if not rest:
            raise OptionError("'transformers:' needs a model: transformers:FOLDER or a hub id.")
        return Contestant(name=spec, kind="transformers", model=rest)
    if Path(spec).suffix.lower() in _RECORDED:
        if not Path(spec).is_file():
            raise OptionError(f"The file of recorded answers {spec!r} does not exist.")
        return Contestant(name=spec, kind="recorded", model=spec)
    return _checkpoint(spec)


def _endpoint(spec: str, kind: Literal["openai", "paligemma"], rest: str) -> Contestant:
    expected = f"expected {kind}:NAME@URL, such as {kind}:gpt-4o@https://api.openai.com/v1"
    model, at, address = rest.partition("@http")
    address, hash_mark, variable = f"http{address}".partition("#")
    if not model or not at:
        raise OptionError(f"{spec!r} names no address: {expected}.")
    shown = spec.partition("#")[0]
    try:
        parts = urlsplit(address)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise OptionError(f"{shown!r} has an address that cannot be read: {error}.") from error
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", address):
        raise OptionError(f"{shown!r} has no http or https address: {expected}.")
    if "@" in parts.netloc or parts.query:
        raise OptionError(
            f"The address of {model!r} holds a user name, a password or a query. Keys come from "
            f"the environment alone: {kind}:NAME@URL#VARIABLE."
        )
    if hash_mark and not _VARIABLE.fullmatch(variable):
        raise OptionError(
            f"What follows # in {shown!r} must be the name of an environment variable with the "
            "key, and not the key."
        )
    if not variable and parts.scheme == "https" and host == _OPENAI_HOST:
        variable = OPENAI_VARIABLE
    if variable and parts.scheme == "http" and host not in _LOOPBACK:
        raise OptionError(
            f"{shown!r} would send the key of {variable} without encryption. Use https."
        )
    return Contestant(
        name=shown,
        kind=kind,
        model=model,
        url=address.rstrip("/"),
        key_variable=variable or None,
    )


def _checkpoint(spec: str) -> Contestant:
    name, form = spec, "auto"
    if not os.path.exists(spec) and "@" in spec:
        name, _, form = spec.rpartition("@")
        if form not in FORMS:
            raise OptionError(
                f"{spec!r}: {form!r} is not a form of weights. Forms: {', '.join(FORMS)}. An "
                "address is openai:NAME@URL."
            )
    base, adapter = name, None
    if not os.path.exists(name) and "+" in name:
        base, _, adapter = name.partition("+")
        if not Path(adapter, _ADAPTER_FILE).is_file():
            raise OptionError(f"{spec!r}: {adapter!r} is not the folder of an adapter.")
    elif Path(name, _ADAPTER_FILE).is_file():
        base, adapter = _base_of(Path(name)), name
    if base != MINI:
        resolve(base)
    return Contestant(name=spec, kind="checkpoint", model=base, adapter=adapter, form=form)


def _base_of(adapter: Path) -> str:
    """The model that an adapter was trained on."""
    try:
        content = json.loads((adapter / _ADAPTER_FILE).read_text(encoding="utf-8"))
        base = content.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise OptionError(f"{adapter / _ADAPTER_FILE} cannot be read: {error}.") from error
    if not isinstance(base, str) or not base:
        raise OptionError(
            f"The adapter {adapter} does not say which model it belongs to. Name both: "
            f"MODEL+{adapter}."
        )
    return base


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.glob("*") if file.is_file()) if path.is_dir() else []
