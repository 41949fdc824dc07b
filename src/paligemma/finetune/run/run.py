"""run: labeled images -> a scored, saved model, in one training run.

    check the data -> split off validation records -> load the model -> add adapters -> train,
    scoring after every epoch -> load the best weights -> save -> score -> report.html

The same command in the same folder resumes an interrupted run. Nothing is printed: `on_event`
receives the messages.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paligemma.adapters.lora import add_lora, lora_parameters
from paligemma.checkpoints.adapter import ADAPTER_WEIGHTS
from paligemma.checkpoints.files import sha256_of
from paligemma.checkpoints.siglip import load_vision_tower
from paligemma.checkpoints.trained_on import TrainedOn
from paligemma.data.check import check_data
from paligemma.data.open import Records, check_number_of_bad, open_data, write_bad
from paligemma.data.record import (
    BadRecord,
    ImageKeys,
    held_out_ids,
    image_keys,
    num_images,
    shared_ids,
)
from paligemma.data.source import ObjectTask, ReadOptions, validation_split
from paligemma.data.targets import TargetBuilder
from paligemma.errors import DataError, OptionError, counted
from paligemma.evals.evaluation import Evaluation
from paligemma.fast.weights import Plain, Trainable, Weights
from paligemma.finetune.config import TrainConfig, multiplies_bfloat16
from paligemma.finetune.distributed import World, joined
from paligemma.finetune.examples import RecordExamples
from paligemma.finetune.learner import finetune, restore
from paligemma.finetune.run.options import DEFAULT_FRACTION, RunOptions, plan_training
from paligemma.finetune.run.report import write_report
from paligemma.finetune.run.validation import FEW_IMAGES, SCORE, Validation
from paligemma.finetune.state import best_folder
from paligemma.finetune.trainer import LOG_NAME, make_folder
from paligemma.loading import load
from paligemma.predictor import Predictor
from paligemma.tasks.objects import split_phrases

ADAPTER_FOLDER = "adapter"
MODEL_FOLDER = "model"
RUN_FILE = "run.json"
EVALUATION_FOLDER = "evaluation"
BAD_RECORDS_FILE = "bad_records.jsonl"
_VALIDATION_FOLDER = "validation"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The results of a finished run. Without validation there is no evaluation."""

    saved: Path
    report: Path
    evaluation: Evaluation | None
    """On the validation records by whose score the saved state was chosen; no intervals."""
    num_images: int = 0
    """Number of different images in them."""


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
        predictor = replace(_adapted(options, _load(options)), trained_on=predictor.trained_on)
        validation = None if validation is None else replace(validation, predictor=predictor)
    restore(predictor.model, best_folder(out))
    saved = _save(options, predictor, out)
    on_event(f"saved {saved}")
    if warning := _loss_warning(out):
        on_event(warning)
    evaluation = None
    if validation is not None:
        on_event(f"scoring {counted(len(validation.records), 'record')}")
        evaluation = validation.evaluate(out / EVALUATION_FOLDER)
    report = write_report(out, saved, evaluation, validation)
    return RunResult(
        saved=saved,
        report=report,
        evaluation=evaluation,
        num_images=0 if validation is None else validation.num_images,
    )


def _train(
    options: RunOptions,
    out: Path,
    world: World,
    on_event: Callable[[str], None],
    on_log: Callable[[dict[str, Any], TrainConfig], None] | None,
) -> tuple[Predictor, Validation | None]:
    report = on_event if world.is_first else (lambda text: None)
    make_folder(out)
    records = open_data(options.data, read_options(options))
    report(f"{records.format}: {records.summary} ({counted(len(records), 'record')})")
    parts = _split(options, records)
    predictor = _load(options, report)
    if predictor.note:
        report(predictor.note)
    records = _with_earlier_order(records, predictor.trained_on, report)
    targets = _targets(options, records, predictor)
    parts = _check(options, parts, targets, report, out if world.is_first else None)
    training, held_out = parts.training, parts.held_out
    config = plan_training(options, predictor.model.config, len(training.slots))
    config = replace(
        config,
        best_metric=SCORE if held_out else None,
        autocast=options.bfloat16_weights or multiplies_bfloat16(predictor.model.device),
    )
    predictor = replace(_adapted(options, predictor), trained_on=_trained_on(training, targets))
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
            num_images=parts.num_images,
        )
        report(
            f"{counted(len(training), 'record')} for training, {len(held_out)} for validation "
            f"({parts.source}, {counted(parts.num_images, 'image')})"
        )
        if parts.num_images < FEW_IMAGES:
            report(
                "warning: with so few validation images, the best state is chosen by chance. "
                f"Use {FEW_IMAGES} or more (--validation-split), and score "
                "the model on other images."
            )
    report(_describe(options, config, predictor))
    finetune(
        predictor,
        RecordExamples(records=training, targets=targets),
        config,
        out,
        method=options.chosen_method,
        validate=validation,
        on_log=None if on_log is None else (lambda record: on_log(record, config)),
        settings={
            "model": options.model,
            "adapters": _adapters(options),
            "images": _images_digest(parts),
        }
        | ({"vision_tower": str(options.vision_tower)} if options.vision_tower else {}),
    )
    if not world.is_first:
        shutil.rmtree(folder, ignore_errors=True)
    return predictor, validation


