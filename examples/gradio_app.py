"""A small demo in Gradio, for hosted Spaces: picture and task in, words, boxes or masks out.

    python examples/gradio_app.py                   # the built-in model

    from gradio_app import build_demo     # app.py of a Space
    build_demo("google/paligemma2-3b-mix-224").launch()

Knows the predictor and Gradio (extra `demo`); `paligemma serve` has a page of its own.
"""

from __future__ import annotations

import html
import os
from typing import TYPE_CHECKING, Any

import paligemma
from paligemma import MissingExtraError, PaliGemmaError, Predictor

if TYPE_CHECKING:
    import PIL.Image

TASKS = {
    "Caption": "the language, such as en or de",
    "Ask": "a question",
    "Read": "nothing needed",
    "Detect": "things, such as: cat ; dog",
    "Segment": "things, such as: cat ; dog",
    "Prompt": "a prompt of your own",
}
"""Name of the task -> what is written beside it."""

Annotated = tuple["PIL.Image.Image", list[tuple[Any, str]]]


def answer(
    predictor: Predictor, image: PIL.Image.Image, task: str, text: str
) -> tuple[str, Annotated]:
    """What the model says, and the picture with boxes or masks that it found, each with its name.

    Raises PaliGemmaError for what it cannot use.
    """
    text = text.strip()
    if task == "Detect":
        boxes = predictor.detect(image, text)
        return str(boxes), (image, [(tuple(map(round, o.box_xyxy)), o.label) for o in boxes])
    if task == "Segment":
        masks = predictor.segment(image, text)
        return str(masks), (image, [(o.mask, o.label) for o in masks])
    if task == "Caption":
        return predictor.caption(image, text or "en").text, (image, [])
    if task == "Ask":
        return predictor.ask(image, text).text, (image, [])
    if task == "Read":
        return predictor.ocr(image).text, (image, [])
    return predictor.generate(image, text).text, (image, [])


def build_demo(model: str | Predictor | None = None) -> Any:
    """A `gradio.Blocks` around a model; names as for `paligemma.load`.

    Raises MissingExtraError without Gradio, and what `paligemma.load` raises.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
    try:
        import gradio
    except ImportError:
        raise MissingExtraError("gradio", "demo", "The Gradio demo") from None
    predictor = model if isinstance(model, Predictor) else paligemma.load(model)

    def run(image: PIL.Image.Image | None, task: str, text: str) -> tuple[str, Annotated]:
        if image is None:
            raise gradio.Error("Choose a picture first.")
        try:
            return answer(predictor, image, task, text)
        except PaliGemmaError as error:
            raise gradio.Error(html.escape(str(error))) from None  # Gradio shows it as HTML

    with gradio.Blocks(title="paligemma") as demo:
        gradio.Markdown(f"# paligemma: {predictor.name}\n\n{predictor.note or ''}")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="pil", label="Picture")
                task = gradio.Radio(list(TASKS), value="Caption", label="What to do")
                text = gradio.Textbox(label="Words", placeholder=TASKS["Caption"])
                button = gradio.Button("Run", variant="primary")
            with gradio.Column():
                said = gradio.Textbox(label="Answer")
                marked = gradio.AnnotatedImage(label="Boxes and masks")
        task.change(lambda name: gradio.Textbox(placeholder=TASKS[name]), task, text)
        button.click(run, [image, task, text], [said, marked])
        text.submit(run, [image, task, text], [said, marked])
    return demo


if __name__ == "__main__":
    build_demo(os.environ.get("PALIGEMMA_MODEL")).launch(share=False)
