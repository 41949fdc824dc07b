"""Command-line options made from the fields of dataclasses.

A command takes a few parameters of its own and whole dataclasses:

    @takes(options="paligemma.finetune.run.options:RunOptions")
    def train(*, out: Out, options: RunOptions, as_json: Json = False) -> None: ...

    app.command(cls=Command)(train)

A class given by name is imported only when its command runs, so `paligemma --help` does not import
torch. `paligemma.options.Option` says how a field becomes an option.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from paligemma.cli.interrupt import exit_when_interrupted
from paligemma.options import Option

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SHORT_FLAGS = {
    "--model": "-m",
    "--adapter": "-a",
    "--out": "-o",
    "--output": "-o",
    "--max-new-tokens": "-n",
    "--language": "-l",
    "--batch-size": "-b",
    "--format": "-f",
    "--draw": "-d",
    "--port": "-p",
    "--json": "-j",
}
"""Short spellings, the same in every command that has the option."""

RENAMED_FLAGS = {
    "--hold-out": "--validation-split",
    "--data-format": "--format",
    "--workers": "--num-workers",
    "--bad": "--on-bad-record",
    "--on-bad-example": "--on-bad-record",
    "--base": "--base-format",
    "--lang": "--language",
    "--beams": "--num-beams",
    "--free": "--no-constrained",
    "--out": "--output",
    "--output": "--out",
}
"""Former spellings, and those of other commands, which work in commands that have the new one and
no other use for the old one. The help does not show them."""

MODEL_VARIABLE = "PALIGEMMA_MODEL"
"""Environment variable that holds the default of --model."""

_METAVARS = {
    "<str>": "TEXT",
    "<list[str]>": "TEXT",
    "<path>": "PATH",
    "<int>": "INTEGER",
    "<int range>": "INTEGER",
    "<float>": "FLOAT",
    "<float range>": "FLOAT",
}

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, on one line.")]

Function = Callable[..., None]
Field = dataclasses.Field[Any]


class Command(TyperCommand):
    """A command with short and former spellings, whose dataclasses are imported on first use."""

    _is_complete = False

    def get_params(self, ctx: Any) -> list[Any]:
        if not self._is_complete:
            self._complete()
        return super().get_params(ctx)

    def get_short_help_str(self, limit: int = 1000) -> str:
        """The first sentence, which lists of commands show on several lines rather than cut."""
        return super().get_short_help_str(1000)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = {
            flag for param in self.get_params(ctx) for flag in (*param.opts, *param.secondary_opts)
        }
        return super().parse_args(ctx, current_spelling(args, flags))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = [self.options_metavar] if self.options_metavar else []
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                name = _argument_name(param)
                pieces.append(name if param.required else f"[{name}]")
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                sections[param.param_type_name].append(_help_record(param, *record))
        for kind, records in sections.items():
            if records:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(records)

    @exit_when_interrupted()
    def _complete(self) -> None:
        expand: Callable[[], Function] | None = getattr(self.callback, "expand", None)
        if expand is not None:
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command()(expand())
            command = typer.main.get_command(app)
            self.params, self.callback = command.params, command.callback
        for param in self.params:
            param.opts += [SHORT_FLAGS[flag] for flag in param.opts if flag in SHORT_FLAGS]
        self._is_complete = True


def _argument_name(param: Any) -> str:
    name: str = param.metavar or param.name.upper()
    return name if param.nargs == 1 or "..." in name else f"{name}..."


def _help_record(param: Any, name: str, text: str) -> tuple[str, str]:
    """typer's line about a parameter, with conventional names for types and bare defaults."""
    if isinstance(param.show_default, str):
        text = text.replace(f"default: ({param.show_default})", f"default: {param.show_default}")
    if param.param_type_name == "argument":
        return _argument_name(param), text.removesuffix("  [required]")
    for shown, metavar in _METAVARS.items():
        name = name.replace(shown, metavar)
    return name, text


def current_spelling(arguments: Sequence[str], flags: set[str]) -> list[str]:
    """The arguments with former spellings replaced, for a command that has these flags.

    >>> current_spelling(["--hold-out=0.2", "--", "--bad"], {"--validation-split"})
    ['--validation-split=0.2', '--', '--bad']
    """
    current = list(arguments)
    end = current.index("--") if "--" in current else len(current)
    for index, argument in enumerate(current[:end]):
        flag, equals, value = argument.partition("=")
        renamed = RENAMED_FLAGS.get(flag)
        if renamed in flags and flag not in flags:
            current[index] = f"{renamed}{equals}{value}"
    return current


