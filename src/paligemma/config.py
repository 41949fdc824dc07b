"""Model configurations, and the table of released checkpoints.

The numbers come from big_vision (`models/ppp/gemma.py`, `models/vit.py`), Gemma's own
`gemma/config.py`, the model cards, arXiv 2407.07726 and arXiv 2412.03555.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from paligemma.errors import OptionError, check_whole

NUM_LOC_TOKENS = 1024
NUM_SEG_TOKENS = 128
NUM_CODES_PER_MASK = 16

MASK_CODEC_FILE = "mask_codec.npz"
MASK_CODEC_FILES = (MASK_CODEC_FILE, "vae-oid.npz")
"""The names of a mask codec next to a model: written by this package, and released."""

Family = Literal["paligemma", "paligemma2"]


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A SigLIP vision transformer without pooling head. Defaults: So400m/14 at 224 pixels."""

    resolution: int = 224
    patch_size: int = 14
    width: int = 1152
    depth: int = 27
    mlp_dim: int = 4304
    num_heads: int = 16
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_positive(self, "resolution", "patch_size", "width", "depth", "mlp_dim", "num_heads")
        if self.resolution % self.patch_size:
            raise OptionError(
                f"resolution is {self.resolution}; it must be a multiple of patch_size, "
                f"{self.patch_size}, so that patches tile the image."
            )
        if self.width % self.num_heads:
            raise OptionError(
                f"The vision width is {self.width}; it must be a multiple of num_heads, "
                f"{self.num_heads}, so that each head gets an equal share."
            )

    @property
    def grid(self) -> int:
        """Number of patches per side: 16 at 224 pixels."""
        return self.resolution // self.patch_size

    @property
    def num_image_tokens(self) -> int:
        """Number of decoder positions per image: 256 at 224 pixels."""
        return self.grid**2

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A Gemma decoder. Gemma 1 and Gemma 2 differ only in these fields.

    `sliding_window` is None by default because the code that trained the released weights uses
    none; an integer W gives transformers' behavior (see `model/attention.py`). The final soft cap
    applies to logits at inference. The training loss omits it by default
    (`TrainConfig.final_logit_softcap_in_loss`), as arXiv 2412.03555 section 3 did for transfers.
    """

    vocab_size: int = 257152
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float
    post_norms: bool = False
    attn_logit_softcap: float | None = None
    final_logit_softcap: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_positive(
            self, "vocab_size", "width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"
        )
        if self.num_heads % self.num_kv_heads:
            raise OptionError(
                f"num_heads is {self.num_heads} and num_kv_heads is {self.num_kv_heads}; the first "
                "must be a multiple of the second, so that query heads share key/value heads "
                "evenly."
            )
        if self.head_dim % 2:
            raise OptionError(
                f"head_dim is {self.head_dim}; it must be even, because rotary positions rotate "
                "pairs of features."
            )
        if self.sliding_window is not None and len(self.sliding_layers) != self.depth:
            raise OptionError(
                f"sliding_layers has {len(self.sliding_layers)} entries, but the decoder has "
                f"{self.depth} layers. Give one bool per layer (Gemma 2: True, False, True, ...)."
            )


@dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig:
    """The whole model: a vision encoder, a linear projector and a decoder."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig

    @property
    def family(self) -> Family:
        """The generation. Only PaliGemma 2 has norms after attention and the MLP."""
        return "paligemma2" if self.decoder.post_norms else "paligemma"


@dataclass(frozen=True, kw_only=True)
class MaskCodecConfig:
    """The VQ-VAE that encodes masks as `<seg>` tokens. Defaults: the released `vae-oid.npz`.

    `stem_widths` are the channels of the encoder's four strided convolutions; the decoder mirrors
    them.
    """

    num_codes: int = NUM_SEG_TOKENS
    code_dim: int = 512
    width: int = 128
    stem_widths: tuple[int, int, int, int] = (16, 32, 64, 128)


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        check_whole(name, getattr(config, name))


GEMMA_2B = DecoderConfig(
    width=2048,
    depth=18,
    mlp_dim=16384,
    num_heads=8,
    num_kv_heads=1,
    head_dim=256,
    query_scale=256**-0.5,
)
GEMMA2_2B = DecoderConfig(
    width=2304,
    depth=26,
    mlp_dim=9216,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    query_scale=256**-0.5,
    post_norms=True,
    attn_logit_softcap=50.0,
    final_logit_softcap=30.0,
)
GEMMA2_9B = replace(GEMMA2_2B, width=3584, depth=42, mlp_dim=14336, num_heads=16, num_kv_heads=8)
GEMMA2_27B = replace(
    GEMMA2_2B,
    width=4608,
    depth=46,
    mlp_dim=36864,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    query_scale=144**-0.5,  # (width / num_heads)^-0.5, unlike the smaller ones
)

