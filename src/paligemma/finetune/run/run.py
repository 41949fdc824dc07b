"""run: labeled images -> a scored, saved model, in one training run.

    check the data -> split off validation records -> load the model -> add adapters -> train,
    scoring after every epoch -> load the best weights -> save -> score -> report.html

The same command in the same folder resumes an interrupted run. Nothing is printed: `on_event`
receives the messages.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paligemma.adapters.lora import add_lora
from paligemma.data.check import check_data
from paligemma.data.open import Records, open_data
from paligemma.data.targets import TargetBuilder
from paligemma.errors import DataError, OptionError, counted
from paligemma.evals.evaluation import Evaluation
from paligemma.fast.weights import DtypeName, Plain, Trainable
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.distributed import World, joined
from paligemma.finetune.examples import RecordExamples
from paligemma.finetune.learner import finetune, restore
from paligemma.finetune.run.options import RunOptions, plan_training
from paligemma.finetune.run.report import write_report
from paligemma.finetune.run.validation import SCORE, Validation
from paligemma.finetune.state import best_folder
from paligemma.loading import load
from paligemma.predictor import Predictor

ADAPTER_FOLDER = "adapter"
MODEL_FOLDER = "model"
RUN_FILE = "run.json"
EVALUATION_FOLDER = "evaluation"
_VALIDATION_FOLDER = "validation"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The results of a finished run. Without validation there is no evaluation."""

    saved: Path
    report: Path
    evaluation: Evaluation | None


def run(
    options: RunOptions,
    out: Path,
    *,
    on_event: Callable[[str], None] = lambda text: None,
    on_log: Callable[[dict[str, Any], TrainConfig], None] | None = None,
) -> RunResult | None:
    """Train according to the options; `out` gets adapter or model, logs, scores and report.html.

    Processes started by `torchrun` share the work, and only the first one returns a result. Raises
    DataError for data from which nothing can be learned, and whatever loading and training raise.
    """
    with joined() as world:
        predictor, validation = _train(options, out, world, on_event, on_log)
    if not world.is_first:
        return None
    if world.size > 1:  # the model is sharded; the trained weights are in the checkpoints
        predictor = _load(options)
        if options.trains_adapters:
            add_lora(predictor.model, options.lora_config(), seed=options.seed)
        validation = None if validation is None else replace(validation, predictor=predictor)
    restore(predictor.model, best_folder(out))
    saved = _save(options, predictor, out)
    on_event(f"saved {saved}")
    evaluation = None
    if validation is not None:
        on_event(f"scoring {counted(len(validation.records), 'record')}")
        evaluation = validation.evaluate(out / EVALUATION_FOLDER)
    report = write_report(out, saved, evaluation, validation)
    return RunResult(saved=saved, report=report, evaluation=evaluation)


def _train(
    options: RunOptions,
    out: Path,
    world: World,
    on_event: Callable[[str], None],
    on_log: Callable[[dict[str, Any], TrainConfig], None] | None,
) -> tuple[Predictor, Validation | None]:
    report = on_event if world.is_first else (lambda text: None)
    out.mkdir(parents=True, exist_ok=True)
    records = _open(options, options.data, out / "bad_records.jsonl")
    report(f"{records.summary} ({counted(len(records), 'record')})")
    training, held_out = _split(options, records, out)
    predictor = _load(options)
    if predictor.note:
        report(predictor.note)
    targets = _targets(options, records, predictor)
    _check(training, targets, report)
    config = plan_training(options, predictor.model.config, len(training.slots))
    config = replace(config, best_metric=SCORE if held_out else None)
    if options.trains_adapters:
        add_lora(predictor.model, options.lora_config(), seed=options.seed)
    if world.is_first:
        _write_facts(out, options, config, predictor)
    folder = out / (_VALIDATION_FOLDER if world.is_first else f".{world.rank}.{_VALIDATION_FOLDER}")
    validation = None
    if held_out:
        validation = Validation(
            predictor=predictor,
            records=held_out,
            targets=replace(targets, options=replace(targets.options, noise_token=None)),
            folder=folder,
            metrics=options.metrics,
            ask=options.ask,
            limit=options.validation_limit,
        )
        report(f"{counted(len(training), 'record')} for training, {len(held_out)} for validation")
    report(_describe(options, config, predictor))
    finetune(
        predictor,
        RecordExamples(records=training, targets=targets),
        config,
        out,
        method=options.chosen_method,
        validate=validation,
        on_log=None if on_log is None else (lambda record: on_log(record, config)),
        settings={"model": options.model, "adapters": _adapters(options)},
    )
    if not world.is_first:
        shutil.rmtree(folder, ignore_errors=True)
    return predictor, validation


