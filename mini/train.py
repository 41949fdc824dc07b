"""Train mini, the built-in model, from scratch: the papers' stages at a small scale.

    python -m mini.train --out runs/mini

    vocabulary   a SentencePiece model of all text that mini is trained on
    mask codec   a VQ-VAE of the shapes of mini's objects
    stage 0      the vision encoder alone: sigmoid contrastive loss and dense targets, 128 pixels
    stage 1      the whole model, 128 pixels
    stage 2      the whole model, 160 pixels
    stage 2b     the vision encoder alone again, 160 pixels, with targets for sharper edges
    stage 3      the mix of tasks, on images of any size
    stage 4      adds a loss that ties words to what they name, and prompts that must be read
    stage 5      adds a loss that tells patches whether the prompt asks for them
    stages 6, 7  more and more masks, while the learning rate falls to zero
    first        writes the first version: a checkpoint folder, scenes only, in four languages
    stage 8      adds two languages, printed words with their positions, objects of all sizes,
                 tables and charts, and a larger vocabulary
    stages 9, 10 continue stage 8
    stage 11     continues for longer with more tables and charts, while the learning rate falls
                 to zero
    stage 12     the vision encoder alone once more, for long, on scenes, sheets and papers, with
                 Muon instead of AdamW
    stage 13     the whole model with this encoder, mostly on detection, with losses that tell image
                 tokens and the decoder's later layers which coordinates to point to, also with
                 Muon; the encoder does not change
    stage 13b    the same with more reading, tables, charts and forms
    stage 14     the vision encoder alone, with the first codes of masks, which say how an object
                 is turned, as targets
    stage 15     the whole model with this encoder, which does not change, with a loss that tells
                 image tokens which codes to point to, and more prompts for a single kind
    stage 15b    the same with more captions and masks
    stage 16     the vision encoder alone, mostly on papers
    stage 17     the whole model, half of it on papers, with losses that tell the decoder which
                 printed words are asked for, and where the next letter is; these two have
                 no part in the built-in weights
    export       writes a checkpoint folder in the released format, float16
    evaluate     evaluates on 500 test scenes: prints a table, writes evaluation.json

Stage 8 starts from the folder OUT/first, which includes the vocabulary and the mask codec, and
needs nothing else: `--stages 8,9,10,11,12,13,13b,14,15,15b,export,evaluate` continues from any such
folder.

Each stage saves its state every few minutes; repeat the command to resume. `--stages` selects
stages. Stages 0 to 7 take about two hours on two CPU cores, and docs/mini.md has the times of the
later ones, with tcmalloc preloaded (LD_PRELOAD=libtcmalloc_minimal.so.4) and --compile, which saves
a fifth of the time of a step of the whole model and needs a C++ compiler. Afterwards:
python -m mini.report --out runs/mini --report docs/mini
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mini.codec_training import reconstruction_iou, seg_codes, train_mask_codec
from mini.evaluate import evaluate
from mini.examples import TASK_WEIGHTS, Asking
from mini.joint import (
    Joint,
    JointSource,
    LossWeights,
    build_mini,
    extend_rows,
    fit_heads,
    mini_config,
)
from mini.language import FIRST_LANGUAGES, LANGUAGES, LATER_LANGUAGES
from mini.scene import WORD_WEIGHTS
from mini.stage0 import Stage0, Stage0Source
from mini.vocabulary import train_first_vocabulary, train_vocabulary
from paligemma.checkpoints.save import save_model
from paligemma.fast.weights import Plain
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.state import FOLDER, load_weights
from paligemma.finetune.trainer import Objective, train
from paligemma.loading import load
from paligemma.model.siglip import resample_positions
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import load_mask_codec_npz, save_mask_codec_npz


@dataclass(frozen=True, kw_only=True)
class EncoderStage:
    """A stage that trains only the vision encoder."""

    start: tuple[str, ...] = ()
    """Stages whose weights to start from; later ones win."""
    resolution: int
    edges_weight: float
    codes_weight: float = 0.0
    seed: int
    train: TrainConfig
    num_wide: int = 0
    num_sheets: int = 0
    num_papers: int = 0
    languages: tuple[str, ...] = FIRST_LANGUAGES


@dataclass(frozen=True, kw_only=True)
class JointStage:
    """A stage that trains the whole model."""

    start: tuple[str, ...]
    resolution: int
    drawn_at: tuple[int, ...]
    word_weights: tuple[float, ...]
    weights: LossWeights
    seed: int
    train: TrainConfig
    task_weights: Mapping[str, float] = field(default_factory=lambda: TASK_WEIGHTS)
    asking: Asking = field(default_factory=Asking)
    num_scenes: int = 32
    prompts_per_scene: int = 3
    num_wide: int = 0
    num_sheets: int = 0
    num_papers: int = 0
    head_steps: int = 0
    """Steps in which only new heads learn, while the model is frozen."""


_CODEC = "mask_codec.npz"
_TRAIN = TrainConfig(
    num_steps=1,
    num_workers=1,
    learning_rate=1e-3,
    warmup_steps=100,
    weight_decay=0.02,
    betas=(0.9, 0.98),
    save_every=100,
)
_STAGE3 = JointStage(
    start=("2", "2b"),
    resolution=160,
    drawn_at=(160, 256, 384),
    word_weights=WORD_WEIGHTS,
    weights=LossWeights(dense=0.3, edges=1.0, loc_sigma=4.0),
    seed=3,
    task_weights={
        "caption": 0.28,
        "describe": 0.05,
        "detect": 0.28,
        "segment": 0.09,
        "ocr": 0.12,
        "count": 0.10,
        "question": 0.06,
        "caption_box": 0.02,
    },
    train=replace(
        _TRAIN,
        num_steps=600,
        learning_rate=7e-4,
        final_learning_rate=5.1e-4,
        vision_learning_rate_scale=0.15,
        warmup_steps=20,
    ),
)
_STAGE4 = replace(
    _STAGE3,
    start=("3",),
    weights=replace(_STAGE3.weights, names=0.5),
    seed=5,
    task_weights={
        "caption": 0.35,
        "describe": 0.04,
        "detect": 0.24,
        "segment": 0.03,
        "ocr": 0.13,
        "count": 0.15,
        "question": 0.05,
        "caption_box": 0.01,
    },
    asking=Asking(part=0.5, absent=0.4, count_absent=0.35),
    train=replace(_STAGE3.train, num_steps=400, learning_rate=6e-4, final_learning_rate=4.5e-4),
)
_STAGE5 = replace(
    _STAGE4,
    start=("4",),
    weights=replace(_STAGE4.weights, asked=1.0),
    seed=6,
    task_weights={
        "caption": 0.32,
        "describe": 0.02,
        "detect": 0.24,
        "segment": 0.03,
        "ocr": 0.12,
        "count": 0.20,
        "question": 0.06,
        "caption_box": 0.01,
    },
    train=replace(_STAGE4.train, num_steps=500, learning_rate=5e-4, final_learning_rate=2.15e-4),
)
_STAGE6 = replace(
    _STAGE5,
    start=("5",),
    seed=7,
    task_weights={
        "caption": 0.26,
        "describe": 0.02,
        "detect": 0.24,
        "segment": 0.17,
        "ocr": 0.10,
        "count": 0.14,
        "question": 0.06,
        "caption_box": 0.01,
    },
    train=replace(_STAGE5.train, num_steps=350, learning_rate=2.4e-4, final_learning_rate=0.0),
)
_FIRST = "first"
_STAGE7 = replace(
    _STAGE6,
    start=("6",),
    seed=8,
    task_weights={
        "caption": 0.20,
        "detect": 0.25,
        "segment": 0.38,
        "ocr": 0.06,
        "count": 0.08,
        "question": 0.03,
    },
    train=replace(_STAGE6.train, num_steps=170, learning_rate=1.8e-4, warmup_steps=10),
)
_STAGE8 = replace(
    _STAGE7,
    start=(_FIRST,),
    drawn_at=(160, 224, 256, 384),
    seed=9,
    task_weights={
        "caption": 0.28,
        "describe": 0.02,
        "detect": 0.23,
        "segment": 0.19,
        "ocr": 0.08,
        "detect_text": 0.06,
        "count": 0.10,
        "question": 0.03,
        "caption_box": 0.01,
    },
    asking=replace(
        _STAGE7.asking,
        languages={
            **dict.fromkeys(FIRST_LANGUAGES, 1.0),
            **dict.fromkeys(LATER_LANGUAGES, 0.7),
        },
    ),
    num_wide=6,
    num_sheets=6,
    head_steps=60,
    train=replace(
        _STAGE7.train,
        num_steps=150,
        learning_rate=3e-4,
        final_learning_rate=2.7e-4,
        warmup_steps=30,
        save_every=50,
    ),
)
_STAGE9 = replace(
    _STAGE8,
    start=("8",),
    seed=10,
    head_steps=0,
    train=replace(
        _STAGE8.train,
        num_steps=160,
        learning_rate=2.7e-4,
        final_learning_rate=0.0,
        warmup_steps=10,
        save_every=40,
    ),
)
_STAGE10 = replace(
    _STAGE9,
    start=("9",),
    seed=11,
    task_weights={
        "caption": 0.30,
        "describe": 0.02,
        "detect": 0.23,
        "segment": 0.18,
        "ocr": 0.10,
        "detect_text": 0.05,
        "count": 0.09,
        "question": 0.02,
        "caption_box": 0.01,
    },
    train=replace(_STAGE9.train, num_steps=80, learning_rate=2.5e-4, final_learning_rate=2e-4),
)
_STAGE11 = replace(
    _STAGE10,
    start=("10",),
    seed=12,
    task_weights={
        "caption": 0.29,
        "describe": 0.02,
        "detect": 0.22,
        "segment": 0.18,
        "ocr": 0.09,
        "detect_text": 0.09,
        "count": 0.08,
        "question": 0.02,
        "caption_box": 0.01,
    },
    asking=replace(_STAGE10.asking, languages=dict.fromkeys(LANGUAGES, 1.0)),
    num_sheets=10,
    train=replace(
        _STAGE10.train,
        num_steps=1250,
        learning_rate=4e-4,
        final_learning_rate=0.0,
        warmup_steps=30,
        save_every=50,
    ),
)
_STAGE13 = replace(
    _STAGE11,
    start=("11", "12"),
    weights=LossWeights(dense=0.3, edges=2.0, names=0.5, asked=1.0, place=0.3, loc_sigma=3.0),
    seed=51,
    task_weights={
        "caption": 0.21,
        "describe": 0.01,
        "detect": 0.38,
        "segment": 0.16,
        "ocr": 0.07,
        "detect_text": 0.07,
        "count": 0.07,
        "question": 0.02,
        "caption_box": 0.01,
    },
    asking=replace(
        _STAGE11.asking,
        only_absent=0.08,
        unknown=0.15,
        languages={**dict.fromkeys(LANGUAGES, 1.0), "es": 1.4, "de": 1.3},
    ),
    num_scenes=24,
    num_wide=4,
    num_sheets=6,
    head_steps=60,
    train=replace(
        _STAGE11.train,
        num_steps=1500,
        optimizer="muon",
        learning_rate=6e-4,
        vision_learning_rate_scale=0.0,
        warmup_steps=60,
    ),
)
_STAGE13B = replace(
    _STAGE13,
    start=("13",),
    seed=52,
    task_weights={
        "caption": 0.24,
        "describe": 0.01,
        "detect": 0.33,
        "segment": 0.15,
        "ocr": 0.12,
        "detect_text": 0.06,
        "count": 0.06,
        "question": 0.02,
        "caption_box": 0.01,
    },
    num_sheets=16,
    train=replace(_STAGE13.train, num_steps=890, learning_rate=5e-4, warmup_steps=40),
)
_STAGE15 = replace(
    _STAGE13,
    start=("13b", "14"),
    weights=replace(_STAGE13.weights, codes=0.5),
    seed=91,
    task_weights={
        "caption": 0.28,
        "describe": 0.01,
        "detect": 0.28,
        "segment": 0.17,
        "ocr": 0.13,
        "detect_text": 0.05,
        "count": 0.05,
        "question": 0.02,
        "caption_box": 0.01,
    },
    asking=replace(_STAGE13.asking, part=0.55, only_absent=0.05, unknown=0.08),
    word_weights=(0.38, 0.40, 0.22),
    num_scenes=22,
    num_sheets=16,
    train=replace(_STAGE13B.train, num_steps=920, warmup_steps=60),
)
_STAGE15B = replace(
    _STAGE15,
    start=("15",),
    seed=92,
    task_weights={
        **_STAGE15.task_weights,
        "caption": 0.37,
        "detect": 0.20,
        "segment": 0.20,
        "ocr": 0.09,
    },
    num_scenes=24,
    num_sheets=12,
    train=replace(_STAGE15.train, num_steps=910),
)
_STAGE17 = replace(
    _STAGE15B,
    start=("15b", "16"),
    weights=replace(_STAGE15B.weights, dense=0.5, letters=0.3),
    seed=36,
    task_weights={
        "caption": 0.16,
        "describe": 0.01,
        "detect": 0.38,
        "segment": 0.18,
        "ocr": 0.08,
        "detect_text": 0.08,
        "count": 0.08,
        "question": 0.02,
        "caption_box": 0.01,
    },
    num_scenes=16,
    num_wide=3,
    num_sheets=6,
    num_papers=28,
    train=replace(
        _STAGE13.train,
        num_steps=5000,
        learning_rate=6e-4,
        vision_learning_rate_scale=0.5,
    ),
)
STAGES: dict[str, EncoderStage | JointStage] = {
    "0": EncoderStage(
        resolution=128,
        edges_weight=0.0,
        seed=0,
        train=replace(
            _TRAIN,
            num_steps=3000,
            final_learning_rate=1e-4,
            warmup_steps=200,
            batch_size=64,
            save_every=250,
        ),
    ),
    "1": JointStage(
        start=("0",),
        resolution=128,
        drawn_at=(128,),
        word_weights=(0.25, 0.5, 0.25),
        weights=LossWeights(dense=0.3, edges=0.0, loc_sigma=6.0),
        seed=1,
        train=replace(
            _TRAIN,
            num_steps=800,
            schedule="constant",
            vision_learning_rate_scale=0.1,
            loss_reduction="token",
        ),
    ),
    "2": JointStage(
        start=("1",),
        resolution=160,
        drawn_at=(160, 160, 224),
        word_weights=(0.25, 0.5, 0.25),
        weights=LossWeights(dense=0.3, edges=0.0, loc_sigma=4.0),
        seed=2,
        train=replace(
            _TRAIN,
            num_steps=500,
            learning_rate=8e-4,
            schedule="constant",
            vision_learning_rate_scale=0.3,
            warmup_steps=30,
        ),
    ),
    "2b": EncoderStage(
        start=("0", "2"),
        resolution=160,
        edges_weight=1.0,
        seed=4,
        train=replace(
            _TRAIN,
            num_steps=900,
            learning_rate=6e-4,
            final_learning_rate=1e-4,
            warmup_steps=40,
            batch_size=64,
        ),
    ),
    "3": _STAGE3,
    "4": _STAGE4,
    "5": _STAGE5,
    "6": _STAGE6,
    "7": _STAGE7,
    "8": _STAGE8,
    "9": _STAGE9,
    "10": _STAGE10,
    "11": _STAGE11,
    "12": EncoderStage(
        start=("11",),
        resolution=160,
        edges_weight=4.0,
        seed=41,
        num_wide=12,
        num_sheets=8,
        num_papers=12,
        languages=LANGUAGES,
        train=replace(
            _TRAIN,
            num_steps=1320,
            optimizer="muon",
            learning_rate=6e-4,
            final_learning_rate=0.0,
            warmup_steps=60,
            batch_size=56,
        ),
    ),
    "13": _STAGE13,
    "13b": _STAGE13B,
    "14": EncoderStage(
        start=("12",),
        resolution=160,
        edges_weight=4.0,
        codes_weight=0.7,
        seed=61,
        num_wide=8,
        num_sheets=4,
        num_papers=6,
        languages=LANGUAGES,
        train=replace(
            _TRAIN,
            num_steps=2080,
            optimizer="muon",
            learning_rate=5e-4,
            final_learning_rate=0.0,
            warmup_steps=30,
            batch_size=48,
        ),
    ),
    "15": _STAGE15,
    "15b": _STAGE15B,
    "16": EncoderStage(
        start=("14",),
        resolution=160,
        edges_weight=4.0,
        seed=35,
        num_wide=4,
        num_sheets=4,
        num_papers=36,
        languages=LANGUAGES,
        train=replace(
            _TRAIN,
            num_steps=1000,
            learning_rate=3e-4,
            final_learning_rate=0.0,
            batch_size=58,
        ),
    ),
    "17": _STAGE17,
}
LAST_OF_FIRST = "7"
_LATER = tuple(STAGES)[tuple(STAGES).index("8") :]  # with the larger vocabulary
_SHIPPED = tuple(STAGES)[: tuple(STAGES).index("15b") + 1]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mini.train",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder. Reuse it to resume")
    parser.add_argument(
        "--stages",
        default=",".join([*_SHIPPED, _FIRST, "export", "evaluate"]),
        help="stages to run, comma-separated, in any order (all but 16 and 17); the vocabulary and "
        "the mask codec are made when a stage needs them",
    )
    parser.add_argument("--compile", action="store_true", help="compile the model's blocks")
    parser.add_argument(
        "--steps", type=int, help="train each stage for only this many steps, as a trial"
    )
    parser.add_argument(
        "--scenes", type=int, default=500, help="number of scenes to evaluate on (%(default)s)"
    )
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    stages = arguments.stages.split(",")
    if unknown := [name for name in stages if name not in (*STAGES, _FIRST, "export", "evaluate")]:
        parser.error(f"--stages has {unknown[0]!r}, which is no stage; see --help")
    if any(name in stages for name in STAGES if name not in _LATER):
        _prepare(out, arguments.steps)
    for name, stage in STAGES.items():
        if name == _LATER[0] and _FIRST in stages:
            _export(out, out / _FIRST, LAST_OF_FIRST, _tokenizer(out))
        if name not in stages:
            continue
        if arguments.steps is not None:
            stage = _shortened(stage, arguments.steps)
        if isinstance(stage, EncoderStage):
            _run_encoder(out, _tokenizer(out, name), name, stage)
        else:
            _run_joint(out, name, stage, arguments.compile)
    if "export" in stages:
        trained = [name for name in STAGES if (out / f"stage{name}").exists()]
        last = trained[-1] if trained else LAST_OF_FIRST
        _export(out, out / "model", last, _tokenizer(out, last))
    if "evaluate" in stages:
        _evaluate(out, arguments.scenes)


def _shortened(stage: EncoderStage | JointStage, steps: int) -> EncoderStage | JointStage:
    """The same stage for a few steps, each of which is saved."""
    train = replace(stage.train, num_steps=steps, warmup_steps=1, save_every=1)
    if isinstance(stage, JointStage):
        return replace(stage, train=train, head_steps=min(stage.head_steps, steps))
    return replace(stage, train=train)


def _prepare(out: Path, steps: int | None) -> None:
    """The first vocabulary and the mask codec."""
    if not (out / "tokenizer.model").exists():
        (out / "tokenizer.model").write_bytes(train_first_vocabulary())
    path = out / _CODEC
    if not path.exists():
        codec = train_mask_codec() if steps is None else train_mask_codec(num_steps=steps)
        save_mask_codec_npz(codec, path)
        print(f"mask codec: IoU {reconstruction_iou(codec):.3f} on the shapes of mini's objects")


def _tokenizer(out: Path, stage: str = LAST_OF_FIRST) -> Tokenizer:
    """The vocabulary of a stage: the first one, or the larger one of the later stages."""
    if stage in _LATER:
        return Tokenizer(train_vocabulary())
    return Tokenizer.from_file(out / "tokenizer.model")


def _codec_path(out: Path) -> Path:
    """The mask codec of the run, or of the first version that it continues from."""
    return out / _CODEC if (out / _CODEC).exists() else out / _FIRST / _CODEC


def _run_encoder(out: Path, tokenizer: Tokenizer, name: str, stage: EncoderStage) -> None:
    torch.manual_seed(stage.seed)
    vision = mini_config(tokenizer.vocab_size, stage.resolution).vision
    module = Stage0(
        vision,
        tokenizer.vocab_size,
        edges_weight=stage.edges_weight,
        codes_weight=stage.codes_weight,
    )
    _take_over(module, _weights_of(out, stage.start, vision.num_image_tokens))
    source = Stage0Source(
        tokenizer=tokenizer,
        resolution=stage.resolution,
        grid=vision.grid,
        batch_size=stage.train.batch_size,
        seed=stage.seed,
        num_wide=stage.num_wide,
        num_sheets=stage.num_sheets,
        num_papers=stage.num_papers,
        languages=stage.languages,
        seg_codes=seg_codes(load_mask_codec_npz(_codec_path(out))) if stage.codes_weight else None,
    )
    objective = Objective(losses=module.losses)
    train(module, source, objective, stage.train, out / f"stage{name}", on_log=_report)


def _run_joint(out: Path, name: str, stage: JointStage, compiled: bool) -> None:
    tokenizer = _tokenizer(out, name)
    codes = seg_codes(load_mask_codec_npz(_codec_path(out)))
    config = mini_config(tokenizer.vocab_size, stage.resolution)
    model = build_mini(config, tokenizer.loc_offset, stage.seed)
    joint = Joint(
        model,
        tokenizer,
        stage.weights,
        stage.train.loss_reduction,
    )
    if stage.start == (_FIRST,):
        weights = _first_version(out, tokenizer)
    else:
        weights = _weights_of(out, stage.start, config.vision.num_image_tokens)
    _take_over(model, weights)
    _take_over(joint, weights)
    if compiled:
        for block in model.vision_encoder.blocks:
            block.compile(dynamic=False)
        for block in model.decoder.blocks:
            block.compile(dynamic=True)
    source = JointSource(
        processor=Processor(
            tokenizer=tokenizer,
            resolution=stage.resolution,
            num_image_tokens=config.vision.num_image_tokens,
        ),
        seg_codes=codes,
        task_weights=stage.task_weights,
        asking=stage.asking,
        word_weights=stage.word_weights,
        num_scenes=stage.num_scenes,
        prompts_per_scene=stage.prompts_per_scene,
        drawn_at=stage.drawn_at,
        seed=stage.seed,
        num_wide=stage.num_wide,
        num_sheets=stage.num_sheets,
        num_papers=stage.num_papers,
    )
    if stage.head_steps and not (out / f"stage{name}" / FOLDER).exists():
        fit_heads(joint, replace(source, seed=stage.seed + 1000), stage.head_steps)
    objective = Objective(losses=joint.losses)
    train(joint, source, objective, stage.train, out / f"stage{name}", on_log=_report)


def _weights_of(out: Path, stages: tuple[str, ...], num_positions: int) -> dict[str, Tensor]:
    """The weights of these stages; later stages win. Positions are resampled if necessary."""
    weights: dict[str, Tensor] = {}
    for stage in stages:
        for name, tensor in load_weights(out / f"stage{stage}").items():
            weights[name.removeprefix("model.")] = tensor
    table = "vision_encoder.position_embedding.weight"
    if table in weights:
        weights[table] = resample_positions(weights[table], num_positions)
    return weights


def _take_over(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill the parameters that have a weight of their name; the others keep their values."""
    own = {name: weights[name] for name, _ in module.named_parameters() if name in weights}
    module.load_state_dict(own, strict=False)


