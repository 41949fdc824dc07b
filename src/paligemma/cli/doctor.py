"""`paligemma doctor`: check this machine and what it can run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from paligemma.cli.console import print_json, print_table, print_text
from paligemma.cli.memory import in_gigabytes, machine_memory, memory_need
from paligemma.cli.options import Json
from paligemma.config import RELEASES, Release
from paligemma.errors import PaliGemmaError
from paligemma.process_memory import peak_bytes
from paligemma.threads import available_cpus, share_cpus, waits_passively

_PACKAGES = ("torch", "numpy", "pillow", "sentencepiece", "safetensors", "huggingface_hub")
_ASKED_FOR = "google/paligemma2-3b-mix-224"
_DTYPES = ("float32", "bfloat16", "float16")
_FORMS = {"int4": "int4", "int8": "int8", "bfloat16": "bf16", "float32": "f32"}


def doctor(
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Also check whether the model hub can be reached. This uses the network.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine and show which models it can run.

    Checks versions, memory, devices, data types, compiled kernels, access to the model hub and
    the built-in model.
    """
    report = examine(online)
    if as_json:
        print_json(report)
    else:
        for line in describe(report):
            print_text(line)
        _print_models(report)


def examine(online: bool) -> dict[str, Any]:
    """All checks, as plain JSON values; sizes in bytes, times in seconds."""
    import paligemma

    devices = _devices()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "paligemma": paligemma.__version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "torchvision": _version("torchvision"),
        "transformers": _version("transformers"),
        "cores": os.cpu_count(),
        "threads": _threads(),
        "kernels": _kernels(),
        "devices": devices,
        "dtypes": _dtype_checks([device["name"] for device in devices]),
        "models": _fits(devices),
        "hub": _hub(online),
        "mini": _try_mini(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _threads() -> dict[str, Any]:
    import torch

    share_cpus()
    return {
        "available_cpus": available_cpus(),
        "used": torch.get_num_threads(),
        "wait_passively": waits_passively(),
    }


def _kernels() -> dict[str, Any]:
    from paligemma.fast.kernels.build import LEVELS, find_compiler, library_path
    from paligemma.fast.kernels.library import kernels

    best = kernels()
    return {
        "level": None if best is None else best.level,
        "compiled": [level for level in LEVELS if library_path(level).is_file()],
        "levels": list(LEVELS),
        "compiler": find_compiler(),
    }


def _devices() -> list[dict[str, Any]]:
    import torch

    total, free = machine_memory()
    devices = [{"name": "cpu", "title": platform.machine(), "total": total, "free": free}]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        title = torch.cuda.get_device_name(index)
        devices.append({"name": f"cuda:{index}", "title": title, "total": total, "free": free})
    if torch.backends.mps.is_available():
        limit = torch.mps.recommended_max_memory()
        devices.append({"name": "mps", "title": "Apple GPU", "total": limit, "free": limit})
    return devices


def _dtype_checks(devices: list[str]) -> list[dict[str, Any]]:
    import torch

    from paligemma.fast.device import computes_correctly

    return [
        {
            "device": device,
            "dtype": dtype,
            "ok": computes_correctly(torch.device(device), getattr(torch, dtype)),
        }
        for device in devices
        for dtype in _DTYPES
    ]


def _fits(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every released shape: the memory it needs, and the devices where it fits."""
    shapes: dict[tuple[str, str, int], Release] = {}
    for release in RELEASES:
        shapes.setdefault((release.family, release.size, release.resolution), release)
    rows = []
    for (family, size, resolution), release in shapes.items():
        row: dict[str, Any] = {"model": f"{family} {size} {resolution}"}
        for form in _FORMS:
            need = memory_need(release.config, form, release.text_length).total
            fits = {device["name"]: need <= device["free"] for device in devices}
            row[form] = {"bytes": need, "fits": fits}
        rows.append(row)
    return rows


def _hub(online: bool) -> dict[str, Any]:
    from huggingface_hub import constants, get_token

    from paligemma.checkpoints.hub import is_reachable, may_read

    reachable = is_reachable(_ASKED_FOR) if online else None
    return {
        "token": get_token() is not None,
        "cache": str(constants.HF_HUB_CACHE),
        "offline": bool(constants.HF_HUB_OFFLINE),
        "reachable": reachable,
        "may_read": may_read(_ASKED_FOR) if reachable else None,
    }


def _try_mini() -> dict[str, Any]:
    import paligemma
    from paligemma import mini

    image = Path(mini.__file__).parent / "sample.png"
    try:
        start = time.perf_counter()
        predictor = paligemma.load("mini", device="cpu")
        loaded = time.perf_counter()
        answer = predictor.caption(image).text
    except PaliGemmaError as problem:
        return {"ok": False, "problem": str(problem)}
    return {
        "ok": bool(answer),
        "problem": None,
        "caption": answer,
        "truth": mini.SAMPLE_CAPTION,
        "load_seconds": round(loaded - start, 3),
        "caption_seconds": round(time.perf_counter() - loaded, 3),
        "peak_memory_bytes": peak_bytes(),
    }


def describe(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines of text."""
    packages = ", ".join(
        f"{name} {number or 'MISSING'}" for name, number in report["packages"].items()
    )
    yield f"paligemma {report['paligemma']}, Python {report['python']}"
    yield f"{report['system']}, {report['cores']} cores"
    threads = report["threads"]
    yield (
        f"threads: {threads['used']} on {threads['available_cpus']} available CPUs; they "
        + (
            "sleep while they wait, so other programs may run"
            if threads["wait_passively"]
            else "spin while they wait, which is slow alongside other programs: unset "
            "OMP_WAIT_POLICY, GOMP_SPINCOUNT and KMP_BLOCKTIME"
        )
    )
    yield f"packages: {packages}"
    if report["torchvision"] is not None:
        yield (
            f"torchvision {report['torchvision']} is installed. paligemma does not use it, and a "
            "version that does not match torch breaks transformers. If imports fail, uninstall it."
        )
    yield _describe_kernels(report["kernels"])
    for device in report["devices"]:
        free, total = in_gigabytes(device["free"]), in_gigabytes(device["total"])
        yield f"{device['name']} ({device['title']}): {free} of {total} free"
    yield "data types (avoid float16: the released models can exceed its range)"
    for check in report["dtypes"]:
        where = f"{check['dtype']} on {check['device']}"
        yield f"{where} {'works' if check['ok'] else 'does NOT work'}"
    hub = report["hub"]
    yield (
        "model hub: an access token is set"
        if hub["token"]
        else "model hub: no access token. Google's weights are gated: accept their terms on the "
        "model's page, then set HF_TOKEN or run `hf auth login`"
    )
    if hub["offline"]:
        yield "model hub: HF_HUB_OFFLINE is set, so nothing can be downloaded"
    if hub["reachable"] is not None:
        yield f"model hub: {'can' if hub['reachable'] else 'can NOT'} be reached"
    if hub["may_read"] is not None:
        yield (
            f"gated weights: {_ASKED_FOR} {'can' if hub['may_read'] else 'can NOT'} be downloaded"
            + (
                ""
                if hub["may_read"]
                else f"; accept its terms at https://huggingface.co/{_ASKED_FOR}"
            )
        )
    yield f"downloads are stored in {hub['cache']}"
    tried = report["mini"]
    if tried["ok"]:
        yield (
            f"mini loads in {tried['load_seconds']} s and answers in {tried['caption_seconds']} s: "
            f"{tried['caption']!r} (expected: {tried['truth']!r}); "
            f"peak memory {in_gigabytes(tried['peak_memory_bytes'])}"
        )
    else:
        yield f"mini does NOT work: {tried['problem']}"


def _describe_kernels(kernels: dict[str, Any]) -> str:
    missing = [level for level in kernels["levels"] if level not in kernels["compiled"]]
    remedy = (
        "run `python -m paligemma.fast.kernels.build`"
        if kernels["compiler"] is not None
        else "install a C++ compiler (g++), then run `python -m paligemma.fast.kernels.build`"
    )
    if kernels["level"] is None and missing:
        return (
            f"kernels: NONE. bfloat16 and quantized models run in plain torch, several times "
            f"slower on this processor: {remedy}"
        )
    if kernels["level"] is None:
        return "kernels: none of the compiled ones runs on this processor; plain torch is used"
    line = f"kernels: {kernels['level']}"
    return f"{line} (not compiled: {', '.join(missing)}; {remedy})" if missing else line


def _print_models(report: dict[str, Any]) -> None:
    names = [device["name"] for device in report["devices"]]
    headings = ["model", *(f"{form} {x}" for form in _FORMS.values() for x in ("needs", *names))]
    rows = []
    for row in report["models"]:
        cells = [row["model"]]
        for form in _FORMS:
            cells.append(in_gigabytes(row[form]["bytes"]))
            cells += ["yes" if row[form]["fits"][name] else "no" for name in names]
        rows.append(cells)
    print_table("Does it fit into the memory that is free now?", headings, rows)
