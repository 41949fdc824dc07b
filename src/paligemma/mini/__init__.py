"""mini: a small trained PaliGemma inside the package, for first steps and tests.

The checkpoint is in `model/`; `paligemma.load("mini")` loads it. How it was trained: docs/mini.md.
"""

LANGUAGES = ("en", "de", "fr", "es", "it", "pt")
"""Languages in which mini writes captions and answers."""

SAMPLE_CAPTION = "three guitars and a banana"
"""The true caption of `sample.png`, an image of mini's world that training never saw."""
