"""The recipes: every figure as written down in the facts, and the options that follow from them."""

from __future__ import annotations

import ast
import math
import re
import runpy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from paligemma.config import RELEASES
from paligemma.errors import OptionError
from paligemma.evals.datasets.open import BENCHMARKS
from paligemma.recipes import recipe as recipe_module
from paligemma.recipes.catalog import RECIPES, find_recipe
from paligemma.recipes.recipe import Recipe, command, start_checkpoint, train_config
from tests.facts import facts_table, facts_text

# The facts' names of tasks, where they are not the recipe's in lower case.
NAMES = {
    "RefCOCO": "refcoco-seg",
    "RefCOCO seg": "refcoco-seg",
    "ScienceQA": "science-qa",
    "COCO-35L": "coco35l",
    "OCR-VQA": "ocrvqa",
    "ST-VQA": "stvqa",
}
TRANSFERS = 31
FILES = [
    path
    for path in sorted(Path(recipe_module.__file__).parent.glob("*.py"))
    if path.stem not in ("__init__", "recipe", "catalog")
]


def recipe_of(task: str) -> Recipe:
    return find_recipe(NAMES.get(task, task.lower()))


def number(cell: str) -> float:
    return float(cell.replace(",", "").strip("*"))


def test_every_hyper_parameter_is_as_written(shared_data: Path) -> None:
    seen: dict[str, set[int]] = {}
    for task, resolutions, *cells in facts_table(shared_data, "training.md", "### 3.1"):
        epochs, batch, rate, decay, dropout, smoothing, freeze, decoding = cells
        recipe = recipe_of(task)
        for text in resolutions.split(", "):
            setting = recipe.setting(int(text))
            seen.setdefault(recipe.name, set()).add(int(text))
            assert setting.epochs == number(epochs), task
            assert setting.batch_size == number(batch), task
            assert setting.learning_rate == number(rate), task
            assert setting.weight_decay == number(decay), task
            assert setting.dropout == number(dropout), task
            assert setting.label_smoothing == number(smoothing), task
            assert setting.freeze_vision == (freeze.strip("*") == "yes"), task
            assert setting.beams == int(decoding.removeprefix("beam ").replace("greedy", "1")), task
    assert len(seen) == TRANSFERS
    for name, resolutions_ in seen.items():
        assert set(find_recipe(name).resolutions) == resolutions_


def test_every_size_is_as_written(shared_data: Path) -> None:
    rows = facts_table(shared_data, "training.md", "### 3.2")
    for task, size, _ in rows:
        factors = re.match(r"([\d,]+)(?: images)?(?: × 5 × (35) languages)?", size)
        assert factors is not None
        names = ["aokvqa-da", "aokvqa-mc"] if task.startswith("AOKVQA") else [recipe_of(task).name]
        for name in names:
            expected = number(factors[1]) * int(factors[2] or 1)
            assert find_recipe(name).train_examples == expected, task
    assert len(rows) == TRANSFERS - 1


def test_prompts_are_those_of_the_transfers(shared_data: Path) -> None:
    """The lines of the table that name one task each; others are tested with the readers."""
    rows = {row[0]: row for row in facts_table(shared_data, "tokens-and-prompts.md", "### 3.1")}
    named = {
        "COCOcap, NoCaps": ["cococap"],
        "TextCaps": ["textcaps"],
        "SciCap": ["scicap"],
        "Screen2Words": ["screen2words"],
        "InfoVQA, ST-VQA, VizWizVQA": ["infovqa", "stvqa", "vizwizvqa"],
        "DocVQA": ["docvqa"],
        "ChartQA": ["chartqa"],
        "NLVR2, MaRVL": ["nlvr2"],
        "COCO-35L, XM3600": ["coco35l"],
    }
    blanks = {"{lang}": "{language}"}
    for line, names in named.items():
        _, prompt, _, length = rows[line]
        written = re.search(r"`([^`]*)`", prompt)
        assert written is not None
        wanted = written[1]
        for old, new in blanks.items():
            wanted = wanted.replace(old, new)
        for name in names:
            assert find_recipe(name).prompt == wanted, name
            assert find_recipe(name).text_length == int(length), name


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


