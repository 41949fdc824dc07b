"""The recipes: the training options that follow from them, and recipes of one's own."""

from __future__ import annotations

import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from paligemma.config import RELEASES
from paligemma.errors import OptionError
from paligemma.evals.datasets.open import BENCHMARKS
from paligemma.finetune.recipes import (
    RECIPES,
    Recipe,
    command,
    find_recipe,
    parse_recipes,
    start_checkpoint,
    train_config,
)


def test_the_prompt_of_a_choice_has_two_spaces() -> None:
    for name in ("ai2d", "aokvqa-mc"):
        assert find_recipe(name).prompt == "answer en  {question} choose from: {options}"


def test_text_lengths_are_those_of_the_released_checkpoints() -> None:
    checked = set()
    for release in RELEASES:
        name = release.stage.removeprefix("ft-")
        if release.stage.startswith("ft-") and name != "docci":
            assert find_recipe(name).text_length == release.text_length, name
            checked.add(name)
    assert len(checked) == 24


def test_every_benchmark_that_papers_trained_for_has_a_recipe() -> None:
    named = {name for recipe in RECIPES for name in recipe.benchmarks}
    assert named == {benchmark.name for benchmark in BENCHMARKS}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_point_at_published_scores_and_checkpoints(recipe: Recipe) -> None:
    assert recipe.source.startswith("https://")
    for setting in recipe.settings:
        if recipe.stage == "pt":
            assert start_checkpoint(recipe, setting.resolution).startswith("google/paligemma")
    if recipe.benchmarks:
        assert recipe.published()
        own = {recipe.model, "paligemma-3b"}
        assert own & {score.model for score in recipe.published()}
    for benchmark in recipe.find_benchmarks()[:1]:
        assert benchmark.prompt == recipe.prompt
        assert benchmark.num_images == recipe.num_images


def test_options_for_the_trainer_follow_from_a_recipe() -> None:
    config = train_config(find_recipe("chartqa"), 30_219)
    assert config.num_steps == math.ceil(30 * 30_219 / 256)
    assert config.warmup == round(0.05 * config.total_steps)
    assert (config.learning_rate, config.weight_decay) == (1e-5, 1e-6)
    assert config.weight_decay_kind == "big_vision"
    assert (config.label_smoothing, config.llm_dropout) == (0.2, 0.1)
    assert (config.schedule, config.final_learning_rate, config.clip_norm) == ("cosine", 0.0, 1.0)
    assert config.loss_reduction == "example"
    assert not config.final_logit_softcap_in_loss
    assert config.frozen == ()


def test_a_frozen_encoder_is_frozen() -> None:
    assert train_config(find_recipe("gqa"), 1000).frozen == ()
    assert train_config(find_recipe("gqa"), 1000, resolution=448).frozen == ("vision_encoder.*",)


def test_paligemma_2_takes_the_swept_rate_and_the_figures_of_224_pixels() -> None:
    nlvr2 = find_recipe("nlvr2")
    own = nlvr2.setting(448)
    assert (own.epochs, own.learning_rate) == (10, 3e-6)
    second = nlvr2.setting(448, "paligemma2-10b")
    assert second == replace(nlvr2.setting(224), resolution=448, learning_rate=1e-6)
    config = train_config(nlvr2, 93_355, resolution=448, model="paligemma2-28b")
    assert (config.learning_rate, config.weight_decay) == (3e-6, 1e-6)


def test_larger_models_take_no_larger_rates() -> None:
    """The tendency that the paper states (section 4); a few single tasks go against it."""
    swept = [recipe for recipe in RECIPES if recipe.sweep_rows and recipe.num_images <= 2]
    assert len(swept) == 25
    rates = {
        size: [recipe.setting(224, size).learning_rate or 0.0 for recipe in swept]
        for size in ("paligemma2-3b", "paligemma2-10b", "paligemma2-28b")
    }
    means = [sum(map(math.log, of_size)) for of_size in rates.values()]
    assert means[0] > means[1]
    assert means[0] > means[2]


def test_steps_and_examples_give_the_length_too() -> None:
    assert train_config(find_recipe("molecules"), 1_000_000).num_steps == 30_000
    stage = train_config(find_recipe("stage2a"), 1, batch_size=2048)
    assert stage.num_steps == math.ceil(50_000_000 / 2048)
    assert (stage.schedule, stage.learning_rate) == ("rsqrt", 2e-5)
    second = train_config(find_recipe("stage1"), 1, batch_size=2048, model="paligemma2-10b")
    assert second.learning_rate == 5e-6