def _first_version(out: Path, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights of the first version, with rows for the pieces of a larger vocabulary."""
    predictor = load(out / _FIRST, weights=Plain("float32"))
    weights = dict(predictor.model.named_parameters())
    old = Tokenizer.from_file(out / _FIRST / "tokenizer.model")
    table = "decoder.embedding.weight"
    return {name: p.detach() for name, p in weights.items()} | {
        table: extend_rows(weights[table].detach(), old, tokenizer)
    }


def _export(out: Path, folder: Path, stage: str, tokenizer: Tokenizer) -> None:
    config = mini_config(tokenizer.vocab_size, STAGES[stage].resolution)
    model = build_mini(config, tokenizer.loc_offset, 0)
    weights = _weights_of(out, (stage,), config.vision.num_image_tokens)
    model.load_state_dict({name: weights[name] for name, _ in model.named_parameters()})
    save_model(
        model,
        folder,
        dtype=torch.float16,  # small weights: three more bits than bfloat16, same size
        tokenizer_proto=tokenizer.model_proto,
        extra_files={_CODEC: _codec_path(out).read_bytes()},
    )
    print(f"wrote {folder}")


def _evaluate(out: Path, scenes: int) -> None:
    scores = evaluate(load(out / "model"), scenes=scenes, seed=7)
    del scores["records"], scores["model"]
    (out / "evaluation.json").write_text(json.dumps(scores, indent=1) + "\n")
    for name, value in scores.items():
        print(f"{name:14} {value}")


def _report(record: dict[str, float]) -> None:
    print("  ".join(f"{name} {value:.4g}" for name, value in record.items()), flush=True)


if __name__ == "__main__":
    main()
