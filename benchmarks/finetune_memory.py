"""Compare memory and step time of LoRA fine-tuning with transformers + peft.

    python benchmarks/finetune_memory.py --blocks 2 --tokens 300 --method lora

Each program runs in its own process, with random bfloat16 weights of PaliGemma 2 3B's shapes and
only a few blocks in encoder and decoder; float32 adapters of rank 16 on every linear layer of the
decoder; AdamW; one image per row; the last tokens of a row (`--suffix`) count in the loss. The
programs take turns, so that only one computes at a time. Prints the median seconds per step and
peak resident memory, with and without the memory used before the model was built (imports).

transformers uses its default attention.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paligemma.adapters.lora import LoraConfig, add_lora, freeze_base, lora_parameters
from paligemma.config import PaliGemmaConfig, release_config
from paligemma.finetune.loss import suffix_loss
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma

_RANK, _ALPHA, _RATE = 16, 32, 1e-4
_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
_OURS = ("ours", "ours-nf4", "ours-int8")
Step = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=2, help="blocks in encoder and decoder (2)")
    parser.add_argument("--tokens", type=int, default=300, help="tokens per row (300)")
    parser.add_argument("--suffix", type=int, default=30, help="suffix tokens per row (30)")
    parser.add_argument("--rows", type=int, default=1, help="rows per batch (1)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (5)")
    parser.add_argument(
        "--method", default="lora", choices=("lora", "dora"), help="kind of adapter (lora)"
    )
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["peft", "ours"],
        help="programs to compare: peft, ours, ours-nf4, ours-int8 (peft ours)",
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments)
        return
    own = [word for word in sys.argv[1:] if word != "--serve"]
    sides = {name: start(name, own) for name in arguments.sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.steps + 1):
        for name, process in sides.items():
            took, loss = ask(process, "step").split()
            losses[name].append(float(loss))
            if number > 0:  # the first one also makes the optimizer's state
                seconds[name].append(float(took))
    first = arguments.sides[0]
    print(f"{'':10} {'s/step':>9} {'speed':>6} {'peak GB':>8} {'without imports':>16}  losses")
    for name, process in sides.items():
        peak, before = (int(word) for word in ask(process, "memory").split())
        middle = statistics.median(seconds[name])
        times = statistics.median(seconds[first]) / middle
        print(
            f"{name:10} {middle:9.2f} {times:6.2f} {peak / 1e9:8.2f} {(peak - before) / 1e9:16.2f}"
            f"  {losses[name][0]:.3f} -> {losses[name][-1]:.3f}"
        )
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()


def start(name: str, options: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", __file__, *options, "--serve", name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":  # a library may print as it is imported
        if process.poll() is not None:
            raise SystemExit(f"{name} ended before it was ready.")
    return process


def ask(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    print(word, file=process.stdin, flush=True)
    return process.stdout.readline()


def serve(arguments: argparse.Namespace) -> None:
    config = release_config("paligemma2", "3b", 224)
    config = replace(
        config,
        vision=replace(config.vision, depth=arguments.blocks),
        decoder=replace(config.decoder, depth=arguments.blocks),
    )
    inputs = batch(config, arguments.rows, arguments.tokens, arguments.suffix)
    if arguments.serve in _OURS:
        before = resident("VmRSS")
        frozen = arguments.serve.removeprefix("ours").removeprefix("-") or None
        step = ours(config, inputs, arguments.method, frozen)
    else:
        import peft
        import transformers  # noqa: F401

        before = resident("VmRSS")
        step = theirs(peft, config, inputs, arguments.method)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print(resident("VmHWM"), before, flush=True)
            continue
        started = time.perf_counter()
        loss = step()
        print(time.perf_counter() - started, loss, flush=True)


def ours(config: PaliGemmaConfig, inputs: ModelInputs, method: str, frozen: Any) -> Step:
    with torch.device("meta"):
        model = PaliGemma(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    fill(model)
    if frozen is not None:
        freeze_base(model, frozen)
    add_lora(model, LoraConfig(rank=_RANK, alpha=_ALPHA, use_dora=method == "dora")).train()
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=_RATE)

    def step() -> float:
        hidden = model.hidden_states(inputs)
        total, count = suffix_loss(
            model.decoder, hidden, inputs, reduction="token", final_logit_softcap=True
        )
        return finish(total / count, optimizer)

    return step


def theirs(peft: Any, config: PaliGemmaConfig, inputs: ModelInputs, method: str) -> Step:
    import transformers
    from transformers.initialization import no_init_weights

    vision, decoder = config.vision, config.decoder
    settings = transformers.PaliGemmaConfig(
        text_config={
            "model_type": "gemma2",
            "vocab_size": decoder.vocab_size + 64,
            "hidden_size": decoder.width,
            "intermediate_size": decoder.mlp_dim,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "head_dim": decoder.head_dim,
            "query_pre_attn_scalar": round(decoder.query_scale**-2),
            "attn_logit_softcapping": decoder.attn_logit_softcap,
            "final_logit_softcapping": decoder.final_logit_softcap,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": vision.resolution,
            "patch_size": vision.patch_size,
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "vision_use_head": False,
        },
        image_token_index=decoder.vocab_size,
        projection_dim=decoder.width,
        hidden_size=decoder.width,
    )
    torch.set_default_dtype(torch.bfloat16)
    with no_init_weights():
        model = transformers.PaliGemmaForConditionalGeneration._from_config(settings)
    torch.set_default_dtype(torch.float32)
    fill(model)
    lora = peft.LoraConfig(
        r=_RANK, lora_alpha=_ALPHA, target_modules=_TARGETS, use_dora=method == "dora"
    )
    adapted = peft.get_peft_model(model, lora).train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE)
    assert inputs.loss_mask is not None
    arguments = {
        "input_ids": inputs.token_ids.masked_fill(inputs.image_mask, decoder.vocab_size),
        "attention_mask": inputs.input_mask.long(),
        "token_type_ids": inputs.mask_ar.long(),
        "pixel_values": inputs.required_pixel_values.to(torch.bfloat16),
        "labels": inputs.token_ids.masked_fill(~inputs.loss_mask, -100),
    }

    def step() -> float:
        return finish(adapted(**arguments).loss, optimizer)

    return step


def finish(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def fill(model: torch.nn.Module) -> None:
    """Small random weights, made in place."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)


def batch(config: PaliGemmaConfig, num_rows: int, num_tokens: int, num_suffix: int) -> ModelInputs:
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(num_tokens)[None].expand(num_rows, -1)
    is_image = places < config.vision.num_image_tokens
    ids = torch.randint(5, config.decoder.vocab_size, (num_rows, num_tokens), generator=generator)
    in_suffix = places >= num_tokens - num_suffix
    side = config.vision.resolution
    return ModelInputs(
        token_ids=ids * ~is_image,
        input_mask=torch.ones_like(is_image),
        mask_ar=in_suffix,
        image_mask=is_image,
        pixel_values=torch.rand((num_rows, 3, side, side), generator=generator) * 2 - 1,
        image_index=tuple((row,) for row in range(num_rows)),
        loss_mask=in_suffix,
    )


def resident(field: str) -> int:
    """Resident bytes: VmRSS for now, VmHWM for the peak. Linux only."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


if __name__ == "__main__":
    main()
