"""What mini learns from: dense targets, examples, vocabulary, mask codes."""

import math
import random
from dataclasses import replace

import pytest
import torch

from mini import language
from mini.dense import (
    BLANK,
    IGNORE,
    LETTERS,
    NONE,
    NUM_CODES,
    WORD,
    DenseHeads,
    dense_targets,
)
from mini.examples import (
    TASK_WEIGHTS,
    Asking,
    SegCodes,
    draw_example,
    draw_sheet_example,
    text_suffix,
)
from mini.joint import (
    Joint,
    JointSource,
    LossWeights,
    MaskAlignment,
    PlaceAlignment,
    build_mini,
    extend_rows,
    fit_heads,
    mini_config,
)
from mini.paper import training_papers
from mini.reading import ReadingAlignment
from mini.scene import SceneWord, make_scene
from mini.sheet import make_sheet
from mini.stage0 import Stage0, Stage0Source
from mini.texts import SceneTexts
from mini.vocabulary import train_first_vocabulary, train_vocabulary
from paligemma.finetune.loss import TokenScale
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


@pytest.fixture(scope="module")
def first_tokenizer() -> Tokenizer:
    return Tokenizer(train_first_vocabulary())


def test_the_vocabulary_is_the_same_every_time(tokenizer: Tokenizer) -> None:
    assert train_vocabulary() == tokenizer.model_proto


def test_the_longer_vocabulary_cuts_the_first_texts_as_the_first_did(
    tokenizer: Tokenizer, first_tokenizer: Tokenizer
) -> None:
    moved = tokenizer.loc_offset - first_tokenizer.loc_offset
    assert moved == tokenizer.vocab_size - first_tokenizer.vocab_size > 400
    texts = list(language.all_texts(language.FIRST_LANGUAGES))
    texts += [SceneTexts(make_scene("test", 5, i)).describe("es") for i in range(50)]
    for text in texts:
        cut = first_tokenizer.tokenize_text(text)
        assert max(cut) < first_tokenizer.loc_offset
        assert tokenizer.tokenize_text(text) == cut


def test_the_longer_vocabulary_is_short_where_it_is_new(
    tokenizer: Tokenizer, first_tokenizer: Tokenizer
) -> None:
    assert len(tokenizer.tokenize_text("<table><tr><td>A</td><td>7</td></tr></table>")) == 5
    assert len(tokenizer.tokenize_text("detect text")) == 2
    nouns = [kind.forms[code].plural for kind in language.KINDS for code in ("it", "pt")]
    lengths = [
        sum(len(one.tokenize_text(f" {noun}")) for noun in nouns)
        for one in (first_tokenizer, tokenizer)
    ]
    assert lengths[0] > 3 * len(nouns) > 2 * lengths[1]


def test_rows_of_known_pieces_stay_and_new_ones_start_as_what_they_were(
    tokenizer: Tokenizer, first_tokenizer: Tokenizer
) -> None:
    table = torch.randn(first_tokenizer.vocab_size + 7, 4)  # tables are padded
    rows = extend_rows(table, first_tokenizer, tokenizer)
    assert rows.shape == (tokenizer.vocab_size, 4)
    for text in ("caption en", "zwei Hunde", "<loc0000><loc1023><seg127>"):
        old, new = (one.tokenize_text(text) for one in (first_tokenizer, tokenizer))
        assert torch.equal(rows[new], table[old])
    (cane,) = tokenizer.tokenize_text(" cane")
    dogs = [first_tokenizer.tokenize_text(f" {noun}") for noun in ("dog", "Hund", "chien", "perro")]
    assert torch.allclose(rows[cane], torch.stack([table[ids].mean(0) for ids in dogs]).mean(0))
    (row_end,) = tokenizer.tokenize_text("</td><td>")
    letters = first_tokenizer.tokenize_text("</td><td>")
    assert torch.allclose(rows[row_end], table[letters].mean(0))


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
    assert "".join(LETTERS[i] for i in spelled.tolist() if i != BLANK) == word.text
    assert (targets.letters[0][targets.kinds[0] == NONE] == IGNORE).all()


def test_a_patch_knows_how_its_object_is_turned() -> None:
    scene = make_scene("train", 0, 3, word_weights=(0.0, 1.0))
    targets = dense_targets([scene], grid=16, seg_codes=SEG_CODES)
    codes = targets.codes[0].view(16, 16, NUM_CODES)
    for thing in scene.objects:
        x0, y0, x1, y1 = thing.box_xyxy
        first = SEG_CODES[thing.kind, thing.pose][:NUM_CODES]
        assert codes[int((y0 + y1) * 8), int((x0 + x1) * 8)].tolist() == list(first)
    is_object = targets.kinds < WORD - 1
    assert torch.equal((targets.codes != IGNORE).all(-1), is_object)
    assert (dense_targets([scene], grid=16).codes == IGNORE).all()


