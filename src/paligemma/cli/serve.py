"""`paligemma serve`: answer requests over HTTP until a signal ends the process.

Errors in the command line, the keys and the folders are reported before anything listens. An
error while the model loads ends the process with one line.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paligemma.cli.console import print_note
from paligemma.cli.model_options import ModelOptions
from paligemma.cli.options import takes
from paligemma.errors import MissingExtraError, OptionError
from paligemma.options import Option

if TYPE_CHECKING:
    from paligemma.checkpoints.trained_on import TrainedOn
    from paligemma.processor.image import Resize
    from paligemma.server.service import Loaded
    from paligemma.server.settings import Limits

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,63}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/\-]{0,127}")
_HOST_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,253}|\[[0-9A-Fa-f:.]+\]")
_ORIGIN = re.compile(r"https?://([A-Za-z0-9_.\-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?")
_PRIVATE_HOST = re.compile(r"[A-Za-z0-9_.\-]{1,253}(:[0-9]{1,5})?")
_DOMAIN = re.compile(r"(\*\.)?[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)+")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """What to serve, where, and to whom."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 accepts connections from other machines."""
    port: Annotated[int, Option(least=0, most=65535)] = 8000
    """Port to listen on. 0: pick a free port."""
    name: Annotated[
        str | None, Option(shown_default="the value of --model, or the last part of its path")
    ] = None
    """Name by which clients call the model."""
    adapters: Annotated[
        tuple[str, ...], Option(flags=("--adapter",), metavar="NAME=FOLDER", shown_default="none")
    ] = ()
    """Adapter folder to serve as a model of this name; may be repeated."""
    api_key_file: Annotated[
        Path | None, Option(metavar="FILE", shown_default="$PALIGEMMA_API_KEYS, if set")
    ] = None
    """File with one API key per line; requests must then send one of them.
    $PALIGEMMA_API_KEYS holds keys separated by commas."""
    allowed_hosts: Annotated[
        tuple[str, ...], Option(flags=("--allow-host",), metavar="NAME", shown_default="none")
    ] = ()
    """Additional allowed Host header, besides localhost and --host; may be repeated."""
    allowed_origins: Annotated[
        tuple[str, ...],
        Option(flags=("--allow-origin",), metavar="ORIGIN", shown_default="none"),
    ] = ()
    """Origin whose pages may call the server, such as http://localhost:3000; may be repeated."""
    question_prefix: Annotated[
        str | None, Option(shown_default='"answer en" for mini and mix checkpoints, else ""')
    ] = None
    """Text to put before plain questions to /v1/chat/completions, as in the model's training; ""
    sends questions unchanged."""
    image_domains: Annotated[
        tuple[str, ...],
        Option(flags=("--allow-urls-from",), metavar="DOMAIN", shown_default="none"),
    ] = ()
    """Domain from which images may be fetched over https: example.com, or *.example.com for its
    subdomains; may be repeated."""
    private_image_hosts: Annotated[
        tuple[str, ...],
        Option(flags=("--allow-private-urls-from",), metavar="HOST[:PORT]", shown_default="none"),
    ] = ()
    """Host of your own network from which images may be fetched over http or https, such as
    minio:9000; may be repeated. Its addresses are not checked, so name only hosts you trust."""
    cache_mb: Annotated[int | None, Option(least=0, metavar="MB", shown_default="512")] = None
    """Memory for all caches together: half for images, half for images with prompts."""
    open_readiness: bool = False
    """Answer /health/ready without an API key and for any Host header, for probes."""
    limits: Annotated[
        tuple[str, ...], Option(flags=("--limit",), metavar="NAME=VALUE", shown_default="none")
    ] = ()
    """Change one of the limits that /v1/limits lists; may be repeated."""
    allow_video: bool = False
    """Serve /v1/video, which captions the videos of clients: their files are decoded by processes
    of their own. Needs: pip install 'paligemma[video]'"""
    certify: bool = False
    """Check the model as `paligemma certify` does before serving it, and refuse one that fails."""


