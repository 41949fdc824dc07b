"""The program as a whole: its help, its exit codes, its way with errors."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import paligemma
from paligemma import errors
from paligemma.cli.app import app

REPOSITORY = Path(__file__).parents[2]


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*names: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(paligemma, "load", load, raising=False)


def test_help_comes_at_once_and_loads_nothing_heavy():
    program = (
        "import sys, time\n"
        "from paligemma.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
        "    print(time.process_time(), *heavy, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, *heavy = ran.stderr.split()
    assert float(seconds) < 0.5
    assert not heavy
    assert "detect" in ran.stdout


def test_every_command_explains_itself_and_each_of_its_options():
    make = runpy.run_path(str(REPOSITORY / "docs" / "make_cli.py"))
    runner = CliRunner(env={"COLUMNS": "100"})
    for path in make["command_paths"](app):
        shown = runner.invoke(app, [*path, "-h"], prog_name="paligemma")
        assert shown.exit_code == 0
        lines = shown.output.splitlines()
        assert lines[0].startswith(f"Usage: {' '.join(('paligemma', *path))} ")
        assert re.match(r"  [A-Z]", lines[2]), path
        for index, line in enumerate(lines):
            if line.startswith("  -"):
                both = line + (lines[index + 1] if index + 1 < len(lines) else "")
                assert re.search(r"  -.*  +\S", both), (path, line)


@pytest.mark.parametrize(
    ("words", "completion"),
    [
        ("paligemma tra", "train"),
        ("paligemma train --recip", "--recipe"),
        ("paligemma train --method fro", "frozen-encoder"),
        ("paligemma data ch", "check"),
    ],
)
def test_shells_complete_commands_and_options(words, completion, run, monkeypatch):
    monkeypatch.setenv("_PALIGEMMA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    ran = run()
    assert ran.code == 0
    assert ran.out.split() == [completion]


def test_the_former_name_of_a_command_still_works(run):
    ran = run("fit", "-h")
    assert ran.code == 0
    assert "Estimate the memory and time of training" in ran.out


def test_the_module_runs_as_a_program():
    ran = subprocess.run(
        [sys.executable, "-m", "paligemma", "--help"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("Usage: paligemma ")


def test_the_page_about_the_command_line_is_current():
    make = runpy.run_path(str(REPOSITORY / "docs" / "make_cli.py"))
    page = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    assert make["document"]() == page, "run `make docs`"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ImageError("no"), 2),
        (errors.OptionError("no"), 2),
        (errors.CheckpointError("no"), 2),
        (errors.TokenizerError("no"), 2),
        (errors.DataError("no"), 2),
        (errors.HubError("no"), 1),
        (errors.NumericalError("no"), 1),
        (errors.MissingExtraError("supervision", "supervision", "It"), 1),
        (OSError(28, "No space left on device"), 1),
        (ZeroDivisionError("no"), 1),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, run, picture, monkeypatch):
    fail_with(error, monkeypatch)
    for options in ((), ("--json",)):
        ran = run("caption", picture, *options)
        assert ran.code == code
        assert ran.err.startswith("error: ")
        assert ran.err.count("\n") == 1
        assert ran.out == ""


def test_an_unforeseen_error_says_how_to_see_more(run, picture, monkeypatch):
    fail_with(ZeroDivisionError("by nought"), monkeypatch)
    assert "ZeroDivisionError: by nought (" in (said := run("caption", picture).err)
    assert "PALIGEMMA_DEBUG=1" in said
    monkeypatch.setenv("PALIGEMMA_DEBUG", "1")
    from paligemma.cli.main import main

    with pytest.raises(ZeroDivisionError):
        main(["caption", str(picture)])


def test_an_interrupted_program_ends_with_130(run, picture, monkeypatch):
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert run("caption", picture).code == 130


@pytest.mark.parametrize("module", ["typer", "torch", "paligemma.loading"])
def test_an_interrupt_during_an_import_cannot_be_swallowed(module, picture):
    program = (
        "import os, signal, sys\n"
        # A shell ignores the signal for what it starts in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == sys.argv[1]:\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "            except BaseException:\n"
        "                raise RuntimeError('the file is damaged') from None\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from paligemma.cli.main import main\n"
        "main(['caption', sys.argv[2]])\n"
    )
    command = [sys.executable, "-c", program, module, str(picture)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("redirection", "reason"), [("> /dev/full", "No space left"), (">&-", "stdout is closed")]
)
def test_a_stdout_that_takes_nothing_is_one_line(redirection, reason):
    command = f"{sys.executable} -m paligemma --help {redirection}"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: The output cannot be written")
    assert reason in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_control_characters_in_a_message_are_shown_and_not_obeyed(run, picture, monkeypatch):
    fail_with(errors.CheckpointError("no \x1b[2J\nfolder"), monkeypatch)
    assert run("caption", picture).err == "error: no \\x1b[2J folder\n"


def test_wrong_usage_ends_with_2(run):
    assert run("no-such-command").code == 2
    assert run("caption").code == 2
    assert run("caption", "x.png", "--no-such-option").code == 2


def test_the_version_is_the_package_s_own(run):
    assert run("--version").out == f"paligemma {paligemma.__version__}\n"