def test_patches_of_a_sheet_know_its_letters_and_digits() -> None:
    sheet = make_sheet("train", 0, 1, "table")
    targets = dense_targets([sheet], grid=64)
    read = {
        "".join(LETTERS[i] for i in spelled if i != BLANK)
        for spelled in targets.letters[targets.kinds == WORD].tolist()
    }
    assert read == {cell for row in sheet.rows for cell in row}
    assert set(targets.kinds.unique().tolist()) == {NONE, WORD}


def test_half_patches_read_the_letters_from_left_to_right() -> None:
    scene = make_scene("train", 0, 3, word_weights=(0.0, 1.0))
    (word,) = scene.words
    targets = dense_targets([scene], grid=32)
    kinds = targets.kinds[0].view(32, 32)
    row = int((kinds == WORD).any(dim=1).nonzero()[0])
    on_word = kinds[row] == WORD
    halves = targets.halves[0].view(32, 32, 2)[row][on_word].flatten().tolist()
    letters = [LETTERS[i] for i in halves if i != BLANK]
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


def test_words_are_listed_as_they_are_read() -> None:
    def word(text: str, left: float, top: float) -> SceneWord:
        box = (left, top, left + 0.2, top + 0.1)
        return SceneWord(text=text, face=0, color=(0, 0, 0), box_xyxy=box)

    words = (word("C", 0.1, 0.5), word("B", 0.6, 0.12), word("A", 0.1, 0.16), word("D", 0.5, 0.56))
    # A and B stand side by side though B is a little higher; D begins below the middle of C.
    told = [part.split(">")[-1].strip() for part in text_suffix(words).split(" ; ")]
    assert told == ["A", "B", "C", "D"]
    assert text_suffix(words[:1]) == "<loc0512><loc0102><loc0614><loc0307> C"


def test_text_detection_examples_hold_every_word() -> None:
    scene = make_scene("train", 5, 0, word_weights=(0.0, 0.0, 1.0))
    prefix, suffix = draw_example(scene, random.Random(1), {"detect_text": 1.0}, SEG_CODES)
    assert prefix == "detect text"
    assert len(scene.words) == 2
    assert all(f" {word.text}" in suffix for word in scene.words)


def test_sheet_examples_are_true_of_the_sheet() -> None:
    rng = random.Random(0)
    prefixes = set()
    for index in range(300):
        sheet = make_sheet("train", 5, index)
        prefix, suffix = draw_sheet_example(sheet, rng)
        prefixes.add(" ".join(prefix.split()[:4]))
        if prefix == "table":
            assert suffix.count("<td>") == sum(len(row) for row in sheet.rows)
            assert all(f"<tr><td>{row[0]}</td><td>{row[1]}<" in suffix for row in sheet.rows)
        elif prefix == "chart" or prefix == "form":
            assert suffix == " ; ".join(" ".join(row) for row in sheet.rows)
        elif prefix == "detect text":
            assert suffix.count("<loc") == 4 * len(sheet.words)
        elif sheet.kind == "form" or "value" in prefix:
            assert (prefix.removesuffix("?").split()[-1], suffix) in sheet.rows
        else:
            highest = max(sheet.bars, key=lambda bar: bar[1])
            assert suffix == highest[0]
    questions = {"answer en what is", "answer en which bar"}
    assert prefixes == {"table", "chart", "form", "detect text", *questions}


def test_captions_are_asked_for_in_the_languages_given() -> None:
    scene, rng = make_scene("train", 5, 0), random.Random(0)
    for codes in (("it", "pt"), language.FIRST_LANGUAGES):
        asking = Asking(languages=dict.fromkeys(codes, 1.0))
        asked = {
            draw_example(scene, rng, {"caption": 1.0}, SEG_CODES, asking)[0] for _ in range(60)
        }
        assert asked == {f"caption {code}" for code in codes}
    assert Asking().languages.keys() == set(language.FIRST_LANGUAGES)


