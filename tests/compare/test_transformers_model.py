"""Models of transformers as contestants: tiny random ones, written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paligemma.compare.contestants import read_contestant
from paligemma.compare.options import CompareOptions
from paligemma.compare.questions import Questions, read_questions
from paligemma.compare.reply import Reply
from paligemma.errors import CheckpointError

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP-2 of a few thousand random weights, with a vocabulary of single characters."""
    import tokenizers
    import torch

    folder = tmp_path_factory.mktemp("blip2")
    words = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(33, 127)), "frogs"]
    vocabulary = tokenizers.models.WordLevel(
        {word: index for index, word in enumerate(words)}, unk_token="<unk>"
    )
    inner = tokenizers.Tokenizer(vocabulary)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    images = transformers.BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = transformers.Blip2Processor(images, tokenizer, num_query_tokens=2)
    config = transformers.Blip2Config(
        vision_config={**size, "intermediate_size": 37, "image_size": 16, "patch_size": 8},
        qformer_config={
            **size,
            "vocab_size": 99,
            "intermediate_size": 37,
            "encoder_hidden_size": 32,
        },
        text_config={
            **size,
            "model_type": "opt",
            "vocab_size": 110,
            "ffn_dim": 37,
            "max_position_embeddings": 96,
            "word_embed_proj_dim": 32,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        num_query_tokens=2,
        image_token_index=len(tokenizer),
    )
    torch.manual_seed(0)
    transformers.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def questions_about(scenes: Path, **asked: Any) -> Questions:
    return read_questions([str(scenes / "0.png")], CompareOptions(max_new_tokens=4, **asked))


def open_model(folder: Path | str, questions: Questions) -> Any:
    from paligemma.compare.transformers_model import TransformersModel

    contestant = read_contestant(f"transformers:{folder}")
    return TransformersModel(contestant, questions, questions.options)


def test_blip_2_answers_in_the_form_of_its_paper(blip: Path, scenes: Path) -> None:
    questions = questions_about(scenes, ask=("how many frogs?",), caption=True, segment="frog")
    model = open_model(blip, questions)
    question, caption, masks = (a for a, _ in model.answer(list(questions.data.records)))
    assert isinstance(question, Reply)
    assert question.asked == "Question: how many frogs? Answer:"
    assert isinstance(caption, Reply)
    assert caption.asked == "a photo of"
    assert caption.prediction.num_tokens in range(1, 5)
    assert not caption.has_score
    assert "not asked to segment" in str(masks)
    assert model.info["family"] == "blip-2"


def test_code_and_pickles_of_a_repository_are_refused(
    blip: Path, scenes: Path, tmp_path: Path
) -> None:
    questions = questions_about(scenes, caption=True)
    marker = tmp_path / "was-run"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    config = json.loads((blip / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        open_model(foreign, questions)
    assert not marker.exists()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for path in blip.iterdir():
        name = path.name.replace("model.safetensors", "pytorch_model.bin")
        (pickled / name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="safetensors"):
        open_model(pickled, questions)


def test_nothing_is_downloaded(scenes: Path) -> None:
    with pytest.raises(CheckpointError, match="hf download no/such-model"):
        open_model("no/such-model", questions_about(scenes, caption=True))
