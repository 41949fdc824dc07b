"""mini: a small trained PaliGemma inside the package, for first steps and tests.

The checkpoint is in `model/`; `paligemma.load("mini")` loads it. How it was trained: docs/mini.md.
"""

LANGUAGES = ("en", "de", "fr", "es", "it", "pt")
"""Languages in which mini writes captions and answers."""
