r"""Stage 1 of the pre-training: everything learns, at 224 pixels.

    paligemma train DATA --recipe stage1 --model FOLDER_OF_THE_STAGE_BEFORE \
        --out runs/stage1-224
"""

from __future__ import annotations

from paligemma.recipes.recipe import Recipe, Setting

RECIPE = Recipe(
    name="stage1",
    title="stage 1: all tasks at 224 pixels",
    prompt="cap, caption, describe, ocr, answer, question, detect, segment",
    suffix="what the task asks for, after the prompt",
    text_length=128,
    settings=(
        Setting(resolution=224, examples_seen=1_000_000_000, batch_size=None, learning_rate=2e-5),
    ),
    stage="stage0",
    schedule="rsqrt",
    learning_rates={"paligemma2-3b": 1e-5, "paligemma2-10b": 5e-6, "paligemma2-28b": 5e-6},
    train_split=(
        "WebLI, CC3M-35L, VQ2A, OpenImages, WIT, with OCR, boxes and masks by other models "
        "(weights not published)"
    ),
    train_examples=1_000_000_000,
    metric="perplexity, and the transfers",
    note=(
        "Starts from SigLIP So400m/14 and Gemma; the projector from zeros, new rows of the "
        "embedding from N(0, 0.02). The rate falls with the square root of the step on one "
        "curve through all stages. PaliGemma 2 takes half the learning rate for 3B and a "
        "quarter for 10B and 28B, and caps the logits (50 in attention, 30 at the end). "
        "Pictures are resized by a random method, stored anew as JPEG of quality 75 to 95, "
        "and cropped very little. Batch size and warm-up are not printed; the vision "
        "encoder warms up more slowly, as a figure shows."
    ),
    source="https://arxiv.org/abs/2407.07726, section 3.2",
)
