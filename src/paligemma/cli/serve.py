"""`paligemma serve`: answers over HTTP until it is told to end.

What can be wrong with the command line, the keys and the folders is found before anything
listens; what is wrong with the model's files, while it loads, ends the process in one line.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paligemma.cli.console import print_note
from paligemma.cli.predict import DtypeOption, QuantizationOption
from paligemma.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from paligemma.server.limits import Limits

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,63}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/\-]{0,127}")
_HOST_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,253}|\[[0-9A-Fa-f:.]+\]")
_DOMAIN = re.compile(r"(\*\.)?[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)+")


def serve(
    *,
    model: Annotated[
        str,
        typer.Option(envvar="PALIGEMMA_MODEL", help="mini, a hub id, or a folder."),
    ] = "mini",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="main")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What clients call the model.", show_default="as --model; a folder's own name"
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER", help="Serve an adapter under this name; may be repeated."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with one key a line; requests must bring one. Or $PALIGEMMA_API_KEYS, "
            "separated by commas."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name under which this server may be called, besides localhost; may be "
            "repeated.",
        ),
    ] = None,
    open_readiness: Annotated[
        bool,
        typer.Option(
            "--open-readiness",
            help="Answer /health/ready without a key and under any name, for probes.",
        ),
    ] = False,
    allow_urls_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN",
            help="Fetch pictures from https addresses of example.com, or of *.example.com; may "
            "be repeated.",
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Change one of the limits of /v1/limits; may be repeated."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what is already downloaded.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare files with their SHA-256 first.")
    ] = False,
) -> None:
    """Serve the model over HTTP, with a page to try it at the address itself.

    Ends on SIGTERM and Ctrl-C after what was accepted is answered; at once when told again.
    """
    # Before torch is there: its threads would spin while they wait, on cores that others want.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "`paligemma serve`") from None
    from paligemma.server.app import create_app
    from paligemma.server.limits import Limits
    from paligemma.server.logs import set_up_logs
    from paligemma.server.process import serve as serve_app
    from paligemma.server.service import Loaded, Service
    from paligemma.server.settings import (
        LOOPBACK_HOSTS,
        Settings,
        limits_without_keys,
        read_keys,
        served_name,
    )

    limit = limit or []
    limits = _limits(Limits(), limit)
    own_name = served_name(model) if name is None else _check_name(name)
    adapters = _adapters(adapter or [], own_name)
    settings = Settings(
        limits=limits,
        keys=read_keys(api_key_file),
        hosts=(*LOOPBACK_HOSTS, *_names(host, allow_host or [])),
        open_readiness=open_readiness,
        image_domains=_domains(allow_urls_from or []),
    )
    if settings.keys is None and "streams_per_client" not in {c.partition("=")[0] for c in limit}:
        limits = limits_without_keys(limits)
        settings = replace(settings, limits=limits)
    if settings.keys is None and not _is_loopback(host):
        print_note(
            f"Warning: {host} can be reached from other machines, and no API key is asked for. "
            "Add --api-key-file FILE."
        )

    def load() -> Loaded:
        import paligemma
        from paligemma.checkpoints.adapter import fingerprint_of, read_adapter
        from paligemma.checkpoints.hub import Source
        from paligemma.fast.weights import Plain, Weights, weights_name

        weights: Weights = weights_name(dtype, quantization)
        if adapters and quantization is not None:
            raise OptionError(
                "Adapters that are chosen per request need plain weights: leave out --quantization."
            )
        if adapters:
            weights = Plain(dtype)
        predictor = paligemma.load(
            model,
            weights=weights,
            device=device,
            source=Source(revision=revision, offline=offline, verify=verify),
        )
        config = predictor.model.config
        found = {
            name: read_adapter(folder, config, verify=verify) for name, folder in adapters.items()
        }
        for one in found.values():
            one.check_base(fingerprint_of(predictor.model))
        return Loaded(
            predictor=predictor, adapters={name: one.layers for name, one in found.items()}
        )

    set_up_logs()
    service = Service(load, name=own_name, adapter_names=tuple(adapters), limits=limits)
    code = serve_app(create_app(service, settings), service, limits, host=host, port=port)
    if code:
        sys.exit(code)


def _limits(limits: Limits, changes: list[str]) -> Limits:
    """The limits with some of them changed by NAME=VALUE."""
    kinds = {field.name: field.type for field in fields(limits)}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in kinds:
            raise OptionError(f"There is no limit {name!r}. Limits: {', '.join(kinds)}.")
        try:
            value = int(text) if kinds[name] == "int" else float(text)
        except ValueError:
            raise OptionError(f"--limit {change!r} must be of the form NAME=NUMBER.") from None
        change_by_name: dict[str, Any] = {name: value}
        limits = replace(limits, **change_by_name)
    return limits


def _check_name(name: str) -> str:
    if not _MODEL_NAME.fullmatch(name):
        raise OptionError(
            f"--name {name!r} must be of letters, digits, dots, dashes, underscores and slashes."
        )
    return name


def _adapters(given: list[str], model: str) -> dict[str, Path]:
    """Name -> folder. Raises OptionError for what is neither, before anything is loaded."""
    found: dict[str, Path] = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not _ADAPTER_NAME.fullmatch(name) or not folder:
            raise OptionError(
                f"--adapter {text!r} must be of the form NAME=FOLDER, the name of letters, "
                "digits, dots, dashes and underscores."
            )
        if name in found or name == model:
            raise OptionError(f"Two models would be served under the name {name!r}.")
        if not Path(folder).is_dir():
            raise OptionError(f"There is no folder {folder!r} for --adapter {name}.")
        found[name] = Path(folder)
    return found


def _names(host: str, given: list[str]) -> tuple[str, ...]:
    """What the Host header may say besides loopback names."""
    for name in given:
        if not _HOST_NAME.fullmatch(name):
            raise OptionError(
                f"--allow-host {name!r} is no host name. Give one without port and path."
            )
    own = f"[{host}]" if ":" in host else host
    listed = [*given, own] if not _is_any(host) else given
    return tuple(name.lower().removesuffix(".") for name in listed)


def _domains(given: list[str]) -> tuple[str, ...]:
    for domain in given:
        if not _DOMAIN.fullmatch(domain):
            raise OptionError(
                f"--allow-urls-from {domain!r} must be of the form example.com or *.example.com."
            )
    return tuple(domain.lower() for domain in given)


def _is_any(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
