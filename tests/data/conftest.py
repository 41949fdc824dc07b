"""What the tests of data share."""

from __future__ import annotations

from pathlib import Path

import pytest

import paligemma
from paligemma.loading import load_processor
from paligemma.processor.processor import Processor
from paligemma.tasks.seg_codec import MaskCodec


@pytest.fixture(scope="session")
def mini() -> tuple[Processor, MaskCodec]:
    """The built-in model's processor and mask codec."""
    folder = Path(paligemma.__file__).parent / "mini" / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the weights of mini are not there yet")
    processor, codec = load_processor("mini")
    assert codec is not None
    return processor, codec
