r"""Stage 2a of the pre-training: 448 pixels, longer texts.

    paligemma train DATA --recipe stage2a --model FOLDER_OF_THE_STAGE_BEFORE \
        --out runs/stage2a-448
"""

from __future__ import annotations

from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="stage2a",
    title="stage 2a: 448 pixels",
    prompt="cap, caption, describe, ocr, answer, question, detect, segment",
    suffix="as in stage 1; all text, all boxes, all masks",
    text_length=512,
    settings=(
        Setting(resolution=448, examples_seen=50_000_000, batch_size=None, learning_rate=2e-5),
    ),
    stage="stage1",
    schedule="rsqrt",
    learning_rates={"paligemma2-3b": 1e-5, "paligemma2-10b": 5e-6, "paligemma2-28b": 5e-6},
    train_split=(
        "WebLI, CC3M-35L, VQ2A, OpenImages, WIT, with OCR, boxes and masks by other models "
        "(weights not published)"
    ),
    train_examples=50_000_000,
    metric="perplexity, and the transfers",
    note=(
        "More reading, detection and segmentation than in stage 1. The curve of the rate "
        "goes on from stage 1. PaliGemma 2 takes half the learning rate for 3B and a "
        "quarter for 10B and 28B, and caps the logits (50 in attention, 30 at the end). "
        "Pictures are resized by a random method, stored anew as JPEG of quality 75 to 95, "
        "and cropped very little. Batch size and warm-up are not printed; the vision "
        "encoder warms up more slowly, as a figure shows."
    ),
    source="https://arxiv.org/abs/2407.07726, section 3.2",
)
