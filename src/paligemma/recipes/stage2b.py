r"""Stage 2b of the pre-training: 896 pixels.

    paligemma train DATA --recipe stage2b --model FOLDER_OF_THE_STAGE_BEFORE \
        --out runs/stage2b-896
"""

from __future__ import annotations

from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="stage2b",
    title="stage 2b: 896 pixels",
    prompt="cap, caption, describe, ocr, answer, question, detect, segment",
    suffix="as in stage 2a",
    text_length=512,
    settings=(
        Setting(resolution=896, examples_seen=10_000_000, batch_size=None, learning_rate=2e-5),
    ),
    stage="stage2a",
    schedule="rsqrt",
    learning_rates={"paligemma2-3b": 1e-5, "paligemma2-10b": 5e-6, "paligemma2-28b": 5e-6},
    train_split=(
        "WebLI, CC3M-35L, VQ2A, OpenImages, WIT, with OCR, boxes and masks by other models "
        "(weights not published)"
    ),
    train_examples=10_000_000,
    metric="perplexity, and the transfers",
    note=(
        "Goes on from stage 2a on the same curve. PaliGemma 2 takes half the learning rate "
        "for 3B and a quarter for 10B and 28B, and caps the logits (50 in attention, 30 at "
        "the end). Pictures are resized by a random method, stored anew as JPEG of quality "
        "75 to 95, and cropped very little. Batch size and warm-up are not printed; the "
        "vision encoder warms up more slowly, as a figure shows."
    ),
    source="https://arxiv.org/abs/2407.07726, section 3.2",
)
