"""The command `recipes`: how the papers fine-tuned, and the command line that does the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, get_args

import typer

from paligemma.cli.console import print_json, print_note, print_table, print_text
from paligemma.cli.options import Json
from paligemma.errors import OptionError


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            show_default=False,
            help="Name of a recipe, or the path of a TOML file that holds one.",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            help="Show the hyperparameters for this resolution in pixels.",
            show_default="the recipe's lowest",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Show the hyperparameters for this model: paligemma-3b, paligemma2-3b, "
            "paligemma2-10b or paligemma2-28b.",
            show_default="the recipe's model",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the recipes of the papers, or show one.

    A recipe holds the prompt, the hyperparameters and the published scores of one task. To write
    your own, copy an entry of recipes.toml (docs/recipes.md) into a file and give its path.
    """
    from paligemma.finetune.recipes import (
        RECIPES,
        Model,
        command,
        evaluation_commands,
        find_recipe,
        is_recipe_file,
    )

    if name is None:
        rows = [
            (r.name, r.title, "/".join(map(str, r.resolutions)), r.metric, _in_brief(r.prompt))
            for r in RECIPES
        ]
        if as_json:
            print_json([asdict(recipe) for recipe in RECIPES])
        else:
            print_table(None, ("name", "task", "pixels", "metric", "prompt"), rows)
            print_note("`paligemma recipes NAME` shows all of one recipe, with its command.")
        return
    recipe = find_recipe(name)
    if model is not None and model not in get_args(Model):
        raise OptionError(
            f"The model is {model!r}; it must be one of {', '.join(get_args(Model))}."
        )
    chosen: Any = model
    setting = recipe.setting(resolution, chosen)
    file = name if is_recipe_file(name) else None
    line = command(recipe, setting.resolution, chosen, file=file)
    afterwards = evaluation_commands(recipe, setting.resolution, chosen)
    scores = recipe.published()
    if as_json:
        print_json(
            {
                **asdict(recipe),
                "setting": asdict(setting),
                "command": line,
                "evaluation_commands": afterwards,
                "published": [asdict(score) for score in scores],
            }
        )
        return
    fields = {key: value for key, value in asdict(recipe).items() if key != "settings"}
    print_table(
        None,
        ("field", "value"),
        [(key, _cell(value)) for key, value in fields.items() if value not in (None, "", (), {})],
    )
    print_table(
        "hyperparameters",
        ("field", "value"),
        [
            (key, _cell(value))
            for key, value in asdict(setting).items()
            if value is not None or key not in ("steps", "examples_seen")
        ],
    )
    if scores:
        print_table(
            "published scores",
            ("row", "metric", "model", "pixels", "score", "source"),
            [
                (
                    score.row,
                    score.metric,
                    score.model,
                    str(score.resolution or ""),
                    f"{score.value}" + ("" if score.deviation is None else f" ± {score.deviation}"),
                    score.source,
                )
                for score in scores
            ],
            right=("pixels",),
        )
    for each in (line, *afterwards):
        print_text(each)


def _in_brief(prompt: str) -> str:
    r"""
    >>> _in_brief("Question: {question}\nContext: {hint}")
    'Question: {question} ...'
    """
    first, _, rest = prompt.partition("\n")
    return f"{first} ..." if rest else first


def _cell(value: object) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item:g}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        # Spaces are part of a prompt, and a table would swallow them.
        return repr(value) if "  " in value or "\n" in value or "\t" in value else value
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