def test_some_prompts_ask_for_nothing_that_is_there() -> None:
    scene = next(scene for i in range(99) if (scene := make_scene("train", 5, i)).objects)
    rng, asking = random.Random(0), Asking(only_absent=1.0)
    pairs = [draw_example(scene, rng, {"detect": 1.0}, SEG_CODES, asking) for _ in range(60)]
    alone = [suffix for prefix, suffix in pairs if ";" not in prefix]
    assert alone.count("") >= 40  # the others are of the few kinds in the scene


def test_some_prompts_ask_for_words_outside_the_world() -> None:
    scene = next(scene for i in range(99) if (scene := make_scene("train", 5, i)).objects)
    rng, asking = random.Random(0), Asking(unknown=1.0)
    names = {kind.name for kind in language.KINDS}
    pairs = [draw_example(scene, rng, {"detect": 1.0}, SEG_CODES, asking) for _ in range(60)]
    for prefix, suffix in pairs:
        phrases = prefix.removeprefix("detect ").split(" ; ")
        [word] = [phrase for phrase in phrases if phrase not in names]
        assert word not in suffix
    alone = [suffix for prefix, suffix in pairs if " ; " not in prefix]
    assert alone
    assert set(alone) == {""}


def small_source(tokenizer: Tokenizer) -> JointSource:
    return JointSource(
        processor=Processor(tokenizer=tokenizer, resolution=32, num_image_tokens=4),
        seg_codes=SEG_CODES,
        task_weights=TASK_WEIGHTS,
        asking=Asking(),
        word_weights=(0.5, 0.5),
        num_scenes=2,
        prompts_per_scene=3,
        drawn_at=(32, 48),
        seed=9,
        num_wide=1,
        num_sheets=2,
        num_papers=3,
    )


def test_fresh_heads_learn_and_the_model_stays(tokenizer: Tokenizer) -> None:
    model = build_mini(mini_config(tokenizer.vocab_size, 32), tokenizer.loc_offset, seed=0)
    joint = Joint(
        model,
        tokenizer,
        LossWeights(
            dense=0.3,
            edges=1.0,
            names=0.5,
            asked=1.0,
            place=0.3,
            letters=0.3,
            codes=0.5,
            loc_sigma=4.0,
        ),
        "example",
    )
    before = {name: weight.clone() for name, weight in joint.named_parameters()}
    source = small_source(tokenizer)
    start = joint.losses(source.batch(0))["loss"].item()
    fit_heads(joint, source, num_steps=3)
    assert joint.losses(source.batch(0))["loss"].item() < start
    for name, weight in joint.named_parameters():
        assert torch.equal(weight, before[name]) == name.startswith("model.")
        assert weight.requires_grad


def test_batches_are_a_function_of_seed_and_step(tokenizer: Tokenizer) -> None:
    source = small_source(tokenizer)
    first, again, other = source.batch(4), source.batch(4), source.batch(5)
    assert sum(len(part.token_ids) for part in first.parts) == 2 * 3 + 2 + 3 * 2
    assert len(first.parts[0].required_pixel_values) == len(first.targets.kinds) == 7
    for one, two in zip(first.parts, again.parts, strict=True):
        assert torch.equal(one.token_ids, two.token_ids)
        assert torch.equal(one.required_pixel_values, two.required_pixel_values)
    assert not torch.equal(
        first.parts[0].required_pixel_values, other.parts[0].required_pixel_values
    )


def test_places_are_learned_where_they_are_shown_and_written(tokenizer: Tokenizer) -> None:
    model = build_mini(mini_config(tokenizer.vocab_size, 32), tokenizer.loc_offset, seed=0)
    scale = TokenScale(first=tokenizer.loc_offset, count=1024, sigma=3.0)
    places, batch = PlaceAlignment(256, scale), small_source(tokenizer).batch(0)
    table = model.decoder.embedding.weight.detach()
    tokens = torch.randn(*batch.targets.kinds.shape, 256, requires_grad=True)
    places.of_patches(tokens, table, batch.targets).backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad.any(-1), batch.targets.kinds != NONE)
    for part in batch.parts:
        assert part.loss_mask is not None
        written = part.token_ids[part.loss_mask]
        is_loc = (written >= scale.first) & (written < scale.first + scale.count)
        sure = torch.zeros(*part.token_ids.shape, 256)
        sure[:, :-1] = 30 * table[part.token_ids[:, 1:]]  # points to what comes next
        right, num = places.of_coordinates(sure, table, part)
        wrong, _ = places.of_coordinates(-sure, table, part)
        assert num == int(is_loc.sum())
        assert right < wrong or num == 0


