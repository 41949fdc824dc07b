"""What several test files share: verification data, and a tokenizer small enough to train here."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import hypothesis
import pytest
import torch

from paligemma.fast.kernels.library import return_freed_memory
from paligemma.processor.tokenizer import Tokenizer
from tests.tiny import train_tokenizer

# Before anything is computed: tiny matrices only lose time on several threads, most of all beside
# other work, and sums keep one order. A test that is about threads sets its own number.
torch.set_num_threads(1)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

_REPOSITORY = Path(__file__).parents[1]
_SENTENCES = (
    "caption en\n",
    "detect cat ; dog\n",
    "answer en Where is the cow standing?\n",
    "on the beach",
    "a dog and a cat stand on the beach",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave collected tests and imported libraries out of garbage collection.

    They come to more than a million objects. Walking them takes a second or two, which would count
    as the time of whatever a test measures just then.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fresh clone has, as the working directory."""
    if not (files("paligemma") / "mini" / "model" / "model.safetensors").is_file():
        pytest.skip("the weights of mini are not there yet")
    for name in ("examples", "mini"):
        shutil.copytree(_REPOSITORY / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_REPOSITORY / "src"), str(tmp_path)]))
    return tmp_path


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Flush no file, but check that there is one.

    A flush takes longer than most tests. It saves from a power failure, which no test brings about:
    what a process that is killed has written is kept anyway. Processes of their own do flush.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="module", autouse=True)
def _garbage_of_one_file() -> Iterator[None]:
    """Free the models of a test file before the next one, at a time that no test measures."""
    yield
    gc.collect()
    return_freed_memory()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Inputs with the expected outputs of other implementations; see vectors/SOURCES.md."""
    return Path(__file__).parent / "vectors"


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """Built like Gemma's: same special ids, one token per newline, bytes as a last resort."""
    return Tokenizer(train_tokenizer(_SENTENCES, vocab_size=320, user_defined=("\n", "\n\n")))
