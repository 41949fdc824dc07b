"""The certificate of a model: does this checkpoint, on this path, still compute what was trained?

certify(request)
  files        SHA-256, against the checksums next to them
  config       against the release it claims to be, or the rules of the family
  weights      statistics; tensor by tensor against mini, or against an original
  reference    the plain float32 path runs the probes (one model in memory at a time)
  path         the path under test runs them too: logits, tokens, boxes, masks, layers
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from paligemma.certify.agreement import (
    LayerReport,
    Limits,
    ProbeReport,
    TaskReport,
    check_agreement,
    compare_layers,
    compare_probes,
    judge_tasks,
    limits_for,
)
from paligemma.certify.checkpoint import Checkpoint, files_of, open_checkpoint
from paligemma.certify.damage import Difference, compare_tensors, other_shapes
from paligemma.certify.findings import Finding, Level, place_in_words
from paligemma.certify.known import check_mini_outputs, check_published, known_mini
from paligemma.certify.paths import PathOutputs, run_path
from paligemma.certify.probes import ProbeInputs, build_inputs
from paligemma.certify.statistics import TensorSummary, check_weights, summarize
from paligemma.certify.structure import (
    MINI_FOLDER,
    Claim,
    check_config,
    check_sizes,
    check_tokenizer,
    claim_of,
    flat_config,
    key_of,
    show_value,
)
from paligemma.checkpoints.files import CHECKSUM_FILE, read_json, sha256_of
from paligemma.checkpoints.hub import Source
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.tokenizer_file import TOKENIZER_FILE
from paligemma.checkpoints.trained_on import TRAINED_ON_FILE
from paligemma.config import MASK_CODEC_FILE, RELEASES
from paligemma.errors import (
    CheckpointError,
    OptionError,
    PaliGemmaError,
    TokenizerError,
    counted,
)
from paligemma.fast.accelerate import quantization_of
from paligemma.fast.device import choose_device
from paligemma.fast.kernels.library import kernels, return_freed_memory
from paligemma.fast.weights import Plain, Weights
from paligemma.loading import MINI, find_checkpoint, load
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import MaskCodec

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CertifyRequest:
    """What to certify: a model, and how it is loaded, as for `paligemma.load`."""

    model: str | Path = MINI
    weights: Weights = "auto"
    device: str | torch.device = "auto"
    adapter: Path | None = None
    source: Source = field(default_factory=Source)
    mask_codec: Path | None = None
    against: str | Path | None = None
    """The original, where the model is a copy or a conversion of one."""
    release: str | None = None
    """The release that the model claims to be, such as "paligemma2-3b-mix-224"."""
    probes: bool = True
    """Also load the model and compute; without, only files, config and weights are checked."""
    stops_early: bool = False
    """Do not compute with a model whose files, config or weights have failed already."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The result; `to_dict` is the JSON report."""

    verdict: Literal["pass", "fail"]
    model: str
    origin: str
    """What is known of the weights: that they are the original's, or that nothing is known."""
    findings: tuple[Finding, ...]
    path: dict[str, Any]
    files: tuple[dict[str, Any], ...]
    structure: dict[str, Any]
    limits: Limits | None
    tasks: tuple[TaskReport, ...]
    probes: tuple[ProbeReport, ...]
    layers: tuple[LayerReport, ...]
    costs: dict[str, dict[str, Any]]
    published: tuple[dict[str, Any], ...]
    differences: tuple[Difference, ...]
    tensors: tuple[TensorSummary, ...]
    versions: dict[str, str]
    seconds: float
    created: str
    """UTC."""

    @property
    def passes(self) -> bool:
        return self.verdict == "pass"

    def to_dict(self) -> dict[str, Any]:
        """As JSON, signed with the SHA-256 of its content."""
        content = asdict(self)
        content["tensors"] = [_without_values(tensor) for tensor in content["tensors"]]
        content["layers"] = [
            row | {"passes": layer.passes}
            for row, layer in zip(content["layers"], self.layers, strict=True)
        ]
        content = {"format": 1, **_finite(content)}
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}

    def summary(self) -> str:
        """One line per finding, after the verdict."""
        lines = [f"{self.model}: {self.verdict}. {self.origin}"]
        lines += [f"{f.level}: {f.check}: {f.place}: {f.text}" for f in self.findings]
        return "\n".join(lines)


def _without_values(tensor: dict[str, Any]) -> dict[str, Any]:
    dropped = ("values", "head_digests", "zero_rows")
    rest = {name: value for name, value in tensor.items() if name not in dropped}
    return rest | {"num_zero_rows": len(tensor["zero_rows"])}


