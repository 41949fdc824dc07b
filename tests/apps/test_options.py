"""Options made from dataclasses: types, bounds, choices, help texts and former spellings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from paligemma.cli.options import (
    RENAMED_FLAGS,
    SHORT_FLAGS,
    Command,
    current_spelling,
    field_help,
    takes,
)
from paligemma.options import Option

Level = Literal["low", "high"]


@dataclass(frozen=True, kw_only=True)
class Base:
    seed: Annotated[int, Option(least=0, most=9)] = 3
    """Random seed."""
    model: str = "mini"
    """Model of the base class."""


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    data: str
    """Data set to read."""
    level: Level | None = None
    """How much to do."""
    rate: Annotated[float | None, Option(shown_default="by level")] = None
    """Peak rate."""
    names: Annotated[tuple[str, ...], Option(flags=("--name",))] = ()
    """Name of a metric; may be repeated."""
    parts: Annotated[tuple[Level, ...], Option(flags=("--part",))] = ("low",)
    """Part to train; may be repeated."""
    is_fast: bool = False
    """Work fast."""
    writes: bool = True
    """Write files."""
    saves: bool | None = None
    """Save files."""
    num_workers: int = 0
    """Number of processes."""
    target: Annotated[Path, Option(flags=("--target",), metavar="FILE")]
    """File to write."""
    model: str = "large"
    """Model to start from."""


class Asked:
    """A small program and what its command received."""

    def __init__(self) -> None:
        self.options: Any = None
        self.out: Any = None
        self.app = typer.Typer(add_completion=False, rich_markup_mode=None)

        @takes(options=Options)
        def work(
            *,
            out: Annotated[str, typer.Option(help="Output directory.")] = "here",
            options: Options,
        ) -> None:
            """Do the work."""
            self.options, self.out = options, out

        self.app.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})(
            work
        )

    def __call__(self, *arguments: str) -> Any:
        ran = CliRunner(env={"COLUMNS": "200", "PALIGEMMA_MODEL": None}).invoke(
            self.app, [*arguments], terminal_width=200
        )
        assert ran.exit_code in (0, 2), ran.exception
        return ran


@pytest.fixture
def program() -> Asked:
    return Asked()


def test_what_is_not_given_keeps_the_default_of_the_class(program: Asked) -> None:
    assert program("things", "--target", "x").exit_code == 0
    assert program.options == Options(data="things", target=Path("x"))


def test_every_kind_of_field_is_read(program: Asked) -> None:
    ran = program(
        *("things", "--target", "a/b", "--level", "high", "--rate", "1e-3", "--name", "x"),
        *(
            "--name",
            "y",
            "--part",
            "high",
            "--part",
            "low",
            "--is-fast",
            "--no-writes",
            "--no-saves",
        ),
        *("--seed", "9", "--model", "small", "--out", "there"),
    )
    assert ran.exit_code == 0, ran.output
    assert program.out == "there"
    assert program.options == Options(
        data="things",
        target=Path("a/b"),
        level="high",
        rate=1e-3,
        names=("x", "y"),
        parts=("high", "low"),
        is_fast=True,
        writes=False,
        saves=False,
        seed=9,
        model="small",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "10"), "--seed"),
        (("--seed", "-1"), "--seed"),
        (("--seed", "x"), "--seed"),
        (("--level", "middle"), "not one of 'low', 'high'"),
        (("--part", "middle"), "not one of low, high"),
        (("--no-is-fast",), "No such option"),
        (("more",), "unexpected extra argument"),
    ],
)
def test_what_does_not_fit_is_refused(
    program: Asked, arguments: tuple[str, ...], message: str
) -> None:
    ran = program("things", "--target", "x", *arguments)
    assert ran.exit_code == 2
    assert message in ran.output
    assert program.options is None


def test_fields_without_defaults_are_required(program: Asked) -> None:
    assert "Missing argument 'DATA'" in program("--target", "x").output
    assert "Missing option '--target'" in program("things").output


def test_help_texts_come_from_the_docstrings_under_the_fields(program: Asked) -> None:
    shown = " ".join(program("-h").output.split())
    for line in (
        "DATA Data set to read.",
        "--rate FLOAT Peak rate. [default: by level]",
        "--part <low|high> Part to train; may be repeated. [default: low]",
        "--seed INTEGER Random seed. [default: 3; 0<=x<=9]",
        "--target FILE File to write. [required]",
        "--writes / --no-writes Write files. [default: writes]",
        "-m, --model TEXT Model to start from. [env var: PALIGEMMA_MODEL; default: large]",
        "-o, --out TEXT Output directory. [default: here]",
    ):
        assert line in shown
    assert "[OPTIONS] DATA" in shown


def test_a_class_overrides_the_help_of_its_base() -> None:
    assert field_help(Base)["model"] == "Model of the base class."
    assert field_help(Options)["model"] == "Model to start from."
    assert field_help(Options)["seed"] == "Random seed."


def test_short_spellings_work(program: Asked) -> None:
    assert program("things", "--target", "x", "-m", "small", "-o", "there").exit_code == 0
    assert (program.options.model, program.out) == ("small", "there")


def test_former_spellings_work_and_are_not_shown(program: Asked) -> None:
    assert program("things", "--target", "x", "--workers", "2").exit_code == 0
    assert program.options.num_workers == 2
    assert program("things", "--target", "x", "--workers=3").exit_code == 0
    assert program.options.num_workers == 3
    assert "--workers" not in program("-h").output


def test_a_former_spelling_is_left_alone_where_it_means_something_else() -> None:
    assert current_spelling(["--base", "x"], {"--base", "--base-format"}) == ["--base", "x"]
    assert current_spelling(["--base", "x"], {"--model"}) == ["--base", "x"]


def test_no_spelling_is_given_twice() -> None:
    assert len(set(SHORT_FLAGS.values())) == len(SHORT_FLAGS) - 1  # --out and --output
    assert not set(RENAMED_FLAGS) & set(RENAMED_FLAGS.values()) - {"--out", "--output"}


def test_one_name_in_two_classes_is_an_error_of_the_program() -> None:
    @takes(first=Base, second=Options)
    def work(*, first: Base, second: Options) -> None: ...

    with pytest.raises(TypeError, match="several options model, seed"):
        work.expand()  # type: ignore[attr-defined]


def test_a_class_given_by_name_is_imported_for_its_own_command_alone() -> None:
    program = (
        "import sys\n"
        "from paligemma.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    for arguments, expected in ((["-h"], "False"), (["models", "-h"], "False")):
        ran = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
        )
        assert ran.stderr.strip() == expected