DECODERS: dict[tuple[Family, str], DecoderConfig] = {
    ("paligemma", "3b"): GEMMA_2B,
    ("paligemma2", "3b"): GEMMA2_2B,
    ("paligemma2", "10b"): GEMMA2_9B,
    ("paligemma2", "28b"): GEMMA2_27B,
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """One released checkpoint."""

    variant: str
    family: Family
    size: str
    stage: str
    resolution: int
    num_parameters: int
    text_length: int
    hub_id: str
    dtype_branches: tuple[str, ...]
    confirmed: bool = True

    @property
    def config(self) -> PaliGemmaConfig:
        return release_config(self.family, self.size, self.resolution)


def release_config(family: Family, size: str, resolution: int) -> PaliGemmaConfig:
    """Return the config of a released family, size and resolution.

    >>> release_config("paligemma2", "3b", 224).vision.num_image_tokens
    256
    """
    decoder = DECODERS.get((family, size))
    if decoder is None:
        choices = ", ".join(f"{f} {s}" for f, s in DECODERS)
        raise OptionError(f"Unknown release {family} {size}. Choose one of: {choices}.")
    return PaliGemmaConfig(vision=VisionConfig(resolution=resolution), decoder=decoder)


def count_parameters(config: PaliGemmaConfig) -> int:
    """Return the number of parameters; the output layer shares the embedding's."""
    v, d = config.vision, config.decoder
    vision_layer = 4 * (v.width + 1) * v.width + 2 * v.width * v.mlp_dim
    vision_layer += v.mlp_dim + v.width + 4 * v.width
    vision = (3 * v.patch_size**2 + 1) * v.width + v.num_image_tokens * v.width
    vision += v.depth * vision_layer + 2 * v.width
    projector = (v.width + 1) * d.width
    layer = 2 * d.width * d.head_dim * (d.num_heads + d.num_kv_heads)
    layer += 3 * d.width * d.mlp_dim + (4 if d.post_norms else 2) * d.width
    return vision + projector + d.vocab_size * d.width + d.depth * layer + d.width


_PALIGEMMA_BRANCHES = ("main (float32)", "bfloat16", "float16")
_PALIGEMMA2_BRANCHES = ("main (bfloat16)",)
_PT_TEXT_LENGTH = {224: 128, 448: 512, 896: 512}
_MIX_TEXT_LENGTH = {224: 256, 448: 512}

# Task: (text length of the transfer, resolutions confirmed to exist on the hub, resolutions that
# follow the naming pattern but were not confirmed).
_PALIGEMMA_TRANSFERS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "ai2d": (128, (224, 448), ()),
    "aokvqa-da": (32, (224, 448), ()),
    "aokvqa-mc": (128, (224, 448), ()),
    "coco35l": (32, (224, 448), ()),
    "cococap": (32, (224, 448), ()),
    "docvqa": (32, (224, 448, 896), ()),
    "gqa": (32, (224, 448), ()),
    "infovqa": (48, (224, 448, 896), ()),
    "nlvr2": (64, (224, 448), ()),
    "ocrvqa": (32, (224, 448, 896), ()),
    "okvqa": (32, (224, 448), ()),
    "refcoco-seg": (48, (448, 896), (224,)),
    "rsvqa-hr": (32, (224, 448), ()),
    "rsvqa-lr": (32, (224,), (448,)),
    "scicap": (96, (224, 448), ()),
    "science-qa": (512, (224, 448), ()),
    "screen2words": (24, (224, 448), ()),
    "stvqa": (48, (224, 896), (448,)),
    "tallyqa": (32, (224, 448), (896,)),
    "textcaps": (32, (224,), (448,)),
    "textvqa": (32, (896,), (224, 448)),
    "vizwizvqa": (48, (448,), (224,)),
    "vqav2": (32, (224, 448), ()),
    "widgetcap": (32, (448,), (224,)),
}


def _release(
    family: Family, size: str, stage: str, resolution: int, text_length: int, confirmed: bool = True
) -> Release:
    prefix = "paligemma" if family == "paligemma" else "paligemma2"
    variant = f"{prefix}-{size}-{stage}-{resolution}"
    return Release(
        variant=variant,
        family=family,
        size=size,
        stage=stage,
        resolution=resolution,
        num_parameters=count_parameters(release_config(family, size, resolution)),
        text_length=text_length,
        hub_id=f"google/{variant}",
        dtype_branches=_PALIGEMMA_BRANCHES if family == "paligemma" else _PALIGEMMA2_BRANCHES,
        confirmed=confirmed,
    )


def _releases() -> tuple[Release, ...]:
    rows = [_release("paligemma", "3b", "pt", r, t) for r, t in _PT_TEXT_LENGTH.items()]
    rows += [_release("paligemma", "3b", "mix", r, t) for r, t in _MIX_TEXT_LENGTH.items()]
    for task, (length, confirmed, unconfirmed) in _PALIGEMMA_TRANSFERS.items():
        for resolution in sorted(confirmed + unconfirmed):
            is_confirmed = resolution in confirmed
            rows.append(_release("paligemma", "3b", f"ft-{task}", resolution, length, is_confirmed))
    for size in ("3b", "10b", "28b"):
        rows += [_release("paligemma2", size, "pt", r, t) for r, t in _PT_TEXT_LENGTH.items()]
        rows += [_release("paligemma2", size, "mix", r, t) for r, t in _MIX_TEXT_LENGTH.items()]
        if size != "28b":
            rows.append(_release("paligemma2", size, "ft-docci", 448, 512))
    return tuple(rows)


RELEASES: tuple[Release, ...] = _releases()
