"""The commands that ask a model about pictures, with a stand-in for the model."""

from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path

import pytest
from PIL import Image

import paligemma
from mini.scene_files import write_scenes
from paligemma.checkpoints import TrainedOn
from paligemma.errors import CheckpointError
from tests.agreement.tiny_predictor import build_predictor


def test_a_caption_alone_goes_to_stdout(run, picture, stand_in):
    ran = run("caption", picture, "--language", "de", "--max-new-tokens", "7")
    assert ran.code == 0
    assert ran.out == "a blue \\x1b[2Jwall\n"
    assert ran.err == "This is a stand-in.\n"
    assert stand_in.asked == [("caption", "de", {"max_new_tokens": 7})]


def test_json_is_one_object_an_image_and_nothing_else(run, picture, stand_in):
    ran = run("detect", picture, picture, "wall ; dog", "--json", "--model", "some/model")
    assert ran.code == 0
    assert ran.err == ""
    first, second = map(json.loads, ran.out.splitlines())
    assert first == second
    assert first["image"] == str(picture)
    assert (first["model"], first["task"]) == ("some/model", "detect")
    assert first["result"]["objects"][0]["box_xyxy"] == [0.0, 0.0, 40.0, 20.0]


def test_json_holds_masks_as_run_lengths(run, picture, stand_in):
    made = json.loads(run("segment", picture, "wall", "--json").out)
    assert made["result"]["objects"][0]["mask"]["size"] == [20, 40]


def test_json_survives_a_stdout_that_cannot_hold_every_letter(monkeypatch):
    from paligemma.cli.console import print_json

    for encoding, value in (("cp1252", "猫"), ("utf-8", "\udcff.png")):
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
        print_json({"a": value})
        assert json.loads(content.getvalue()) == {"a": value}


def test_a_prompt_without_quotes_is_noticed(run, picture, no_model):
    ran = run("ask", picture, "What", "is", "this?")
    assert ran.code == 2
    assert "quote the prompt" in ran.err
    assert ran.err.count("\n") == 1


def test_a_drawing_too_large_for_its_format_is_one_line(run, tmp_path, stand_in, monkeypatch):
    from paligemma.cli import predict

    monkeypatch.setattr(predict, "_draw", lambda *inputs: Image.new("RGB", (16384, 1)))
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    ran = run("detect", tmp_path / "a.png", "wall", "--draw", tmp_path / "out.webp")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("error: The drawing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_with_several_images_each_result_names_its_image(run, picture, stand_in):
    ran = run("ask", picture, picture, "What color?")
    assert ran.out == f"{picture}: blue\n" * 2
    assert stand_in.asked == [("ask", "What color?", "en")] * 2


def test_an_empty_language_asks_the_bare_question(run, picture, stand_in):
    run("ask", picture, "What color?", "--language", "")
    assert stand_in.asked == [("ask", "What color?", None)]


def test_objects_below_the_least_score_are_left_out(run, picture, stand_in):
    made = json.loads(run("detect", picture, "wall ; dog", "--min-score", "0.5", "--json").out)
    assert [found["label"] for found in made["result"]["objects"]] == ["wall"]
    assert (made["result"]["missing"], made["result"]["filtered"]) == ([], ["dog"])


@pytest.mark.parametrize("command", ["detect", "segment"])
def test_what_a_list_may_hold_is_handed_on_where_it_was_given(command, run, picture, stand_in):
    run(command, picture, "wall")
    run(command, picture, "wall", "--any-label", "--max-objects", "3", "--max-new-tokens", "9")
    asked = (command, "wall", "blue.jpg")
    options = {"labels": "any", "max_objects": 3, "max_new_tokens": 9}
    assert stand_in.asked == [(*asked, {}), (*asked, options)]
    assert run(command, picture, "wall", "--max-objects", "0").code == 2


@pytest.mark.parametrize(
    "name", ["s2.png", "-", "https://example.com/a", "data:image/png;base64,A"]
)
def test_what_names_an_image_is_not_taken_for_a_prompt(name, run, picture, no_model):
    ran = run("detect", picture, name)
    assert ran.code == 2
    assert "The prompt is missing" in ran.err


def test_a_file_named_like_the_prompt_changes_nothing(
    run, picture, stand_in, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog").write_text("a text about dogs")
    (tmp_path / "wall").mkdir()
    for phrase in ("dog", "wall"):
        assert run("detect", picture, phrase).code == 0
    assert [asked[1] for asked in stand_in.asked] == ["dog", "wall"]


@pytest.mark.parametrize("command", ["ask", "detect", "segment", "generate"])
def test_a_missing_prompt_is_named(command, run, picture, no_model):
    ran = run(command, picture, picture)
    assert ran.code == 2
    assert "The prompt is missing" in ran.err
    ran = run(command, "what?")
    assert ran.code == 2
    assert "no image before the prompt 'what?'" in ran.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("caption", "--language", "deutsch"), "language"),
        (("ask", "<image>what?"), "Leave it out"),
        (("detect", " ; "), "no phrases"),
        (("generate", "go", "--seed", "any"), "--seed"),
        (("caption", "--output-format", "csv"), "needs --output"),
    ],
)
def test_a_wrong_prompt_or_option_is_found_before_the_model_is_loaded(
    words, reason, run, picture, no_model
):
    command, *rest = words
    ran = run(command, picture, *rest)
    assert ran.code == 2
    assert reason in ran.err
    assert ran.err.count("\n") == 1