def test_what_is_given_goes_before_the_recipe() -> None:
    config = train_config(find_recipe("ai2d"), 100, epochs=2, batch_size=10, learning_rate=1e-4)
    assert (config.num_steps, config.batch_size, config.learning_rate) == (20, 10, 1e-4)
    assert train_config(find_recipe("music"), 100, epochs=1, batch_size=10).num_steps == 10


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("stage1", {}, "batch size of stage 1"),
        ("coco-detection", {"batch_size": 8}, "learning rate of COCO detection"),
        ("vsr", {"learning_rate": 1e-6}, "number of epochs of VSR"),
    ],
)
def test_what_the_papers_do_not_state_must_be_given(
    name: str, options: dict[str, float], what: str
) -> None:
    with pytest.raises(OptionError, match=f"do not state the {what}.* Give one"):
        train_config(find_recipe(name), 1000, **options)  # type: ignore[arg-type]


def test_a_resolution_or_size_that_was_not_trained_is_an_error() -> None:
    with pytest.raises(OptionError, match="no settings for 896 pixels, only for 224, 448"):
        find_recipe("ai2d").setting(896)
    with pytest.raises(OptionError, match="no row 'VATEX"):
        find_recipe("vatex").setting(224, "paligemma2-28b")
    with pytest.raises(OptionError, match=r"no recipe 'ai3d'\. Did you mean: ai2d"):
        find_recipe("ai3d")


def test_the_page_of_the_docs_is_current() -> None:
    docs = Path(__file__).parents[2] / "docs"
    made = runpy.run_path(str(docs / "make_recipes.py"))["document"]()
    current = (docs / "recipes.md").read_text(encoding="utf-8")
    assert made == current, "run python docs/make_recipes.py"
    (entry,) = re.findall(r"```toml\n(.*?)```", current, flags=re.DOTALL)
    (copy,) = parse_recipes(entry)
    assert replace(copy, name="forkme") == find_recipe("forkme")
    code = re.findall(r"```python\n(.*?)```", current, flags=re.DOTALL)
    (example,) = code
    namespace: dict[str, object] = {}
    exec(example, namespace)
    assert namespace["config"] == train_config(find_recipe("ai2d"), 12_413, resolution=448)


def test_a_copied_entry_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "my_recipe.toml"
    path.write_text(
        '[mine]\ntitle = "Mine"\nprompt = "caption en"\nsuffix = "text"\ntext_length = 32\n'
        '[[mine.settings]]\nresolution = 224\nepochs = 3\nbatch_size = "not stated"\n'
        "[[mine.settings]]\nresolution = 448\nepochs = 0.5\nlearning_rate = 3e-6\n",
        encoding="utf-8",
    )
    recipe = find_recipe(str(path))
    assert (recipe.name, recipe.resolutions) == ("mine", (224, 448))
    assert recipe.setting(224).batch_size is None
    config = train_config(recipe, 1024, resolution=448)
    assert (config.num_steps, config.learning_rate, config.batch_size) == (2, 3e-6, 256)
    assert command(recipe, file=str(path)) == (
        f"paligemma train DATA --recipe {path} --model google/paligemma-3b-pt-224 "
        "--out runs/mine-224"
    )


VALID = '[r]\ntitle = "R"\nprompt = "p"\nsuffix = "s"\ntext_length = 8\n'
SETTINGS = "[[r.settings]]\nresolution = 224\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", "is invalid: Invalid value"),
        ("x = 1", "outside of a table"),
        ("", "holds 0 recipes; it must hold exactly one"),
        (VALID, r"r has no settings\. Add at least one \[\[r\.settings\]\]"),
        ("[r]\n" + SETTINGS, "r lacks title, prompt, suffix, text_length"),
        (VALID + "[[r.settings]]\nepochs = 1\n", r"r\.settings lacks resolution"),
        (VALID + "shedule = 'cosine'\n" + SETTINGS, "unknown field 'shedule'.*'schedule'"),
        (VALID + "schedule = 'linearly'\n" + SETTINGS, "must be one of .*'cosine'"),
        (VALID + "benchmarks = 'ai2d'\n" + SETTINGS, "must be a list of strings"),
        (VALID + "benchmarks = ['ai3d']\n" + SETTINGS, "no benchmark 'ai3d'"),
        (VALID + "noise_boxes = 1\n" + SETTINGS, "noise_boxes is 1; it must be true or false"),
        (VALID + SETTINGS + "dropout = 'a'\n", r"r\.settings\.dropout is 'a'; .* a number"),
        (VALID + SETTINGS + "beams = 2.5\n", r"r\.settings\.beams is 2\.5; .* an integer"),
    ],
)
def test_a_faulty_recipe_file_is_an_error_that_names_the_field(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        find_recipe(path)


def test_unknown_names_suggest_only_similar_ones(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'my-own-thing'") as raised:
        find_recipe("my-own-thing")
    assert "Did you mean" not in str(raised.value)
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        find_recipe(tmp_path / "absent.toml")
