"""What mini learns from: dense targets, examples, vocabulary, mask codes."""

import random

import pytest
import torch

from paligemma.mini import language
from paligemma.mini.dense import BLANK, IGNORE, NONE, WORD, DenseHeads, dense_targets
from paligemma.mini.examples import TASK_WEIGHTS, Asking, SegCodes, draw_example
from paligemma.mini.joint import JointSource, build_mini, mini_config
from paligemma.mini.scene import make_scene
from paligemma.mini.stage0 import Stage0, Stage0Source
from paligemma.mini.texts import SceneTexts
from paligemma.mini.vocabulary import train_vocabulary
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer

SEG_CODES: SegCodes = {
    (kind, pose): tuple((kind + pose + i) % 128 for i in range(16))
    for kind in range(64)
    for pose in range(10)
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_vocabulary())


def test_the_vocabulary_is_the_same_every_time(tokenizer: Tokenizer) -> None:
    assert train_vocabulary() == tokenizer.model_proto


def test_words_are_spelled_and_nouns_are_whole(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.tokenize_text("OPEN")) == 4
    assert len(tokenizer.tokenize_text("detect dog")) == 2
    assert len(tokenizer.tokenize_text("two bicycles")) == 2


def test_everything_said_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    for text in list(language.all_texts())[::37]:
        assert tokenizer.detokenize(tokenizer.tokenize_text(text)) == text


def test_a_patch_knows_the_thing_that_covers_it() -> None:
    scene = make_scene("train", 0, 3, word_weights=(0.0, 1.0))
    targets = dense_targets([scene], grid=16)
    kinds = targets.kinds[0].view(16, 16)
    for thing in scene.objects:
        x0, y0, x1, y1 = thing.box_xyxy
        row, column = int((y0 + y1) * 8), int((x0 + x1) * 8)
        assert kinds[row, column] == thing.kind
        box = targets.boxes[0].view(16, 16, 4)[row, column]
        assert box.tolist() == pytest.approx([y0, x0, y1, x1])
    (word,) = scene.words
    on_word = kinds == WORD
    assert on_word.any()
    spelled = targets.letters[0].view(16, 16, -1)[on_word][0]
    assert "".join(chr(65 + i) for i in spelled.tolist() if i != BLANK) == word.text
    assert (targets.letters[0][targets.kinds[0] == NONE] == IGNORE).all()


def test_half_patches_read_the_letters_from_left_to_right() -> None:
    scene = make_scene("train", 0, 3, word_weights=(0.0, 1.0))
    (word,) = scene.words
    targets = dense_targets([scene], grid=32)
    kinds = targets.kinds[0].view(32, 32)
    row = int((kinds == WORD).any(dim=1).nonzero()[0])
    on_word = kinds[row] == WORD
    halves = targets.halves[0].view(32, 32, 2)[row][on_word].flatten().tolist()
    letters = [chr(65 + i) for i in halves if i != BLANK]
    seen = "".join(c for i, c in enumerate(letters) if i == 0 or letters[i - 1] != c)
    doubled_letters_folded = "".join(
        c for i, c in enumerate(word.text) if i == 0 or word.text[i - 1] != c
    )
    assert seen == doubled_letters_folded


def test_examples_are_true_of_the_scene() -> None:
    rng = random.Random(0)
    for index in range(60):
        scene = make_scene("train", 5, index)
        texts = SceneTexts(scene)
        prefix, suffix = draw_example(scene, rng, {"detect": 1.0, "caption": 1.0}, SEG_CODES)
        if prefix.startswith("caption "):
            assert suffix == texts.caption(prefix.removeprefix("caption "))
        else:
            asked = prefix.removeprefix("detect ").split(" ; ")
            names = [language.KINDS[thing.kind].name for thing in scene.objects]
            assert suffix.count("<loc") == 4 * sum(names.count(name) for name in asked)


def test_segmentation_examples_hold_twenty_places_an_object() -> None:
    scene = make_scene("train", 5, 0)
    _, suffix = draw_example(scene, random.Random(1), {"segment": 1.0}, SEG_CODES)
    assert suffix.count("<seg") == 4 * suffix.count("<loc")


def test_batches_are_a_function_of_seed_and_step(tokenizer: Tokenizer) -> None:
    source = JointSource(
        processor=Processor(tokenizer=tokenizer, resolution=32, num_image_tokens=4),
        seg_codes=SEG_CODES,
        task_weights=TASK_WEIGHTS,
        asking=Asking(),
        word_weights=(0.5, 0.5),
        num_scenes=2,
        prompts_per_scene=3,
        drawn_at=(32, 48),
        seed=9,
    )
    first, again, other = source.batch(4), source.batch(4), source.batch(5)
    assert sum(len(part.token_ids) for part in first.parts) == 6
    for one, two in zip(first.parts, again.parts, strict=True):
        assert torch.equal(one.token_ids, two.token_ids)
        assert torch.equal(one.pixel_values, two.pixel_values)
    assert not torch.equal(first.parts[0].pixel_values, other.parts[0].pixel_values)


def test_stage_0_has_a_loss_for_every_target(tokenizer: Tokenizer) -> None:
    vision = mini_config(tokenizer.vocab_size, 32).vision
    source = Stage0Source(tokenizer=tokenizer, resolution=32, grid=2, batch_size=6, seed=0)
    losses = Stage0(vision, tokenizer.vocab_size, edges_weight=1.0).losses(source.batch(0))
    assert {"kind", "box", "letters", "halves", "contrastive", "loss"} <= losses.keys()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_neighboring_places_start_alike(tokenizer: Tokenizer) -> None:
    model = build_mini(mini_config(tokenizer.vocab_size, 32), tokenizer.loc_offset, seed=0)
    table = model.decoder.embedding.weight.detach()
    places = torch.nn.functional.normalize(
        table[tokenizer.loc_offset : tokenizer.loc_offset + 1024], dim=-1
    )
    similarity = places @ places.T
    near = similarity.diagonal(4).mean()
    far = similarity.diagonal(300).mean()
    assert near > 0.7 > 0.3 > far


def test_a_batch_without_words_has_finite_dense_losses() -> None:
    scene = next(
        scene
        for index in range(50)
        if not (scene := make_scene("train", 1, index, word_weights=(1.0,))).words
    )
    heads = DenseHeads(8)
    losses = heads(torch.randn(1, 16, 8), dense_targets([scene], grid=4))
    assert all(torch.isfinite(value) for value in losses.values())