def test_quiet_leaves_out_the_notes(run, picture, stand_in):
    ran = run("detect", picture, "detect wall", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert "note" not in ran.out


def test_a_note_says_what_scores_are_good_for_unless_a_minimum_is_given(run, picture, stand_in):
    assert "--calibrate" in run("detect", picture, picture, "wall").err
    assert "--calibrate" not in run("detect", picture, "wall", "--min-score", "0.1").err
    assert run("detect", picture, "wall", "--json").err == ""


def test_the_model_gets_its_resize_and_mask_codec(run, picture, monkeypatch, tmp_path):
    def load(model, **options):
        assert options["resize"] == "pad"
        assert options["mask_codec"] == tmp_path / "vae.npz"
        raise CheckpointError("seen")

    monkeypatch.setattr(paligemma, "load", load, raising=False)
    ran = run(
        *("segment", picture, "wall", "--resize", "pad"), "--mask-codec", tmp_path / "vae.npz"
    )
    assert ran.err == "error: seen\n"


def test_a_random_seed_differs_each_time(run, picture, stand_in):
    for _ in range(2):
        run("generate", picture, "go on", "--temperature", "1", "--seed", "random")
    first, second = (asked[-1]["seed"] for asked in stand_in.asked)
    assert first != second


def test_a_long_prompt_is_not_taken_for_a_path(run, picture, stand_in):
    assert run("ask", picture, "why? " * 1000).code == 0


def test_a_missing_image_is_found_before_the_model_is_loaded(run, no_model):
    ran = run("caption", "nowhere.png")
    assert ran.code == 2
    assert "nowhere.png" in ran.err


def test_addresses_are_fetched_only_when_allowed(run, no_model):
    ran = run("caption", "https://example.invalid/a.png")
    assert ran.code == 2
    assert "--allow-urls" in ran.err


def test_a_damaged_image_is_reported_and_the_next_one_is_taken(run, picture, tmp_path, stand_in):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = run("ask", broken, picture, "What color?", "--json")
    assert ran.code == 3
    assert ran.err.startswith("error: ")
    assert "broken.png" in ran.err
    bad, good = map(json.loads, ran.out.splitlines())
    assert bad == {"image": str(broken), "error": ran.err.removeprefix("error: ").strip()}
    assert good["image"] == str(picture)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("out.tiff", "ends in none of them"),
        ("out", "ends in none of them"),
        ("no/such/folder/out.png", "No such file"),
        ("blue.jpg/out.png", "Not a directory"),
        ("blue.jpg", "overwrite"),
    ],
)
def test_a_drawing_that_cannot_be_written_is_refused_at_once(
    target, reason, run, picture, tmp_path, no_model
):
    before = picture.read_bytes()
    ran = run("detect", picture, "wall", "--draw", tmp_path / target)
    assert ran.code == 2
    assert reason in ran.err
    assert picture.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["blue.jpg"]


