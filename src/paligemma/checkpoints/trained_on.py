"""TrainedOn: what a model or adapter was trained on, in `trained_on.json` next to its weights."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from paligemma.checkpoints.files import read_json
from paligemma.errors import CheckpointError, OptionError
from paligemma.processor.image import Resize
from paligemma.tasks.objects import split_phrases

TRAINED_ON_FILE = "trained_on.json"
AskForm = Literal["dataset", "present", "all classes"]
"""Which classes a prompt names: all of the data, those in the image, or just "all classes"."""
_TASKS = ("detect", "segment")


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """How a model was asked in its training, so that it can be asked in the same way again."""

    task: Literal["detect", "segment"] | None = None
    """The task that lists of objects were learned for; None where there were none."""
    prompt: str | None = None
    """The prompt of all training records; None where they had several."""
    class_names: tuple[str, ...] = ()
    """The classes of objects, in the order of the prompt."""
    ask: AskForm = "dataset"
    resize: Resize = "squash"
    """How images became square."""
    num_images: int = 1
    """Most images in one prompt: above 1 for frames of videos, pairs to compare, and the like."""

    def phrases(self, task: str) -> tuple[str, ...]:
        """What to search for where a user names nothing.

        Raises OptionError where the model was not trained for the task.
        """
        if self.task != task or not self.class_names:
            raise OptionError(
                f"The model was not trained to {task} anything"
                + (f", but to {self.task}" if self.task else "")
                + f". Name what to {task}."
            )
        if self.prompt is None:
            return self.class_names
        return split_phrases(self.prompt.partition(" ")[2])

    @property
    def labels(self) -> Literal["asked", "any"]:
        """Which labels answers have: "any" after such prompts as "all classes"."""
        asked = split_phrases(self.prompt.partition(" ")[2]) if self.prompt else self.class_names
        return "asked" if set(self.class_names) <= set(asked) else "any"

    @classmethod
    def read(cls, folder: Path) -> TrainedOn | None:
        """None for a folder without the file. Raises CheckpointError for one that is not valid."""
        path = Path(os.path.expanduser(folder)) / TRAINED_ON_FILE
        if not path.is_file():
            return None
        content = read_json(path)
        prompt, names = content.get("prompt"), content.get("class_names", [])
        choices: dict[str, tuple[Any, ...]] = {
            "task": (None, *_TASKS),
            "ask": get_args(AskForm),
            "resize": get_args(Resize),
        }
        for name, allowed in choices.items():
            if content.get(name, allowed[0]) not in allowed:
                raise CheckpointError(
                    f"{path}: {name} is {content[name]!r}; it must be one of {allowed}."
                )
        are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not are_names or not isinstance(prompt, str | None):
            raise CheckpointError(
                f"{path}: prompt must be a text or null, and class_names a list of texts."
            )
        num_images = content.get("num_images", 1)
        if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
            raise CheckpointError(f"{path}: num_images must be a whole number of at least 1.")
        chosen = {name: content[name] for name in choices if name in content}
        return cls(prompt=prompt, class_names=tuple(names), num_images=num_images, **chosen)

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()