def _finite(value: Any) -> Any:
    """Infinity and NaN become text, which JSON can hold; tuples become lists."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def certify(request: CertifyRequest, progress: Progress = lambda text: None) -> Certificate:
    """Check a model. Raises OptionError, HubError, or CheckpointError for a folder without one."""
    return _Run(request, progress).certificate()


class _Run:
    """One certification: parts of the report as they become known."""

    def __init__(self, request: CertifyRequest, progress: Progress) -> None:
        self.request = request
        self.progress = progress
        self.findings: list[Finding] = []
        self.origin = "What was trained is not known, so only the computation was checked."
        self.path = find_checkpoint(request.model, request.source)
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self.tokenizer: Tokenizer | None = None
        self.parts: dict[str, Any] = {
            "path": {}, "files": (), "structure": {}, "limits": None, "tasks": (), "probes": (),
            "layers": (), "costs": {}, "published": (), "differences": (), "tensors": (),
        }  # fmt: skip

    def certificate(self) -> Certificate:
        started = time.monotonic()
        self._check_files()
        try:
            with open_checkpoint(self.path) as checkpoint:
                claim = self._check_contents(checkpoint)
        except CheckpointError as error:
            self._add("fail", "files", self.path.name, str(error))
        else:
            has_failed = any(finding.level == "fail" for finding in self.findings)
            if self.request.probes and not (has_failed and self.request.stops_early):
                self._check_paths(claim)
        fails = any(finding.level == "fail" for finding in self.findings)
        order = ("fail", "unusual", "note")
        return Certificate(
            verdict="fail" if fails else "pass",
            model=str(self.request.model),
            origin=self.origin,
            findings=tuple(sorted(self.findings, key=lambda f: order.index(f.level))),
            versions=_versions(),
            seconds=time.monotonic() - started,
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            **self.parts,
        )

    def _add(self, level: Level, check: str, place: str, text: str) -> None:
        self.findings.append(Finding(level=level, check=check, place=place, text=text))

    # The files

    def _check_files(self) -> None:
        self.progress("Reading the files")
        listed: dict[str, Any] = {}
        if (self.folder / CHECKSUM_FILE).is_file():
            listed = read_json(self.folder / CHECKSUM_FILE).get("sha256") or {}
        rows = []
        for path in files_of(self.path):
            if path.name == CHECKSUM_FILE:
                continue
            digest, expected = sha256_of(path), listed.get(path.name)
            if expected is not None and digest != expected:
                self._add(
                    "fail",
                    "files",
                    path.name,
                    f"it was changed after it was written: {CHECKSUM_FILE} has another SHA-256.",
                )
            rows.append(
                {
                    "name": path.name,
                    "bytes": path.stat().st_size,
                    "sha256": digest,
                    "listed": None if expected is None else expected == digest,
                }
            )
        self.parts["files"] = tuple(rows)

    def _digest(self, name: str) -> str | None:
        return next((row["sha256"] for row in self.parts["files"] if row["name"] == name), None)

    # What the files contain

    def _check_contents(self, checkpoint: Checkpoint) -> Claim:
        claim = self._claim(checkpoint)
        structure, findings = check_sizes(checkpoint, claim)
        self.parts["structure"] = structure
        self.findings += [*findings, *self._config_findings(checkpoint, claim)]
        tokenizer = _read_tokenizer(checkpoint.tokenizer)
        if isinstance(tokenizer, Tokenizer):
            self.tokenizer = tokenizer
        digest = self._digest(TOKENIZER_FILE)
        self.findings += check_tokenizer(tokenizer, digest, checkpoint, claim)
        self.progress("Reading the weights")
        summaries = [summarize(rows, checkpoint.config) for rows in checkpoint.parameters.values()]
        self.parts["tensors"] = tuple(summaries)
        statistics = list(check_weights(checkpoint, summaries))
        if self.request.against is not None:
            self._compare(checkpoint)
        elif claim.is_mini:
            self._compare_with_mini(checkpoint)
        if self.parts["differences"] or self.origin.startswith("mini"):
            # Compared with an original, what is only unusual needs no guesses.
            statistics = [finding for finding in statistics if finding.level == "fail"]
        self.findings += statistics
        return claim

    def _claim(self, checkpoint: Checkpoint) -> Claim:
        name = str(self.request.release or self.request.model)
        if self.request.release is None:
            return claim_of(checkpoint.config, name)
        release = next((r for r in RELEASES if name in (r.variant, r.hub_id)), None)
        if release is None:
            raise OptionError(
                f"There is no release {name!r}. `paligemma models` lists the releases."
            )
        return Claim(
            name=release.variant,
            config=release.config,
            is_release=True,
            variant=release.variant,
        )

    def _config_findings(self, checkpoint: Checkpoint, claim: Claim) -> Iterator[Finding]:
        """The config's findings; what the original has too is no damage of this copy."""
        found = list(check_config(checkpoint, claim))
        if self.request.against is None:
            yield from found
            return
        with open_checkpoint(
            find_checkpoint(self.request.against, self.request.source)
        ) as original:
            before, after = flat_config(original.config), flat_config(checkpoint.config)
            usual = {(f.place, f.text) for f in check_config(original, claim)}
        changed = {key_of(name): name for name, value in after.items() if value != before[name]}
        for finding in found:
            if finding.place in changed:
                continue
            level, text = finding.level, finding.text
            if (finding.place, finding.text) in usual:
                level, text = "note", f"{text} The original has this too."
            yield Finding(level=level, check="config", place=finding.place, text=text)
        trained = {finding.place: f" {finding.text}" for finding in found}
        for key, name in changed.items():
            yield Finding(
                level="fail",
                check="config",
                place=key,
                text=f"{show_value(name, after[name])}; the original has "
                f"{show_value(name, before[name])}.{trained.get(key, '')}",
            )

    def _compare(self, checkpoint: Checkpoint) -> None:
        assert self.request.against is not None
        self.progress(f"Comparing with {self.request.against}")
        path = find_checkpoint(self.request.against, self.request.source)
        with open_checkpoint(path) as original:
            theirs = original.tokenizer
            self.findings += [
                Finding(level="fail", check="against", place="shapes", text=f"{text}.")
                for text in other_shapes(original, checkpoint)[:10]
            ]
            differences = list(compare_tensors(original, checkpoint))
        self.parts["differences"] = tuple(differences)
        wrong = [d for d in differences if d.kind in ("damaged", "changed")]
        self._report(wrong, differences, str(self.request.against))
        counts = {kind: sum(d.kind == kind for d in differences) for kind in _KIND_WORDS}
        listed = ", ".join(f"{n} {_KIND_WORDS[kind]}" for kind, n in counts.items() if n)
        self.origin = f"Tensors compared with {self.request.against}: {listed}."
        if theirs not in (None, checkpoint.tokenizer):
            self._add("fail", "against", TOKENIZER_FILE, "it is not the original's.")

    def _report(
        self, wrong: Sequence[Difference], differences: Sequence[Difference], original: str
    ) -> None:
        """Name what was damaged first; of tensors that only have other values, the worst."""
        damaged = [d for d in wrong if d.kind == "damaged"]
        changed = sorted(
            (d for d in wrong if d.kind == "changed"), key=lambda d: d.relative, reverse=True
        )
        for difference in (damaged + changed)[:_MAX_LISTED]:
            self._add(
                "fail",
                "against",
                difference.name,
                f"{place_in_words(difference.name)}: {difference.text}, compared with {original} "
                f"(largest difference {difference.largest:.3g}).",
            )
        rest = len(wrong) - _MAX_LISTED
        if rest > 0:
            self._add(
                "fail", "against", "weights",
                f"{rest} more tensors differ, of {len(differences)} in all.",
            )  # fmt: skip

    def _compare_with_mini(self, checkpoint: Checkpoint) -> None:
        """A model of mini's sizes is mini, a damaged mini, or one that was trained from it."""
        known = known_mini()["sha256"]
        if self.path.resolve() == MINI_FOLDER.resolve():
            edited = [n for n, digest in known.items() if self._digest(n) not in (digest, None)]
            for name in edited:
                self._add("fail", "files", name, "it is not the file of mini's release.")
            if not edited:
                self.origin = "mini, as released: every file has the known SHA-256."
            return
        with open_checkpoint(MINI_FOLDER) as mini:
            differences = list(compare_tensors(mini, checkpoint))
        self.parts["differences"] = tuple(differences)
        damaged = [d for d in differences if d.kind == "damaged"]
        changed = [d for d in differences if d.kind == "changed"]
        same = len(differences) - len(damaged) - len(changed)
        is_trained = (self.folder / TRAINED_ON_FILE).is_file()
        if not changed and not damaged:
            self.origin = "mini: every tensor is the released one."
            self._compare_small_files(known)
        elif all(d.relative > 0.5 for d in changed) and len(changed) > 0.9 * len(differences):
            self.origin = "A model of mini's sizes with weights of its own; they are not known."
        elif is_trained or len(changed) >= 0.2 * len(differences):
            self._report(damaged, differences, "mini")
            largest = max((d.relative for d in changed), default=0.0)
            self.origin = (
                f"Trained further from mini: {same} of {len(differences)} tensors are mini's, the "
                f"others differ by up to {largest:.2g} of their size. What it learned is not known."
            )
        else:
            self._report(damaged + changed, differences, "mini")
            others = counted(len(differences) - same, "tensor")
            self.origin = f"A copy of mini; {others} not as released."
            self._compare_small_files(known)

    def _compare_small_files(self, known: dict[str, str]) -> None:
        for name in (TOKENIZER_FILE, MASK_CODEC_FILE):
            if self._digest(name) not in (known.get(name), None):
                self._add("fail", "files", name, "mini's weights are here, but this is not mini's.")

    # What it computes

    def _check_paths(self, claim: Claim) -> None:
        try:
            self._check_reference()
            self.progress("Running the float32 reference")
            started = time.monotonic()
            model, processor, codec = self._load(Plain("float32"), "cpu")
            self.parts["costs"]["float32 reference"] = {"load_seconds": time.monotonic() - started}
            inputs = build_inputs(model.config, processor)
            reference = run_path(model, inputs)
            self.parts["costs"]["float32 reference"] |= asdict(reference.cost)
            if claim.is_mini and self.origin.startswith("mini") and self.request.adapter is None:
                self.findings += filter(None, [check_mini_outputs(inputs, reference)])
            del model
            _free()
            self._check_path(claim, inputs, reference, codec)
        except PaliGemmaError as error:
            self._add("fail", "computation", type(error).__name__, str(error))

    def _check_reference(self) -> None:
        """mini's logits show whether this installation's float32 path is right."""
        self.progress("Checking the reference itself")
        mini = load(MINI_FOLDER, weights=Plain("float32"), device="cpu")
        inputs = build_inputs(mini.model.config, mini.processor)
        few = replace(
            inputs,
            probes=inputs.probes[:1],
            prefixes=inputs.prefixes[:1],
            batch=inputs.prefixes[0],
            batch_rows=(0,),
        )
        problem = check_mini_outputs(few, run_path(mini.model, few))
        if problem is not None:
            self.findings.append(problem)

    def _check_path(
        self, claim: Claim, inputs: ProbeInputs, reference: PathOutputs, codec: MaskCodec | None
    ) -> None:
        self.progress("Running the path under test")
        started = time.monotonic()
        model, processor, _ = self._load(self.request.weights, self.request.device)
        seconds = time.monotonic() - started
        limits = limits_for(model, quantization_of(model))
        tested = run_path(model, inputs, reference)
        compiled = kernels()
        path = {
            "form": limits.form,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": quantization_of(model),
            "device": str(model.device),
            "decoder": type(model.decoder).__name__,
            "kernels": compiled.level if compiled is not None else None,
        }
        probes = compare_probes(inputs, reference, tested, limits, self.tokenizer, codec)
        tasks = judge_tasks(probes, limits)
        layers = compare_layers(reference, tested, limits)
        self.findings += check_agreement(inputs, tested, tasks, layers, limits)
        if tested.trace_problem is not None:
            self._add(
                "note", "layers", "path under test",
                f"its layers cannot be seen one by one ({tested.trace_problem}).",
            )  # fmt: skip
        self.parts["costs"]["path under test"] = {
            "load_seconds": seconds, **asdict(tested.cost),
        }  # fmt: skip
        self.parts |= {
            "path": path, "limits": limits, "tasks": tuple(tasks), "probes": tuple(probes),
            "layers": tuple(layers),
        }  # fmt: skip
        if claim.variant is not None and processor is not None:
            rows, findings = check_published(
                Predictor(model=model, processor=processor, mask_codec=codec), claim.variant
            )
            self.parts["published"] = tuple(rows)
            self.findings += findings
            if rows and not findings:
                self.origin = f"{claim.variant}: it answers what others published of it."

    def _load(
        self, weights: Weights, device: str | torch.device
    ) -> tuple[PaliGemma, Processor | None, MaskCodec | None]:
        if self.tokenizer is None:
            model = load_model(self.path, weights=weights, device=choose_device(device))
            return model, None, None
        predictor = load(
            self.path,
            weights=weights,
            device=device,
            adapter=self.request.adapter,
            mask_codec=self.request.mask_codec,
        )
        return predictor.model, predictor.processor, predictor.mask_codec


_MAX_LISTED = 12
_KIND_WORDS = {
    "equal": "bit-equal",
    "rounded": "equal after rounding",
    "quantized": "equal up to quantization",
    "damaged": "damaged",
    "changed": "changed",
}


def _free() -> None:
    gc.collect()
    return_freed_memory()


def _read_tokenizer(model_proto: bytes | None) -> Tokenizer | TokenizerError | None:
    if model_proto is None:
        return None
    try:
        return Tokenizer(model_proto)
    except TokenizerError as error:
        return error


def _versions() -> dict[str, str]:
    from paligemma import __version__

    return {
        "paligemma": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
