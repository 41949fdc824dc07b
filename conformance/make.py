# ruff: noqa: E501 (a table of texts)
"""Make the kit: tiny random models, what they compute, and what they compute with usual mistakes.

    python conformance/make.py        # needs this repository's package; the result is deterministic

Everything is computed by `paligemma` in float32. `tests/test_conformance.py` compares it with
transformers and keeps package and kit in agreement.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paligemma.checkpoints.convert import convert_checkpoint
from paligemma.checkpoints.save import save_model
from paligemma.config import DecoderConfig, Family, MaskCodecConfig, PaliGemmaConfig, VisionConfig
from paligemma.inputs import ModelInputs
from paligemma.masks import mask_to_rle
from paligemma.model import attention, gemma
from paligemma.model.attention import sliding_prefix_lm_mask
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor, PromptRow
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import MaskCodec, mask_codec_to_npz, paste_mask

FOLDER = Path(__file__).parent
TOKENIZER = FOLDER.parent / "src" / "paligemma" / "mini" / "model" / "tokenizer.model"
FAMILIES: dict[str, Family] = {"pg1": "paligemma", "pg2": "paligemma2"}
PROBES = {"caption": ("caption en", " a cat"), "detect": ("detect cat ; dog", " cat ; dog")}
WINDOW = 12
_SEED = 7
_ROWS, _COLUMNS = 6, 96  # of the samples that are kept of each mistake
_GREEDY = 8


def config_of(family: Family) -> PaliGemmaConfig:
    """Every dimension has another value; 16 image tokens."""
    second = family == "paligemma2"
    return PaliGemmaConfig(
        vision=VisionConfig(
            resolution=56, patch_size=14, width=48, depth=2, mlp_dim=80, num_heads=3
        ),
        decoder=DecoderConfig(
            vocab_size=Tokenizer.from_file(TOKENIZER).vocab_size,
            width=64,
            depth=3,
            mlp_dim=112,
            num_heads=4,
            num_kv_heads=2 if second else 1,
            head_dim=24,
            query_scale=24**-0.5,
            post_norms=second,
            attn_logit_softcap=50.0 if second else None,
            final_logit_softcap=30.0 if second else None,
        ),
    )


def build_model(family: Family) -> PaliGemma:
    """Random weights that bfloat16 holds exactly, large enough for both soft caps to matter."""
    model = PaliGemma(config_of(family)).eval()
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                values = 0.3 * values + (1.0 if "layer" in name and "weight" in name else 0.0)
            else:
                values *= parameter[0].numel() ** -0.5
            if name.endswith(("q_proj.weight", "k_proj.weight")) and name.startswith("decoder"):
                values *= 3.0
            if name.endswith("embedding.weight"):
                values *= 3.0 if "decoder" in name else 1.0
            if name == "decoder.final_norm.weight":
                values += 3.0  # logits of 13, on average
            parameter.copy_(values.bfloat16().float())
    return model


def images() -> dict[str, Image.Image]:
    """One image per probe: wide and tall, with edges that a resampling filter shows."""
    result = {}
    for number, (name, (width, height)) in enumerate(
        {"caption": (150, 90), "detect": (70, 130)}.items()
    ):
        y, x = np.mgrid[0:height, 0:width]
        rgb = np.stack(
            [(x * 5 + number * 60) % 256, (y * 7) % 256, 255 * (((x // 9) + (y // 13)) % 2)], axis=2
        )
        result[name] = Image.fromarray(rgb.astype(np.uint8))
    return result


@dataclass(frozen=True)
class Setting:
    """One run: a model, a probe, and what is done to the inputs."""

    model: PaliGemma
    inputs: ModelInputs
    """The prefix."""
    suffix_ids: tuple[int, ...]
    pixels: Tensor


def processor_of(model: PaliGemma) -> Processor:
    vision = model.config.vision
    return Processor(
        tokenizer=Tokenizer.from_file(TOKENIZER),
        resolution=vision.resolution,
        num_image_tokens=vision.num_image_tokens,
    )


def setting_of(model: PaliGemma, probe: str) -> Setting:
    processor = processor_of(model)
    prompt, suffix = PROBES[probe]
    image = LoadedImage(rgb=images()[probe], name=probe)
    inputs = processor.prefix_inputs([PromptRow(prompt=prompt)], [image])
    pixels = inputs.required_pixel_values
    ids = tuple(processor.tokenizer.tokenize_text(suffix.strip()))
    return Setting(model, replace(inputs, pixel_values=None), ids, pixels)


def with_suffix(inputs: ModelInputs, ids: tuple[int, ...]) -> ModelInputs:
    new = torch.tensor([ids])
    yes = torch.ones_like(new, dtype=torch.bool)
    return replace(
        inputs,
        token_ids=torch.cat([inputs.token_ids, new], 1),
        input_mask=torch.cat([inputs.input_mask, yes], 1),
        mask_ar=torch.cat([inputs.mask_ar, yes], 1),
        image_mask=torch.cat([inputs.image_mask, ~yes], 1),
    )


@torch.inference_mode()
def compute(
    setting: Setting,
    change_tokens: Callable[[Tensor], Tensor] = lambda tokens: tokens,
    change_mask: Callable[[ModelInputs], ModelInputs] = lambda inputs: inputs,
) -> dict[str, Any]:
    """Everything that a port may be compared with."""
    model = setting.model
    tokens = model.embed_images(setting.pixels)
    inputs = change_mask(with_suffix(setting.inputs, setting.suffix_ids))
    hidden = model.hidden_states(inputs, image_tokens=change_tokens(tokens))
    return {
        "token_ids": setting.inputs.token_ids[0].numpy(),
        "pixel_values": setting.pixels[0].numpy(),
        "image_tokens": tokens[0].float().numpy(),
        "hidden_states": hidden[0].float().numpy(),
        "logits": model.decoder.logits(hidden)[0].float().numpy(),
    }


@torch.inference_mode()
def greedy(setting: Setting) -> list[int]:
    """The first ids after the prefix, without a cache."""
    tokens = setting.model.embed_images(setting.pixels)
    ids: list[int] = []
    for _ in range(_GREEDY):
        inputs = with_suffix(setting.inputs, tuple(ids)) if ids else setting.inputs
        hidden = setting.model.hidden_states(inputs, image_tokens=tokens)
        ids.append(int(setting.model.decoder.logits(hidden[:, -1])[0].argmax()))
    return ids


# The mistakes. Each gives the outputs of a setting in which it was made.

Mistake = Callable[[Setting], dict[str, Any]]


@contextmanager
def _patched(target: Any, name: str, value: Any) -> Iterator[None]:
    with mock.patch.object(target, name, value):
        yield


def _copy(setting: Setting) -> Setting:
    model = PaliGemma(setting.model.config).eval().to(setting.model.dtype)
    model.load_state_dict(setting.model.state_dict())
    return replace(setting, model=model)


def causal_prefix(setting: Setting) -> dict[str, Any]:
    return compute(setting, change_mask=lambda i: replace(i, mask_ar=torch.ones_like(i.mask_ar)))


def causal_prompt(setting: Setting) -> dict[str, Any]:
    return compute(setting, change_mask=lambda i: replace(i, mask_ar=~i.image_mask))


def bidirectional_suffix(setting: Setting) -> dict[str, Any]:
    return compute(setting, change_mask=lambda i: replace(i, mask_ar=torch.zeros_like(i.mask_ar)))


def no_embedding_scale(setting: Setting) -> dict[str, Any]:
    embed = gemma.TiedEmbedding.forward

    def unscaled(self: Any, ids: Tensor) -> Tensor:
        return embed(self, ids) / self.embedding_dim**0.5

    with _patched(gemma.TiedEmbedding, "forward", unscaled):
        return compute(setting)


def image_tokens_scaled(setting: Setting) -> dict[str, Any]:
    return compute(setting, lambda tokens: tokens * tokens.shape[-1] ** 0.5)


def image_tokens_divided(setting: Setting) -> dict[str, Any]:
    return compute(setting, lambda tokens: tokens / tokens.shape[-1] ** 0.5)


def no_attention_soft_cap(setting: Setting) -> dict[str, Any]:
    setting = _copy(setting)
    for block in setting.model.decoder.blocks:
        block.attention.logit_softcap = None  # type: ignore[union-attr, assignment]
    return compute(setting)


def no_final_soft_cap(setting: Setting) -> dict[str, Any]:
    logits = gemma.Decoder.logits

    def uncapped(self: Any, hidden: Tensor, **options: Any) -> Tensor:
        return logits(self, hidden, softcap=False)

    with _patched(gemma.Decoder, "logits", uncapped):
        return compute(setting)


def norm_without_one(setting: Setting) -> dict[str, Any]:
    setting = _copy(setting)
    with torch.no_grad():
        for name, parameter in setting.model.named_parameters():
            if name.startswith("decoder") and name.endswith("norm.weight"):
                parameter -= 1
    return compute(setting)


def rope_interleaved(setting: Setting) -> dict[str, Any]:
    def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = angles
        first, second = x.float()[..., 0::2], x.float()[..., 1::2]
        rotated = [first * cos - second * sin, second * cos + first * sin]
        return torch.stack(rotated, dim=-1).flatten(-2).to(x.dtype)

    with _patched(attention, "rotate", rotate):
        return compute(setting)


def positions_restart(setting: Setting) -> dict[str, Any]:
    num_images = int(setting.inputs.image_mask.sum())

    def positions(mask: Tensor) -> Tensor:
        steps = torch.arange(mask.shape[1])[None]
        return torch.where(steps >= num_images, steps - num_images, steps)

    with mock.patch("paligemma.model.paligemma.positions_of", positions):
        return compute(setting)


def exact_gelu(setting: Setting) -> dict[str, Any]:
    gelu = torch.nn.functional.gelu
    with _patched(torch.nn.functional, "gelu", lambda x, approximate="none": gelu(x)):
        return compute(setting)


def other_query_scale(setting: Setting) -> dict[str, Any]:
    setting = _copy(setting)
    decoder = setting.model.config.decoder
    for block in setting.model.decoder.blocks:
        block.attention.query_scale = (  # type: ignore[union-attr, assignment]
            decoder.width / decoder.num_heads
        ) ** -0.5
    return compute(setting)


def sliding_window(setting: Setting) -> dict[str, Any]:
    run = PaliGemma.hidden_states

    def windowed(self: PaliGemma, inputs: ModelInputs, **options: Any) -> Tensor:
        decoder = replace(
            self.config.decoder,
            sliding_window=WINDOW,
            sliding_layers=tuple(i % 2 == 0 for i in range(self.config.decoder.depth)),
        )
        original = self.config
        self.config = self.decoder.config = None  # type: ignore[assignment]
        self.config, self.decoder.config = replace(original, decoder=decoder), decoder
        try:
            return run(self, inputs, **options)
        finally:
            self.config, self.decoder.config = original, original.decoder

    def everywhere(attn_mask: Tensor, *rest: Any) -> Tensor:
        steps = torch.arange(attn_mask.shape[1])
        return attn_mask & (steps[:, None] - steps[None] < WINDOW)

    assert sliding_prefix_lm_mask is not None
    with (
        _patched(PaliGemma, "hidden_states", windowed),
        mock.patch("paligemma.model.paligemma.sliding_prefix_lm_mask", everywhere),
    ):
        return compute(setting)


def kv_heads_interleaved(setting: Setting) -> dict[str, Any]:
    def attend(
        queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, cap: float | None
    ) -> Tensor:
        groups = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat(1, groups, 1, 1), values.repeat(1, groups, 1, 1)
        logits = (queries @ keys.transpose(-1, -2)).float()
        if cap is not None:
            logits = attention.soft_cap(logits, cap)
        return torch.softmax(logits + bias, -1).to(values.dtype) @ values

    with _patched(attention, "attend", attend):
        return compute(setting)


def no_last_vision_norm(setting: Setting) -> dict[str, Any]:
    setting = _copy(setting)
    setting.model.vision_encoder.post_layernorm = torch.nn.Identity()  # type: ignore[assignment]
    return compute(setting)


def _prefix_without(setting: Setting, position: int) -> dict[str, Any]:
    keep = torch.ones(setting.inputs.token_ids.shape[1], dtype=torch.bool)
    keep[position] = False
    inputs = replace(
        setting.inputs,
        token_ids=setting.inputs.token_ids[:, keep],
        input_mask=setting.inputs.input_mask[:, keep],
        mask_ar=setting.inputs.mask_ar[:, keep],
        image_mask=setting.inputs.image_mask[:, keep],
    )
    return compute(replace(setting, inputs=inputs))


def no_newline(setting: Setting) -> dict[str, Any]:
    return _prefix_without(setting, -1)


def no_bos(setting: Setting) -> dict[str, Any]:
    return _prefix_without(setting, int(setting.inputs.image_mask.sum()))


def _other_pixels(change: Callable[[Image.Image, int], np.ndarray]) -> Mistake:
    def run(setting: Setting) -> dict[str, Any]:
        probe = next(
            name for name in PROBES if torch.equal(setting_of(setting.model, name).pixels,
                                                   setting.pixels)
        )  # fmt: skip
        values = change(images()[probe], setting.model.config.vision.resolution)
        pixels = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return compute(replace(setting, pixels=pixels.permute(2, 0, 1)[None]))

    return run


def _scaled(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 127.5 - 1


def _center_crop(image: Image.Image, side: int) -> np.ndarray:
    shorter = min(image.size)
    left, top = ((length - shorter) // 2 for length in image.size)
    box = (left, top, left + shorter, top + shorter)
    return _scaled(image.resize((side, side), Image.Resampling.BICUBIC, box=box))


def _padded(image: Image.Image, side: int) -> np.ndarray:
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), (0, 0, 0))
    square.paste(image, tuple((longer - length) // 2 for length in image.size))
    return _scaled(square.resize((side, side), Image.Resampling.BICUBIC))


def _squashed(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BICUBIC)


_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

MISTAKES: dict[str, tuple[Mistake, str]] = {
    "causal_prefix": (causal_prefix, "the whole prompt is causal; image and prompt must see each other in both directions (prefix-LM), and only the suffix is causal"),
    "causal_prompt": (causal_prompt, "the image is bidirectional but the text of the prompt causal; BOS, prompt and newline belong to the bidirectional prefix"),
    "bidirectional_suffix": (bidirectional_suffix, "the suffix is bidirectional; answers are causal"),
    "no_embedding_scale": (no_embedding_scale, "text embeddings are not multiplied by sqrt(width)"),
    "image_tokens_scaled": (image_tokens_scaled, "image tokens are multiplied by sqrt(width) like text; they enter the decoder as the projector gives them"),
    "image_tokens_divided": (image_tokens_divided, "image tokens are divided by sqrt(width); that belongs to code that multiplies all embeddings afterwards"),
    "no_attention_soft_cap": (no_attention_soft_cap, "the soft cap of attention logits (50) is missing"),
    "no_final_soft_cap": (no_final_soft_cap, "the soft cap of the final logits (30) is missing"),
    "norm_without_one": (norm_without_one, "RMSNorm multiplies by the weight; Gemma's multiplies by 1 + weight"),
    "rope_interleaved": (rope_interleaved, "rotary positions pair neighboring features; Gemma pairs feature i with feature i + head_dim / 2"),
    "positions_restart": (positions_restart, "positions of the text start again at 0; they continue after the image tokens"),
    "exact_gelu": (exact_gelu, "exact GELU; both towers use the tanh approximation, also where a config says gelu"),
    "query_scale": (other_query_scale, "queries are scaled by (width / heads)^-0.5; that is the 28B model's scale, all others use head_dim^-0.5"),
    "sliding_window": (sliding_window, "the sliding window of config.json is applied; layer_types says that every layer is full, as in training (with 4096, it shows from 4096 positions on)"),
    "kv_heads_interleaved": (kv_heads_interleaved, "query head n uses key/value head n % K; it is n // (N / K)"),
    "no_last_vision_norm": (no_last_vision_norm, "the vision encoder's last layer norm is missing"),
    "no_newline": (no_newline, "the newline after the prompt is missing"),
    "no_bos": (no_bos, "BOS between image tokens and prompt is missing"),
    "resize_bilinear": (_other_pixels(lambda i, s: _scaled(i.resize((s, s), Image.Resampling.BILINEAR))), "images are resized with a bilinear filter; it is bicubic with antialiasing"),
    "resize_nearest": (_other_pixels(lambda i, s: _scaled(i.resize((s, s), Image.Resampling.NEAREST))), "images are resized to the nearest pixel; it is bicubic with antialiasing"),
    "center_crop": (_other_pixels(_center_crop), "images are cropped at the center; they are squashed to a square"),
    "padded": (_other_pixels(_padded), "images are padded to a square; they are squashed"),
    "pixels_from_0": (_other_pixels(lambda i, s: (_scaled(_squashed(i, s)) + 1) / 2), "pixels are in [0, 1]; the model expects [-1, 1]"),
    "imagenet_mean": (_other_pixels(lambda i, s: ((_scaled(_squashed(i, s)) + 1) / 2 - _MEAN) / _STD), "pixels are normalized with ImageNet's mean; the model expects [-1, 1]"),
    "bgr": (_other_pixels(lambda i, s: _scaled(_squashed(i, s))[..., ::-1]), "color channels are in the order BGR"),
}  # fmt: skip
ONLY_SECOND = {"no_attention_soft_cap", "no_final_soft_cap", "query_scale", "sliding_window"}
ONLY_SEVERAL_KV_HEADS = {"kv_heads_interleaved"}


def mistakes_of(kit: str) -> dict[str, Mistake]:
    """The mistakes that can be made with this model."""
    left_out = set() if kit == "pg2" else (ONLY_SECOND - {"query_scale"}) | ONLY_SEVERAL_KV_HEADS
    return {name: run for name, (run, _) in MISTAKES.items() if name not in left_out}


def objects_of(codec: MaskCodec, tokenizer: Tokenizer) -> dict[str, Any]:
    """An answer with a box and a mask, and what it means in an image."""
    size_wh = (640, 480)
    codes = [(37 * i + 11) % codec.config.num_codes for i in range(16)]
    bins = (204, 102, 819, 614)  # y1, x1, y2, x2
    text = "".join(f"<loc{b:04d}>" for b in bins) + "".join(f"<seg{c:03d}>" for c in codes)
    y1, x1, y2, x2 = (b / 1023 for b in bins)
    box = (x1 * size_wh[0], y1 * size_wh[1], x2 * size_wh[0], y2 * size_wh[1])
    [mask64] = codec.decode_masks(torch.tensor([codes])).numpy()
    mask = paste_mask(mask64, box, size_wh)
    flat = np.flatnonzero(np.diff(np.concatenate([[0], mask.reshape(-1).astype(int), [0]])))
    runs = [[int(a), int(b - a)] for a, b in zip(flat[::2], flat[1::2], strict=True)]
    return {
        "answer": f"{text} cat",
        "token_ids": tokenizer.tokenize_text(text),
        "size_wh": size_wh,
        "box_xyxy": [round(edge, 3) for edge in box],
        "order": "the four <loc> tokens are y1, x1, y2, x2 in 1/1023 of the image's sides",
        "mask_codec": "mask_codec.npz",
        "mask_runs": runs,
        "mask_rle": mask_to_rle(mask),
    }


def expected_of(model: PaliGemma) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for probe in PROBES:
        setting = setting_of(model, probe)
        for stage, values in compute(setting).items():
            arrays[f"{probe}/{stage}"] = values
        arrays[f"{probe}/greedy_ids"] = np.array(greedy(setting))
        arrays[f"{probe}/suffix_ids"] = np.array(setting.suffix_ids)
        arrays[f"{probe}/prefix_length"] = np.array(setting.inputs.token_ids.shape[1])
        arrays[f"{probe}/num_image_tokens"] = np.array(int(setting.inputs.image_mask.sum()))
        arrays[f"{probe}/image"] = np.asarray(images()[probe])
    return arrays


def signatures_of(kit: str, model: PaliGemma, expected: dict[str, Any]) -> dict[str, np.ndarray]:
    """What each mistake gives, at a few positions and ids; where it is the same, nothing."""
    vocab_size = model.config.decoder.vocab_size
    columns = np.linspace(4, vocab_size - 1, _COLUMNS).astype(int)
    rows = np.arange(-_ROWS, 0)
    num_suffix = len(expected["caption/suffix_ids"])
    arrays: dict[str, np.ndarray] = {
        "rows": rows,
        "columns": columns,
        "image_rows": np.array([0, 5, 10, 15]),
        "last_prefix_row": np.array(_ROWS - 1 - num_suffix),
    }
    for name, run in mistakes_of(kit).items():
        for probe in PROBES:
            for stage, values in run(setting_of(model, probe)).items():
                wanted = expected[f"{probe}/{stage}"]
                if values.shape == wanted.shape and np.allclose(values, wanted, atol=1e-6):
                    continue
                if stage == "hidden_states":
                    values = values[rows]
                elif stage == "logits":
                    values = values[rows][:, columns]
                elif stage == "image_tokens":
                    values = values[arrays["image_rows"]]
                arrays[f"{name}/{probe}/{stage}"] = (
                    values if stage == "token_ids" else values.astype(np.float32)
                )
    return arrays


def build_codec() -> MaskCodec:
    torch.manual_seed(_SEED)
    return MaskCodec(MaskCodecConfig(code_dim=7, width=6, stem_widths=(2, 3, 4, 5))).eval()


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def make(out: Path) -> None:
    """Write the whole kit into a folder."""
    codec = build_codec()
    (out / "mask_codec.npz").write_bytes(mask_codec_to_npz(codec))
    objects = objects_of(codec, Tokenizer.from_file(TOKENIZER))
    (out / "objects.json").write_text(json.dumps(objects, indent=1) + "\n")
    texts = {name: text for name, (_, text) in MISTAKES.items()}
    texts["boxes_xyxy"] = "<loc> tokens are read as x1, y1, x2, y2; they are y1, x1, y2, x2"
    (out / "mistakes.json").write_text(json.dumps(texts, indent=1) + "\n")
    for kit, family in FAMILIES.items():
        folder = out / kit
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = build_model(family)
        expected = expected_of(model)
        save_arrays(folder / "expected.npz", expected)
        save_arrays(folder / "mistakes.npz", signatures_of(kit, model, expected))
        save_model(model.bfloat16(), folder / "hf", tokenizer_proto=TOKENIZER.read_bytes())
        if kit == "pg2":
            config = folder / "hf" / "config.json"
            content = json.loads(config.read_text())
            content["text_config"]["sliding_window"] = WINDOW
            config.write_text(json.dumps(content, indent=2) + "\n")
        (folder / "hf" / "checksums.json").unlink()
        for name, image in images().items():
            image.save(folder / f"{name}.png")
        convert_checkpoint(folder / "hf", folder / "big_vision.npz", to="npz")
        convert_checkpoint(folder / "hf", folder / "keras", to="keras")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(FOLDER)