@takes(options=ServeOptions)
def serve(*, options: ServeOptions) -> None:
    """Serve the model over HTTP, with a web page to try it.

    SIGTERM or Ctrl-C drains requests in flight; a second signal exits immediately.
    """
    _require_server(with_video=options.allow_video)
    from paligemma.server.app import create_app
    from paligemma.server.logs import set_up_logs
    from paligemma.server.process import serve as serve_app
    from paligemma.server.service import Service
    from paligemma.server.settings import (
        LOOPBACK_HOSTS,
        Limits,
        Settings,
        limits_without_keys,
        read_keys,
        served_name,
    )
    from paligemma.threads import set_threads

    set_threads(options.threads)
    limits = _limits(_with_caches(Limits(), options.cache_mb), options.limits)
    name = served_name(options.model) if options.name is None else _check_name(options.name)
    adapters = _adapters(options.adapters, name)
    settings = Settings(
        limits=limits,
        keys=read_keys(options.api_key_file),
        hosts=(*LOOPBACK_HOSTS, *_names(options.host, options.allowed_hosts)),
        origins=_hosts(
            "--allow-origin",
            options.allowed_origins,
            _ORIGIN,
            "http://localhost:3000, without a path",
        ),
        question_prefix=options.question_prefix,
        allow_video=options.allow_video,
        open_readiness=options.open_readiness,
        image_domains=_hosts(
            "--allow-urls-from", options.image_domains, _DOMAIN, "example.com or *.example.com"
        ),
        private_image_hosts=_hosts(
            "--allow-private-urls-from",
            options.private_image_hosts,
            _PRIVATE_HOST,
            "minio or minio:9000",
        ),
    )
    changed = {change.partition("=")[0] for change in options.limits}
    if settings.keys is None:
        limits = limits_without_keys(limits, changed)
        settings = replace(settings, limits=limits)
    if settings.keys is None and not _is_loopback(options.host):
        print_note(
            f"Warning: {options.host} accepts connections from other machines, and no API key is "
            "required. Add --api-key-file FILE."
        )
    set_up_logs()
    service = Service(
        partial(_load, options, adapters), name=name, adapter_names=tuple(adapters), limits=limits
    )
    app = create_app(service, settings)
    code = serve_app(app, service, limits, host=options.host, port=options.port)
    if code:
        sys.exit(code)


def _require_server(*, with_video: bool) -> None:
    if with_video and find_spec("av") is None:
        raise MissingExtraError("av", "video", "`paligemma serve --allow-video`")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "`paligemma serve`") from None


def _load(options: ServeOptions, adapters: Mapping[str, Path]) -> Loaded:
    import paligemma
    from paligemma.checkpoints.adapter import fingerprint_of, read_adapter
    from paligemma.checkpoints.hub import Source
    from paligemma.checkpoints.trained_on import TrainedOn
    from paligemma.fast.weights import Plain, Weights, usual_name, weights_name
    from paligemma.server.service import Loaded

    weights: Weights = weights_name(usual_name(options.dtype), options.quantization)
    if adapters and options.quantization is not None:
        raise OptionError(
            "--adapter needs plain weights, because each request may choose another adapter. "
            "Leave out --quantization."
        )
    if adapters:
        weights = Plain(usual_name(options.dtype))
    resize = _resize(adapters)
    if options.certify:
        from paligemma.cli.certify import refuse_failing

        refuse_failing(options.model, options)
    predictor = paligemma.load(
        options.model,
        weights=weights,
        device=options.device,
        source=Source(revision=options.revision, offline=options.offline, verify=options.verify),
        resize=resize,
    )
    _warn_of_resize(resize, predictor.trained_on)
    config = predictor.model.config
    read = {
        name: read_adapter(folder, config, verify=options.verify)
        for name, folder in adapters.items()
    }
    for adapter in read.values():
        adapter.check_base(fingerprint_of(predictor.model))
    trained_on = {name: TrainedOn.read(folder) for name, folder in adapters.items()}
    return Loaded(
        predictor=predictor,
        adapters={name: adapter.layers for name, adapter in read.items()},
        trained_on={name: each for name, each in trained_on.items() if each is not None},
    )


