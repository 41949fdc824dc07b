"""gemma.cpp itself loads the files that we write, and has the same weights and image tokens.

Runs where GEMMA_CPP_DUMP is the path of the program built from gemma_cpp_dump.cc.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paligemma.checkpoints.gemma_cpp import open_sbs, write_sbs
from paligemma.checkpoints.rows import Contents, parameter_shapes, read_all
from paligemma.config import DecoderConfig, PaliGemmaConfig, VisionConfig
from paligemma.model.paligemma import PaliGemma
from tests.tiny import TensorRows

PROGRAM = os.environ.get("GEMMA_CPP_DUMP")
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="GEMMA_CPP_DUMP is not set: build gemma_cpp_dump.cc to run this"
)

CONFIGS = {
    "PaliGemma 2": PaliGemmaConfig(
        vision=VisionConfig(resolution=56, width=96, depth=3, mlp_dim=160, num_heads=3),
        decoder=DecoderConfig(
            vocab_size=300,
            width=192,
            depth=2,
            mlp_dim=320,
            num_heads=6,
            num_kv_heads=3,
            head_dim=64,
            query_scale=32**-0.5,  # (width / heads)^-0.5, as in the 28B model
            post_norms=True,
            attn_logit_softcap=50.0,
            final_logit_softcap=30.0,
        ),
    ),
    "PaliGemma 1": PaliGemmaConfig(
        vision=VisionConfig(resolution=28, width=64, depth=2, mlp_dim=96, num_heads=2),
        decoder=DecoderConfig(
            vocab_size=513,
            width=256,
            depth=3,
            mlp_dim=384,
            num_heads=8,
            num_kv_heads=1,
            head_dim=32,
            query_scale=32**-0.5,
        ),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "sfp", "sfp with scales"])
def test_gemma_cpp_has_the_same_weights_and_image_tokens(
    name: str, dtype: Any, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    generator = torch.Generator().manual_seed(3)
    rows = {}
    for parameter, shape in parameter_shapes(config).items():
        values = 0.1 * torch.randn(shape, generator=generator)
        if dtype == "sfp with scales" and "decoder.blocks" in parameter and len(shape) > 1:
            values *= 30
        rows[parameter] = TensorRows(parameter, values.bfloat16())
    path, image = tmp_path / "m.sbs", tmp_path / "i.ppm"
    contents = Contents(config=config, parameters=rows, tokenizer=None)
    write_sbs(contents, path, "sfp" if dtype == "sfp with scales" else dtype)
    size = config.vision.resolution
    pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=generator)
    image.write_bytes(b"P6\n%d %d\n255\n" % (size, size) + pixels.numpy().tobytes())
    tokens, weights = tmp_path / "tokens", tmp_path / "weights"
    assert PROGRAM is not None
    subprocess.run([PROGRAM, path, image, tokens, weights], check=True, capture_output=True)

    with open_sbs(path) as checkpoint:
        ours = {
            key: read_all(values).float() for key, values in checkpoint.contents.parameters.items()
        }
    theirs = dumped(weights.read_bytes())
    assert len(theirs) == 2 + config.decoder.depth * (10 if config.decoder.post_norms else 8)
    for key, values in theirs.items():
        assert torch.equal(values, expected(ours, key, config).view_as(values)), key

    model = PaliGemma(config).eval()
    model.load_state_dict(ours)
    with torch.no_grad():
        expected_tokens = model.embed_images(pixels.permute(2, 0, 1)[None] / 127.5 - 1)[0]
    values = torch.from_numpy(np.fromfile(tokens, dtype=np.float32)).view_as(expected_tokens)
    # It computes with bfloat16 activations: 8 binary digits.
    assert (values - expected_tokens).abs().max() < 0.01 * expected_tokens.abs().max()


def dumped(raw: bytes) -> dict[str, Tensor]:
    """Read what the program wrote: name, rows and columns, then float32 values."""
    tensors, offset = {}, 0
    while offset < len(raw):
        end = raw.index(b"\n", offset)
        name, rows, columns = raw[offset:end].decode().split()
        count = int(rows) * int(columns)
        values = np.frombuffer(raw, dtype=np.float32, count=count, offset=end + 1)
        tensors[name] = torch.from_numpy(values.copy()).view(int(rows), int(columns))
        offset = end + 1 + 4 * count
    return tensors


def expected(ours: dict[str, Tensor], key: str, config: PaliGemmaConfig) -> Tensor:
    """Return our parameter; of key and value, the heads one after the other in turn."""
    if not key.endswith("key_value"):
        return ours[f"decoder.{key}.weight"]
    start = f"decoder.{key.removesuffix('key_value')}attention."
    shape = (config.decoder.num_kv_heads, config.decoder.head_dim, -1)
    pair = [ours[f"{start}{name}_proj.weight"].view(shape) for name in ("k", "v")]
    return torch.stack(pair, dim=1)