def takes(**sources: type[DataclassInstance] | str) -> Callable[[Function], Function]:
    """Let a command take whole dataclasses: parameter name -> class, or "module:Class".

    The command gets one option for each field of the class, in place of the parameter, and an
    instance as the parameter's value.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def command(**values: Any) -> None:
            function(**values)

        # What typer looks at when the program starts.
        command.__signature__ = inspect.Signature()  # type: ignore[attr-defined]
        command.__annotations__ = {}
        command.expand = lambda: _expanded(function, sources)  # type: ignore[attr-defined]
        return command

    return decorate


def _expanded(function: Function, sources: Mapping[str, type[DataclassInstance] | str]) -> Function:
    """The function with a parameter for each field, which typer can read."""
    classes = {name: _class(source) for name, source in sources.items()}
    hints = get_type_hints(
        function, localns={found.__name__: found for found in classes.values()}, include_extras=True
    )
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in classes:
            parameters += field_parameters(classes[name])
        else:
            parameters.append(_keyword(name, hints[name], parameter.default))
    _check_unique(function.__name__, parameters)

    @wraps(function)
    def command(**values: Any) -> None:
        for name, options in classes.items():
            fields = [field.name for field in dataclasses.fields(options)]
            values[name] = build(options, {field: values.pop(field) for field in fields})
        function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _class(source: type[DataclassInstance] | str) -> type[DataclassInstance]:
    if not isinstance(source, str):
        return source
    module, _, name = source.partition(":")
    options: type[DataclassInstance] = getattr(import_module(module), name)
    return options


def _check_unique(command: str, parameters: Sequence[inspect.Parameter]) -> None:
    names = [parameter.name for parameter in parameters]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise TypeError(f"The command {command!r} has several options {', '.join(repeated)}.")


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def field_parameters(options: type[DataclassInstance]) -> list[inspect.Parameter]:
    """A typer parameter for each field: those of the class first, then those of its bases."""
    hints = get_type_hints(options, include_extras=True)
    help_texts = field_help(options)
    fields = {field.name: field for field in dataclasses.fields(options)}
    names: list[str] = []
    for part in options.__mro__:
        names += [
            name for name in inspect.get_annotations(part) if name in fields and name not in names
        ]
    return [_parameter(fields[name], hints[name], help_texts.get(name)) for name in names]


def _parameter(field: Field, hint: Any, help_text: str | None) -> inspect.Parameter:
    kind, option = _split_hint(hint)
    if kind == float | str | None:  # typer takes no unions; the class reads the text
        kind = str | None
    default = inspect.Parameter.empty if _is_required(field) else _default(field)
    choices: tuple[str, ...] = ()
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if get_origin(item) is Literal:  # typer takes no list of choices
            item, choices = str, get_args(item)
        kind = list[item]  # type: ignore[valid-type]
        if default is not inspect.Parameter.empty:
            kind, default = kind | None, None
    if _is_required(field) and not option.flags:
        argument = typer.Argument(
            metavar=option.metavar or field.name.upper(), show_default=False, help=help_text
        )
        return _keyword(field.name, Annotated[kind, argument], default)
    info = typer.Option(
        *_flags(field, kind, option),
        min=option.least,
        max=option.most,
        metavar=option.metavar or (f"<{'|'.join(choices)}>" if choices else None),
        callback=_check_for(choices) if choices else None,
        help=help_text,
        envvar=MODEL_VARIABLE if field.name == "model" else None,
        show_default=_shown_default(field, option),
    )
    return _keyword(field.name, Annotated[kind, info], default)


def _check_for(choices: tuple[str, ...]) -> Callable[[Any], Any]:
    def check(values: Any) -> Any:
        for value in values or ():
            if value not in choices:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}.")
        return values

    return check


def _split_hint(hint: Any) -> tuple[Any, Option]:
    if get_origin(hint) is not Annotated:
        return hint, Option()
    kind, *extras = get_args(hint)
    return kind, next((extra for extra in extras if isinstance(extra, Option)), Option())


def _is_required(field: Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _default(field: Field) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def _flags(field: Field, kind: Any, option: Option) -> tuple[str, ...]:
    flag = f"--{field.name.replace('_', '-')}"
    if option.flags:
        return option.flags
    # What is off by default needs no spelling to switch it off.
    is_switch = kind == bool | None or (kind is bool and field.default is not False)
    return (f"{flag}/--no-{flag[2:]}" if is_switch else flag,)


def _shown_default(field: Field, option: Option) -> bool | str:
    if option.shown_default is not None or _is_required(field):
        return option.shown_default or False
    default = _default(field)
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or False
    return default is not False


def build(options: type[DataclassInstance], values: Mapping[str, Any]) -> Any:
    """An instance made from the values that typer hands over.

    typer gives lists where the class has tuples, and None for a list that was not given.
    """
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = values[field.name]
        if isinstance(value, list):
            value = tuple(value)
        if value is None and not _is_required(field):
            value = _default(field)
        arguments[field.name] = value
    return options(**arguments)


@cache
def field_help(options: type) -> dict[str, str]:
    """Field name -> the docstring under it; a class overrides the texts of its bases."""
    texts: dict[str, str] = {}
    for part in reversed(options.__mro__):
        if dataclasses.is_dataclass(part):
            texts |= _docstrings(part)
    return texts


def _docstrings(options: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(options))
    except OSError:  # installed without sources
        return {}
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, follower in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(follower, ast.Expr)
            and isinstance(follower.value, ast.Constant)
            and isinstance(follower.value.value, str)
        ):
            texts[statement.target.id] = inspect.cleandoc(follower.value.value)
    return texts