def _resize(adapters: Mapping[str, Path]) -> Resize | None:
    """How the adapters were trained to see images; None without any that say so.

    Raises OptionError where they differ: one model prepares the images for all of them.
    """
    from paligemma.checkpoints.trained_on import TrainedOn

    read = {name: TrainedOn.read(folder) for name, folder in adapters.items()}
    resizes = {name: trained.resize for name, trained in read.items() if trained is not None}
    if len(set(resizes.values())) > 1:
        raise OptionError(
            "The adapters were trained with different --resize: "
            f"{', '.join(f'{name} with {resize}' for name, resize in resizes.items())}. Serve "
            "them in processes of their own."
        )
    return next(iter(resizes.values()), None)


def _warn_of_resize(resize: Resize | None, trained_on: TrainedOn | None) -> None:
    """Log that the model itself sees images in another way than alone, if that is so."""
    from paligemma.server.logs import log

    usual = "squash" if trained_on is None else trained_on.resize
    if resize not in (None, usual):
        log("images_fitted_for_adapters", level=logging.WARNING, resize=resize, usual=usual)


def _with_caches(limits: Limits, cache_mb: int | None) -> Limits:
    if cache_mb is None:
        return limits
    size = cache_mb * 2**20 // 2
    return replace(limits, image_cache_bytes=size, prefix_cache_bytes=size)


def _limits(limits: Limits, changes: Sequence[str]) -> Limits:
    kinds = {field.name: field.type for field in fields(limits)}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in kinds:
            raise OptionError(f"There is no limit {name!r}. Limits: {', '.join(kinds)}.")
        try:
            value = int(text) if kinds[name] == "int" else float(text)
        except ValueError:
            raise OptionError(
                f"--limit is {change!r}; it must have the form NAME=NUMBER."
            ) from None
        change_by_name: dict[str, Any] = {name: value}
        limits = replace(limits, **change_by_name)
    return limits


def _check_name(name: str) -> str:
    if not _MODEL_NAME.fullmatch(name):
        raise OptionError(
            f"--name is {name!r}; it may contain letters, digits, dots, dashes, underscores and "
            "slashes only."
        )
    return name


def _adapters(values: Sequence[str], model: str) -> dict[str, Path]:
    """Name -> folder. Raises OptionError for invalid values, before anything is loaded."""
    adapters: dict[str, Path] = {}
    for value in values:
        name, _, folder = value.partition("=")
        if not _ADAPTER_NAME.fullmatch(name) or not folder:
            raise OptionError(
                f"--adapter is {value!r}; it must have the form NAME=FOLDER, where NAME contains "
                "letters, digits, dots, dashes and underscores only."
            )
        if name in adapters or name == model:
            raise OptionError(f"Two models have the name {name!r}. Choose another name for one.")
        if not Path(folder).is_dir():
            raise OptionError(f"The folder {folder!r} of --adapter {name} does not exist.")
        adapters[name] = Path(folder)
    return adapters


def _names(host: str, allowed: Sequence[str]) -> tuple[str, ...]:
    for name in allowed:
        if not _HOST_NAME.fullmatch(name):
            raise OptionError(
                f"--allow-host is {name!r}, which is not a host name. Give one without port and "
                "path."
            )
    listed = list(allowed)
    if host not in ("0.0.0.0", "::", ""):
        listed.append(f"[{host}]" if ":" in host else host)
    return tuple(name.lower().removesuffix(".") for name in listed)


def _hosts(
    option: str, values: Sequence[str], pattern: re.Pattern[str], form: str
) -> tuple[str, ...]:
    """The values of an option in lower case. Raises OptionError for one without this form."""
    for value in values:
        if not pattern.fullmatch(value):
            raise OptionError(f"{option} is {value!r}; it must have the form {form}.")
    return tuple(value.lower() for value in values)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