def read_options(options: RunOptions, **changes: Any) -> ReadOptions:
    """How to read the data, from the options of the run."""
    names = (field.name for field in fields(ReadOptions))
    chosen = {name: getattr(options, name) for name in names} | changes
    if chosen["column"] is None and options.task is not None:
        chosen["column"] = "objects"
    return ReadOptions(**chosen)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The records to train on and those to validate on, which share no image."""

    training: Records
    held_out: Records | None
    keys: ImageKeys
    """The images of all training records, and of those held out from them."""
    other_keys: ImageKeys | None = None
    """The images of validation records of other data, whose ids may be the same."""
    source: str = ""
    """In words, where the validation records come from."""
    num_images: int = 0
    """Number of different images to validate on."""


def _split(options: RunOptions, records: Records) -> _Parts:
    keys = image_keys(records)
    given = _validation_data(options, records)
    if given is not None:
        other_keys = image_keys(given)
        if shared := shared_ids(other_keys, keys):
            raise OptionError(
                f"{len(shared)} of {counted(len(given), 'validation record')} have an image that "
                f"is in the training data too, the first is {shared[0]!r}; the scores would "
                "measure memorization. Give other data, remove them, or hold out a part of the "
                "training data: validation_split=0.1 (--validation-split 0.1)."
            )
        source = f"the split {given.split!r}" if given.split else given.name
        return _Parts(
            training=records,
            held_out=given,
            keys=keys,
            other_keys=other_keys,
            source=source,
            num_images=num_images(other_keys),
        )
    fraction = options.validation_fraction
    if fraction == 0:
        return _Parts(training=records, held_out=None, keys=keys)
    ids = held_out_ids(keys, DEFAULT_FRACTION if fraction is None else fraction)
    training = records.part({slot.record_id for slot in records.slots} - ids)
    held_out = records.part(ids)
    if not training.records or not held_out.records:
        raise DataError(
            f"{counted(num_images(keys), 'image is', 'images are')} too few for a validation "
            "split. Give validation data, or train without validation: validation_split=0 "
            "(--validation-split 0)."
        )
    held_out_keys = {record_id: keys[record_id] for record_id in ids}
    return _Parts(
        training=training,
        held_out=held_out,
        keys=keys,
        source="held out from the training data",
        num_images=num_images(held_out_keys),
    )


def _validation_data(options: RunOptions, records: Records) -> Records | None:
    """Other data, the named split, or the data's own validation split; None where there is none."""
    name = options.validation_name
    if options.validation is not None:
        reading = read_options(options, split=name)
        return open_data(options.validation, reading, purpose="validation")
    if name is not None:
        return open_data(options.data, read_options(options, split=name))
    name = validation_split(records.splits)
    if options.validation_split is not None or name in (None, records.split):
        return None
    try:
        return open_data(options.data, read_options(options, split=name))
    except DataError as error:
        raise DataError(
            f"The validation split {name!r} cannot be used: {error} To hold out a part of the "
            "training data instead: validation_split=0.1 (--validation-split 0.1)."
        ) from error


def _load(options: RunOptions, report: Callable[[str], None] = lambda text: None) -> Predictor:
    recipe = options.loaded_recipe
    resize = options.resize or (None if recipe is None else recipe.resize)
    weights: Weights = Plain("bfloat16" if options.bfloat16_weights else "float32")
    if options.trains_adapters:
        is_quantized = options.chosen_method == "qlora"
        weights = Trainable(options.base_format) if is_quantized else Trainable()
    predictor = load(options.model, weights=weights, adapter=options.from_adapter, resize=resize)
    if options.vision_tower is not None:
        for note in load_vision_tower(predictor.model, options.vision_tower):
            report(note)
    return predictor


def _adapted(options: RunOptions, predictor: Predictor) -> Predictor:
    """The predictor, whose model has the adapters to train."""
    if options.from_adapter is not None:
        for parameter in lora_parameters(predictor.model):
            parameter.requires_grad_(True)
    elif options.trains_adapters:
        add_lora(predictor.model, options.lora_config(), seed=options.seed)
    return predictor


def _with_earlier_order(
    records: Records, trained_on: TrainedOn | None, report: Callable[[str], None]
) -> Records:
    """The classes of an earlier training are asked for in the same order; reports other ones."""
    old = () if trained_on is None else trained_on.class_names
    if set(old) == set(records.class_names):
        return replace(records, class_names=old)
    if old and records.class_names:
        report(
            f"warning: the earlier training was on the classes {', '.join(old)}, and these data "
            f"have {', '.join(records.class_names)}. The model is now asked for the latter."
        )
    return records