def test_a_drawing_shows_the_boxes_and_keeps_no_metadata(run, picture, tmp_path, stand_in):
    target = tmp_path / "out.jpg"
    assert run("detect", picture, "wall", "--draw", target).code == 0
    with Image.open(target) as drawn:
        assert drawn.size == (40, 20)
        assert "comment" not in drawn.info
        colors = drawn.getcolors(10_000)
        assert colors is not None
        assert len(colors) > 1
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(picture.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blue.jpg", "out.jpg"]


def test_a_font_can_be_chosen_and_is_checked_first(run, picture, tmp_path, stand_in, monkeypatch):
    from paligemma import fonts

    target = tmp_path / "out.png"
    asked = ("detect", picture, "wall", "--draw", target, "--font")
    assert run(*asked, Path(fonts.__file__).with_name("DejaVuSans.ttf")).code == 0
    target.unlink()
    ran = run(*asked, picture)
    assert (ran.code, target.exists()) == (2, False)
    assert "font" in ran.err
    assert len(stand_in.asked) == 1


def test_several_drawings_are_numbered(run, picture, tmp_path, stand_in):
    run("segment", picture, picture, "wall", "--draw", tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["out-1.png", "out-2.png"]


def test_drawings_go_into_a_folder_under_their_images_names(run, picture, tmp_path, stand_in):
    (folder := tmp_path / "drawn").mkdir()
    assert run("detect", picture, "wall", "--draw", folder).code == 0
    assert [path.name for path in folder.iterdir()] == ["blue.png"]
    ran = run("detect", picture, picture, "wall", "--draw", folder)
    assert ran.code == 2
    assert "Two images" in ran.err


def test_a_failed_drawing_leaves_no_piece_behind(run, picture, tmp_path, stand_in, monkeypatch):
    def write_bytes(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    ran = run("detect", picture, "wall", "--draw", tmp_path / "out.png")
    assert ran.code == 2
    assert "No space left" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["blue.jpg"]


def test_generate_puts_all_images_into_one_prompt(run, picture, stand_in):
    ran = run(
        *("generate", picture, picture, "compare", "--temperature", "0.5", "--top-k", "3"),
        *("--seed", "9", "--stop", "a", "--stop", "b", "--json"),
    )
    assert json.loads(ran.out)["images"] == [str(picture), str(picture)]
    [(_, names, prompt, options)] = stand_in.asked
    assert (names, prompt) == (("blue.jpg", "blue.jpg"), "compare")
    assert options == {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": None,
        "seed": 9,
        "num_beams": 1,
        "stop": ("a", "b"),
    }


def test_a_stream_ends_with_a_newline(run, picture, stand_in):
    assert run("generate", picture, "go on", "--stream").out == "and so on\n"


@pytest.mark.parametrize(
    "options",
    [
        ("--stream", "--json"),
        ("--num-beams", "2", "--stream"),
        ("--num-beams", "2", "--temperature", "1"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, run, picture, no_model):
    ran = run("generate", picture, "go on", *options)
    assert ran.code == 2
    assert ran.err.startswith("error: --")


def test_a_result_can_be_shown_in_the_terminal(run, picture, stand_in):
    lines = run("detect", picture, "wall", "--show").out.splitlines()
    assert lines[0] == "2 objects in an image of 40 x 20 pixels"
    assert lines[-10:] == ["▀" * 40] * 10


def test_the_model_comes_from_the_environment(run, picture, stand_in, monkeypatch):
    monkeypatch.setenv("PALIGEMMA_MODEL", "my/folder")
    assert json.loads(run("caption", picture, "--json").out)["model"] == "my/folder"


def test_a_flipped_bit_is_refused_when_files_are_verified(run, picture, tiny_tokenizer, tmp_path):
    folder = build_predictor(tiny_tokenizer).save(tmp_path / "model")
    asked = ("caption", picture, "--model", folder, "--device", "cpu", "--max-new-tokens", "1")
    assert run(*asked, "--verify").code == 0
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1000] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert run(*asked).code == 0
    ran = run(*asked, "--verify")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert "model.safetensors has SHA-256" in ran.err
    assert ran.err.count("\n") == 1


def test_mini_finds_what_is_in_its_own_world(run, mini_folder, tmp_path):
    write_scenes(tmp_path, seed=0, count=1)
    truth = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))["scenes"][0]
    things = " ; ".join(truth["counts"])
    ran = run("detect", tmp_path / "scene_0000.png", things, "--json", "--device", "cpu")
    labels = [found["label"] for found in json.loads(ran.out)["result"]["objects"]]
    assert sorted(labels) == sorted(found["label"] for found in truth["objects"])


def test_a_trained_adapter_needs_no_names(run, picture, stand_in, tmp_path):
    names = ("valve", "gauge, round")
    trained_on = TrainedOn(task="detect", prompt="detect valve ; gauge, round", class_names=names)
    (tmp_path / "trained_on.json").write_bytes(trained_on.to_bytes())
    ran = run("detect", picture, "--adapter", tmp_path)
    assert ran.code == 0, ran.err
    assert stand_in.asked == [("detect", "valve ; gauge, round", "blue.jpg", {})]
    ran = run("segment", picture, "--adapter", tmp_path)
    assert ran.code == 2
    assert "not trained to segment anything, but to detect" in ran.err


def test_a_damaged_account_of_the_training_is_an_error(run, picture, no_model, tmp_path):
    (tmp_path / "trained_on.json").write_text('{"ask": "nicely"}')
    ran = run("detect", picture, "--adapter", tmp_path)
    assert ran.code
    assert "ask is 'nicely'" in ran.err


def test_an_adapter_of_an_unknown_user_is_no_traceback(run, picture, no_model):
    ran = run("detect", picture, "--adapter", "~no-such-user/adapter")
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert ran.err
