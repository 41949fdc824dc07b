"""The prompts of the transfer tasks, exactly as in training.

Source: big_vision, configs/proj/paligemma/transfers (pp strings of every task), and appendix B of
arXiv 2407.07726. The processor adds the separator, a newline.
"""

from __future__ import annotations

CAPTION = "caption en"
CAPTION_IN = "caption {language}"
ANSWER = "answer en {question}"
QUESTION = "{question}"
"""Without a task word: DocVQA, ChartQA and, by its config, POPE."""
CHOOSE = "answer en  {question} choose from: {options}"
"""Two spaces after "en": the config joins "answer en " and " {question}". The paper prints one;
the released checkpoints were trained with two, which are a single token (139)."""
OPTION_SEPARATOR = " \t "
SCIENCE = "Question: {question}\nContext: {hint}\nOptions: {options}\nAnswer:"
SENTENCE = "answer en {sentence}"
EXPRESSION = "{expression}"
DETECT_ALL = "detect all classes"


def choose(question: str, options: list[str]) -> str:
    r"""
    >>> choose("Which one eats?", ["a", "b"])
    'answer en  Which one eats? choose from: a \t b'
    """
    return CHOOSE.format(question=question, options=OPTION_SEPARATOR.join(options))


def science(question: str, hint: str, options: list[str]) -> str:
    """Options get letters; an empty hint becomes N/A.

    >>> science("Why?", "", ["so", "no"])
    'Question: Why?\\nContext: N/A\\nOptions: (A) so, (B) no\\nAnswer:'
    """
    lettered = ", ".join(f"({letter(index)}) {option}" for index, option in enumerate(options))
    return SCIENCE.format(question=question, hint=hint or "N/A", options=lettered)


def letter(index: int) -> str:
    """
    >>> letter(0), letter(2)
    ('A', 'C')
    """
    return chr(ord("A") + index)