def _trained_on(records: Records, targets: TargetBuilder) -> TrainedOn:
    """What the saved model says of its training."""
    prefixes = {targets.build(record).prefix for record in records}
    words = {prefix.partition(" ")[0] for prefix in prefixes}
    names = targets.class_names
    task: ObjectTask | None = None
    if words <= {"detect", "segment"}:
        lists = [prefix.partition(" ")[2] for prefix in sorted(prefixes)]
        names = names or split_phrases(lists)  # without objects, lists are written as suffixes
        task = "segment" if words == {"segment"} else "detect"
    return TrainedOn(
        task=task,
        prompt=next(iter(prefixes)) if len(prefixes) == 1 else None,
        class_names=names,
        ask=targets.options.ask,
        resize=targets.processor.resize,
        num_images=max((1 + len(record.more_images) for record in records), default=1),
    )


def _targets(options: RunOptions, records: Records, predictor: Predictor) -> TargetBuilder:
    return TargetBuilder(
        processor=predictor.processor,
        class_names=records.class_names,
        task=options.task or records.task,
        mask_codec=predictor.mask_codec,
        options=options.target_options(),
    )


def _check(
    options: RunOptions,
    parts: _Parts,
    targets: TargetBuilder,
    on_event: Callable[[str], None],
    out: Path | None,
) -> _Parts:
    """Both parts without records that cannot be used, which are listed in `out`.

    Raises DataError for such records unless they are skipped, for more of them than may be
    skipped, and for data from which nothing can be learned.
    """
    bad: list[BadRecord] = []
    kept: list[Records | None] = []
    num_slots = 0
    for part in (parts.training, parts.held_out):
        if part is None:
            kept.append(None)
            continue
        is_training = part is parts.training
        report = check_data(
            part,
            targets,
            max_tokens=options.max_tokens,
            on_bad_record=options.on_bad_record,
            max_skipped=1.0,
            image_keys=parts.keys if is_training else parts.other_keys or parts.keys,
        )
        # Whether there is something to learn does not matter in validation.
        errors = report.errors if is_training else report.errors[: report.num_bad]
        if (report.bad and options.on_bad_record == "error") or (is_training and errors):
            raise DataError(
                f"The data set has {counted(len(errors), 'error')} to fix before training. The "
                f"first: {errors[0].text} `paligemma data check` shows all; "
                "on_bad_record='skip' (--on-bad-record skip) leaves invalid records out."
            )
        if too_long := [row.record_id for row in report.rows if row.is_cut]:
            raise DataError(
                f"{counted(len(too_long), 'record is', 'records are')} longer than "
                f"{options.max_tokens} tokens, the first is {too_long[0]!r}. Shorten them, allow "
                "more with max_tokens (--max-tokens), or skip them with on_bad_record='skip' "
                "(--on-bad-record skip)."
            )
        for finding in report.findings if is_training else ():
            on_event(f"{finding.level}: {finding.text}")
        if is_training and report.example is not None:
            on_event(f"example: {report.example}")
        bad += report.bad
        num_slots += len(part.slots)
        part = part.without(report.bad[len(part.skipped) :])
        # Without the places of bad records, of which a whole batch might consist.
        kept.append(replace(part, slots=part.records))
    training, held_out = kept
    assert training is not None
    if options.on_bad_record == "skip":
        if out is not None:
            write_bad(out / BAD_RECORDS_FILE, bad)
        if bad:
            on_event(f"{len(bad)} of {num_slots} records skipped; {BAD_RECORDS_FILE} lists them")
        check_number_of_bad(bad, num_slots, options.max_skipped)
    if held_out is not None and not held_out.records:
        raise DataError(f"No validation record can be used. The first: {bad[-1].reason}")
    return replace(parts, training=training, held_out=held_out)


def _images_digest(parts: _Parts) -> str:
    """Differs for other images under the same names, with which a run must not be resumed."""
    keys = sorted((r.record_id, *parts.keys[r.record_id]) for r in parts.training)
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def _adapters(options: RunOptions) -> dict[str, Any] | None:
    if not options.trains_adapters:
        return None
    base = options.base_format if options.chosen_method == "qlora" else None
    if options.from_adapter is not None:
        return {
            "from": sha256_of(Path(os.path.expanduser(options.from_adapter)) / ADAPTER_WEIGHTS),
            "base": base,
        }
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


def _loss_warning(out: Path) -> str:
    """What to say where the loss ended above its start; empty otherwise."""
    lines = (out / LOG_NAME).read_text(encoding="utf-8").splitlines()
    values = [json.loads(line).get("loss") for line in lines]
    losses = [value for value in values if isinstance(value, float)]
    window = max(1, len(losses) // 10)
    first, last = sum(losses[:window]) / window, sum(losses[-window:]) / window
    if len(losses) < 2 or not last > first:
        return ""
    return (
        f"warning: the training loss ended at {last:.3g}, above its start of {first:.3g}. Use a "
        "smaller learning rate."
    )


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
    text = json.dumps(facts, indent=1, default=str)
    (out / RUN_FILE).write_text(text + "\n", encoding="utf-8")