def test_patches_of_objects_point_to_their_first_mask_codes(tokenizer: Tokenizer) -> None:
    model = build_mini(mini_config(tokenizer.vocab_size, 32), tokenizer.loc_offset, seed=0)
    targets = small_source(tokenizer).batch(0).targets
    masks = MaskAlignment(256, tokenizer.seg_offset)
    table = model.decoder.embedding.weight.detach()
    tokens = torch.randn(*targets.kinds.shape, 256, requires_grad=True)
    before = masks(tokens, table, targets)
    before.backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad.any(-1), targets.codes[..., 0] != IGNORE)
    optimizer = torch.optim.Adam(masks.parameters(), lr=1e-2)
    for _ in range(30):
        loss = masks(tokens.detach(), table, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * before


def test_reading_hints_belong_to_their_rows(tokenizer: Tokenizer) -> None:
    """Each token of a paper's answer has the place of the letter that it ends with."""
    source = replace(small_source(tokenizer), num_papers=12)
    batch = source.batch(0)
    papers = training_papers(source.seed, 0, 12)
    num_read = 0
    for part, hints in zip(batch.parts, batch.hints, strict=True):
        assert part.loss_mask is not None
        for row, hint in enumerate(hints):
            suffix = part.token_ids[row][part.loss_mask[row]].tolist()[:-1]
            if not hint.letters:
                continue
            assert part.image_index[row] == (hint.image,)
            paper = papers[hint.image - source.num_scenes - source.num_sheets]
            for token_id, (x, y) in zip(suffix, hint.letters, strict=True):
                around = [w for w in paper.words if w.box_xyxy[0] <= x <= w.box_xyxy[2]]
                around = [w for w in around if w.box_xyxy[1] <= y <= w.box_xyxy[3]]
                letter = tokenizer.detokenize([token_id]).strip()
                assert math.isnan(x) or letter in around[0].text
                num_read += not math.isnan(x)
    assert num_read > 100


def test_what_is_read_is_looked_up_first(tokenizer: Tokenizer) -> None:
    model = build_mini(mini_config(tokenizer.vocab_size, 32), tokenizer.loc_offset, seed=0)
    scale = TokenScale(first=tokenizer.loc_offset, count=1024, sigma=3.0)
    reading, batch = ReadingAlignment(256, scale), small_source(tokenizer).batch(0)
    table = model.decoder.embedding.weight.detach()
    for part, hints in zip(batch.parts, batch.hints, strict=True):
        hidden = torch.randn(*part.token_ids.shape, 256, requires_grad=True)
        summed, num = reading.of_letters(hidden, table, part, hints)
        places = [place for hint in hints for place in hint.letters]
        assert num == 2 * sum(not math.isnan(x) for x, _ in places)
        summed.backward()
        assert hidden.grad is not None
        assert int(hidden.grad.any(-1).sum()) == num // 2
        _, num_patches = reading.of_words(hidden, part, batch.targets, hints)
        kinds = [batch.targets.kinds[hint.image] for hint in hints if hint.words]
        assert num_patches == sum(int((kind == WORD).sum()) for kind in kinds)


def test_stage_0_may_have_sheets_which_have_no_description(tokenizer: Tokenizer) -> None:
    source = Stage0Source(
        tokenizer=tokenizer,
        resolution=32,
        grid=2,
        batch_size=6,
        seed=0,
        num_wide=1,
        num_sheets=2,
        languages=("it",),
    )
    batch = source.batch(3)
    assert (batch.targets.codes == IGNORE).all()
    assert (len(batch.images), len(batch.token_ids), len(batch.targets.kinds)) == (6, 4, 6)
    vision = mini_config(tokenizer.vocab_size, 32).vision
    losses = Stage0(vision, tokenizer.vocab_size, edges_weight=1.0).losses(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_stage_0_has_a_loss_for_every_target(tokenizer: Tokenizer) -> None:
    vision = mini_config(tokenizer.vocab_size, 32).vision
    source = Stage0Source(
        tokenizer=tokenizer, resolution=32, grid=2, batch_size=6, seed=0, seg_codes=SEG_CODES
    )
    batch = source.batch(0)
    module = Stage0(vision, tokenizer.vocab_size, edges_weight=1.0)
    with torch.no_grad():
        losses = module.losses(batch)
        module.codes_weight = 0.5
        more = module.losses(batch)["loss"]
    assert {"kind", "box", "letters", "halves", "codes", "contrastive", "loss"} <= losses.keys()
    assert torch.allclose(more, losses["loss"] + 0.5 * losses["codes"])
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
