"""Read all text in the image, in raster order.

Prompt: arXiv 2407.07726 section 3.2.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from paligemma.results import Text
from paligemma.tasks.objects import TokenReader
from paligemma.tasks.task import Generated, TaskContext, read_scored_text


@dataclass(frozen=True, kw_only=True)
class OcrTask:
    """Read the text in the image; for pre-trained checkpoints and ones tuned for OCR.

    >>> OcrTask().prompt()
    'ocr'
    """

    def prompt(self) -> str:
        return "ocr"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Text:
        return read_scored_text(generated, tokenizer)
