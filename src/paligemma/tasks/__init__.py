"""Tasks: build a prompt, and parse the model's tokens into a typed result.

task.py            the protocol: prompt(), parse()
scored_text.py     the text of an answer with the probability of its parts
table.py           tables: HTML
chart.py           charts: labels and values
text.py            captions, answers to questions, and the text in the image
yes_no.py          how likely yes and no are as answers
field.py           answers that are held to a form: a pattern, the JSON of a schema
text_grammar.py    constrained decoding of text, with llguidance
json_schema.py     JSON schemas without open ends, for text_grammar.py
detect.py          boxes for phrases
segment.py         masks for phrases
objects.py         parsing of object lists: boxes, labels, scores
object_grammar.py  constrained decoding of object lists
object_stream.py   objects of an answer while it is generated
answer_text.py     the text of an answer from elsewhere -> boxes, masks
parse_prompt.py    the text of a prompt -> task
seg_codec.py       masks <-> <seg> codes: the VQ-VAE
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.tasks.answer_text import parse_text as parse_text
    from paligemma.tasks.chart import ChartTask as ChartTask
    from paligemma.tasks.chart import parse_chart as parse_chart
    from paligemma.tasks.detect import DetectTask as DetectTask
    from paligemma.tasks.field import FieldTask as FieldTask
    from paligemma.tasks.field import JsonTask as JsonTask
    from paligemma.tasks.objects import split_phrases as split_phrases
    from paligemma.tasks.seg_codec import MaskCodec as MaskCodec
    from paligemma.tasks.seg_codec import load_mask_codec_npz as load_mask_codec_npz
    from paligemma.tasks.seg_codec import save_mask_codec_npz as save_mask_codec_npz
    from paligemma.tasks.segment import SegmentTask as SegmentTask
    from paligemma.tasks.table import TableTask as TableTask
    from paligemma.tasks.table import parse_table as parse_table
    from paligemma.tasks.task import LANGUAGES as LANGUAGES
    from paligemma.tasks.task import GuidedTask as GuidedTask
    from paligemma.tasks.task import Task as Task
    from paligemma.tasks.task import TaskContext as TaskContext
    from paligemma.tasks.text import AnswerTask as AnswerTask
    from paligemma.tasks.text import BoxCaptionTask as BoxCaptionTask
    from paligemma.tasks.text import CaptionTask as CaptionTask
    from paligemma.tasks.text import OcrTask as OcrTask
    from paligemma.tasks.text import QuestionTask as QuestionTask
    from paligemma.tasks.yes_no import YesNoTask as YesNoTask
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