def _open(options: RunOptions, data: str, bad_file: Path) -> Records:
    return open_data(
        data,
        format=options.format,
        split=options.split,
        prefix=options.prefix,
        images=options.images,
        on_bad_record=options.on_bad_record,
        bad_file=bad_file,
    )


def _split(options: RunOptions, records: Records, out: Path) -> tuple[Records, Records | None]:
    if options.validation is not None:
        held_out = _open(options, options.validation, out / "bad_validation_records.jsonl")
        same = {r.record_id for r in records} & {r.record_id for r in held_out}
        if same and options.validation == options.data:
            raise OptionError(
                f"{options.data} is given for training and for validation, so the scores would "
                "measure memorization. Give other data, or use validation_split."
            )
        return records, held_out
    if options.validation_split == 0:
        return records, None
    ids = validation_ids([slot.record_id for slot in records.slots], options.validation_split)

    def part(is_validation: bool) -> Records:
        return replace(
            records,
            records=tuple(r for r in records.records if (r.record_id in ids) == is_validation),
            slots=tuple(s for s in records.slots if (s.record_id in ids) == is_validation),
        )

    training, held_out = part(False), part(True)
    if not training.records or not held_out.records:
        raise DataError(
            f"{counted(len(records), 'record is', 'records are')} too few for a validation split. "
            "Give validation data, or "
            "train without validation: validation_split=0."
        )
    return training, held_out


def validation_ids(ids: list[str], share: float) -> frozenset[str]:
    """The ids with the smallest hashes: this share of them, at least one.

    An id keeps its hash when other records are added or removed.
    """
    ordered = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).digest())
    return frozenset(ordered[: max(1, round(share * len(ids)))])


def _load(options: RunOptions) -> Predictor:
    recipe = options.loaded_recipe
    resize = "squash" if recipe is None else recipe.resize
    if options.chosen_method == "qlora":
        return load(options.model, weights=Trainable(options.base_format), resize=resize)
    if options.chosen_method == "lora":
        return load(options.model, weights=Trainable(), resize=resize)
    dtype: DtypeName = "bfloat16" if options.bfloat16_weights else "float32"
    return load(options.model, weights=Plain(dtype), resize=resize)


def _targets(options: RunOptions, records: Records, predictor: Predictor) -> TargetBuilder:
    return TargetBuilder(
        processor=predictor.processor,
        class_names=records.class_names,
        task=options.task or records.task,
        mask_codec=predictor.mask_codec,
        options=options.target_options(),
    )


def _check(records: Records, targets: TargetBuilder, on_event: Callable[[str], None]) -> None:
    report = check_data(records, targets)
    if report.errors:
        raise DataError(
            f"The data set has {counted(len(report.errors), 'error')} to fix before training. The "
            "first: "
            f"{report.errors[0].text} `paligemma data check` shows all."
        )
    for finding in report.findings:
        on_event(f"{finding.level}: {finding.text}")


def _adapters(options: RunOptions) -> dict[str, Any] | None:
    if not options.trains_adapters:
        return None
    base = options.base_format if options.chosen_method == "qlora" else None
    return {**asdict(options.lora_config()), "base": base}


def _describe(options: RunOptions, config: TrainConfig, predictor: Predictor) -> str:
    total = sum(p.numel() for p in predictor.model.parameters())
    if options.trains_adapters:
        trained = sum(p.numel() for p in predictor.model.parameters() if p.requires_grad)
        weights = f"{trained:,} adapter weights in addition to {total - trained:,} frozen weights"
    else:
        weights = f"{total:,} weights"
    return (
        f"{options.chosen_method}: {weights}; {counted(config.total_steps, 'step')} of "
        f"{counted(config.batch_size, 'example')}, learning rate {config.learning_rate:g}"
    )


def _save(options: RunOptions, predictor: Predictor, out: Path) -> Path:
    """Save completely or not at all, in place of what the same run saved before."""
    name = ADAPTER_FOLDER if options.trains_adapters else MODEL_FOLDER
    final, partial = out / name, out / f".{name}.unfinished"
    shutil.rmtree(partial, ignore_errors=True)
    (predictor.save_adapter if options.trains_adapters else predictor.save)(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    return final


def _write_facts(out: Path, options: RunOptions, config: TrainConfig, predictor: Predictor) -> None:
    facts: Mapping[str, Any] = {
        "command": shlex.join(["paligemma", *sys.argv[1:]]),
        "options": asdict(options) | {"method": options.chosen_method},
        "training": asdict(config),
        "model": {"name": predictor.name, "revision": predictor.revision},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("paligemma", "torch", "numpy", "pillow")},
        },
    }
    (out / RUN_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
