from __future__ import annotations

import pytest

from paligemma.processor.image import ImageTransform
from paligemma.tasks.task import TaskContext
from tests.tasks.character_tokenizer import CharacterTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer()


@pytest.fixture(scope="session")
def context() -> TaskContext:
    """A picture of 640 x 480 pixels."""
    return TaskContext(transform=ImageTransform(source_wh=(640, 480), resolution=224))