def test_antialiasing_is_as_written(shared_data: Path) -> None:
    text = facts_text(shared_data, "tokens-and-prompts.md")
    found = re.search(r"\*\*true\*\* – (.*?)\. \*\*false \(default\)\*\* – (.*?);", text)
    assert found is not None
    names = [re.split(r", (?![^(]*\))", group) for group in found.groups()]
    checked = 0
    for wanted, group in zip((True, False), names, strict=True):
        for entry in group:
            name, _, only = entry.partition("(")
            name = {"rsvqa_hr/lr": "rsvqa_hr"}.get(name, name).replace("_", "-")
            if name == "pope":
                continue
            recipes = ["aokvqa-da", "aokvqa-mc"] if name == "aokvqa-*" else [name]
            for recipe in map(find_recipe, recipes):
                assert recipe.antialias_training is wanted, name
                assert recipe.antialias_evaluation is (wanted and not only), name
                checked += 1
    assert checked >= 24
    assert find_recipe("rsvqa-lr").antialias_training is True
    assert find_recipe("rsvqa-lr").antialias_evaluation is False


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_recipe_whose_docstring_has_its_command(path: Path) -> None:
    module = import_module(f"paligemma.recipes.{path.stem}")
    recipe: Recipe = module.RECIPE
    assert recipe in RECIPES
    assert find_recipe(recipe.name) is recipe
    assert recipe.name == path.stem.replace("_", "-")
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert command(recipe) in " ".join(docstring.replace("\\\n", " ").split())


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
    with pytest.raises(OptionError, match=r"no setting for 896 pixels; .* 224, 448"):
        find_recipe("ai2d").setting(896)
    with pytest.raises(OptionError, match="no line 'VATEX"):
        find_recipe("vatex").setting(224, "paligemma2-28b")
    with pytest.raises(OptionError, match=r"no recipe 'ai3d'\. Did you mean: ai2d"):
        find_recipe("ai3d")


def test_stages_are_as_written(shared_data: Path) -> None:
    text = facts_text(shared_data, "training.md")
    rows = {row[0]: row[2:5] for row in facts_table(shared_data, "training.md", "## 1.")}
    stages = [find_recipe(name) for name in ("stage1", "stage2a", "stage2b")]
    assert [s.settings[0].resolution for s in stages] == [int(r) for r in rows["resolution"]]
    assert [s.text_length for s in stages] == [int(r) for r in rows["text length (prefix+suffix)"]]
    assert [s.settings[0].examples_seen for s in stages] == [
        int(number(r.split()[0])) for r in rows["examples"]
    ]
    assert "| peak LR PG1 | 2e-5 |" in text
    assert "3B ×0.5 (1e-5); 10B and 28B ×0.25 (5e-6)" in text


def test_the_new_tasks_are_as_written(shared_data: Path) -> None:
    rows = {row[0]: row[1] for row in facts_table(shared_data, "training.md", "### 3.4")}
    spotting = find_recipe("text-detection").settings[0]
    assert "15k steps, batch 256" in rows["text detection/recognition"]
    assert "→ 1e-5 best, label smoothing 0.1, best at 896" in rows["text detection/recognition"]
    assert (spotting.steps, spotting.batch_size, spotting.resolution) == (15_000, 256, 896)
    assert (spotting.learning_rate, spotting.label_smoothing) == (1e-5, 0.1)
    assert "max sequence 2048" in rows["text detection/recognition"]
    assert find_recipe("text-detection").text_length == 2048
    assert "output 4096, no label smoothing, LR 1e-4" in rows["table structure"]
    tables = find_recipe("tables")
    assert (tables.text_length, tables.resize) == (4096, "pad")
    assert (tables.settings[0].learning_rate, tables.settings[0].label_smoothing) == (1e-4, 0)
    assert "30k steps, batch 256, 256 TPUv5e, LR 1e-4, label smoothing 0.1" in rows["molecules"]
    molecules = find_recipe("molecules").settings[0]
    assert (molecules.steps, molecules.learning_rate) == (30_000, 1e-4)
    assert molecules.label_smoothing == 0.1
    assert "max output 1024" in rows["music"]
    assert find_recipe("music").text_length == 1024
    assert "batch 1024" in rows["VSR"]
    assert find_recipe("vsr").settings[0].batch_size == 1024
    assert "8 epochs, LR 5e-6" in rows["MIMIC-CXR"]
    radiography = find_recipe("radiography").settings[0]
    assert (radiography.epochs, radiography.learning_rate) == (8, 5e-6)
    assert "50 epochs" in rows["COCO / DocLayNet detection"]
    assert find_recipe("coco-detection").settings[0].epochs == 50


def test_frames_of_videos_are_as_written(shared_data: Path) -> None:
    text = facts_text(shared_data, "tokens-and-prompts.md")
    strides = {
        "MSR-VTT": ["msrvtt-cap", "msrvtt-qa"],
        "ActivityNet-cap": ["activitynet-cap"],
        "ActivityNet-QA": ["activitynet-qa"],
        "VATEX": ["vatex"],
        "MSVD": ["msvd-qa"],
    }
    line = text[text.index("Frame strides:") :]
    for name, recipes in strides.items():
        found = re.search(rf"{name} (\d+)", line)
        assert found is not None
        for recipe in map(find_recipe, recipes):
            assert recipe.frame_stride == int(found[1])
            assert recipe.num_images == (8 if recipe.name == "msvd-qa" else 16)


def test_the_page_of_the_docs_is_current() -> None:
    docs = Path(__file__).parents[2] / "docs"
    made = runpy.run_path(str(docs / "make_recipes.py"))["document"]()
    current = (docs / "recipes.md").read_text(encoding="utf-8")
    assert made == current, "run python docs/make_recipes.py"
    code = re.findall(r"```python\n(.*?)```", current, flags=re.DOTALL)
    (example,) = code
    namespace: dict[str, object] = {}
    exec(example, namespace)
    assert namespace["config"] == train_config(find_recipe("ai2d"), 12_413, resolution=448)
