from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from paligemma.config import MaskCodecConfig
from paligemma.errors import CheckpointError, PromptError
from paligemma.processor.image import ImageTransform
from paligemma.tasks.seg_codec import MaskCodec, paste_mask
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import TaskContext
from tests.tasks.character_tokenizer import CharacterTokenizer

SEGS = "".join(f"<seg{i % 5:03d}>" for i in range(16))
BOX = "<loc0256><loc0100><loc0512><loc0900>"


@pytest.fixture(scope="module")
def codec() -> MaskCodec:
    torch.manual_seed(0)
    return MaskCodec(MaskCodecConfig(num_codes=5, code_dim=6, width=7, stem_widths=(2, 3, 4, 8)))


def test_prompts_name_the_phrases() -> None:
    assert SegmentTask.of("left wheel; car").prompt() == "segment left wheel ; car"
    with pytest.raises(PromptError):
        SegmentTask.of([])
    with pytest.raises(PromptError):
        SegmentTask(phrases=())


def test_masks_are_decoded_and_laid_into_their_boxes(
    tokenizer: CharacterTokenizer, context: TaskContext, codec: MaskCodec
) -> None:
    context = replace(context, mask_codec=codec)
    text = f"{BOX}{SEGS} cat ; {BOX} dog ; {BOX}<seg001> cow"
    found = SegmentTask.of("cat ; dog").parse(tokenizer.generation(text), tokenizer, context)
    assert found.labels == ("cat",)
    assert found.missing == ("dog",)
    assert sorted(p.kind for p in found.problems) == ["malformed", "malformed"]
    codes = torch.tensor([[i % 5 for i in range(16)]])
    expected = paste_mask(codec.decode_masks(codes)[0].numpy(), found[0].box_xyxy, (640, 480))
    assert found[0].mask.shape == (480, 640)
    assert (found[0].mask == expected).all()
    assert 0 < found[0].mask_score < 1


def test_a_mask_that_reaches_into_an_added_border_is_cut_and_not_squeezed(
    tokenizer: CharacterTokenizer, codec: MaskCodec
) -> None:
    codec = copy.deepcopy(codec)
    half = codec.decode_masks(torch.tensor([[i % 5 for i in range(16)]])).median()
    last = codec.decoder[-1]
    assert isinstance(last.bias, torch.Tensor)
    with torch.no_grad():
        last.bias -= half  # so that half of the mask is foreground
    transform = ImageTransform(source_wh=(400, 200), resolution=200, resize="pad")
    context = TaskContext(transform=transform, mask_codec=codec)
    square = ImageTransform(source_wh=(400, 400), resolution=200)
    text = f"<loc0000><loc0000><loc1023><loc1023>{SEGS} cat"
    generated = tokenizer.generation(text)
    found = SegmentTask.of("cat").parse(generated, tokenizer, context)[0]
    whole = SegmentTask.of("cat").parse(
        generated, tokenizer, TaskContext(transform=square, mask_codec=codec)
    )[0]
    assert found.box_xyxy == (0, 0, 400, 200)
    assert 0 < found.mask.sum() < 400 * 200
    assert (found.mask != whole.mask[100:300]).mean() < 0.001


def test_no_object_gives_an_empty_result(
    tokenizer: CharacterTokenizer, context: TaskContext, codec: MaskCodec
) -> None:
    context = replace(context, mask_codec=codec)
    found = SegmentTask.of("cat").parse(tokenizer.generation(""), tokenizer, context)
    assert len(found) == 0
    assert found.masks.shape == (0, 480, 640)


def test_a_code_that_a_small_codebook_lacks_is_a_problem(
    tokenizer: CharacterTokenizer, context: TaskContext, codec: MaskCodec
) -> None:
    context = replace(context, mask_codec=codec)
    text = f"{BOX}{'<seg005>' * 16} cat"
    found = SegmentTask.of("cat").parse(tokenizer.generation(text), tokenizer, context)
    assert [p.kind for p in found.problems] == ["malformed"]


def test_without_codec_the_error_says_what_is_missing(
    tokenizer: CharacterTokenizer, context: TaskContext
) -> None:
    with pytest.raises(CheckpointError, match="mask codec"):
        SegmentTask.of("cat").parse(tokenizer.generation(""), tokenizer, context)
