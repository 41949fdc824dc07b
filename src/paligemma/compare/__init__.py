"""Comparison: several models answer the same questions, beside each other and beside the truth.

comparison.py         the whole: contestants and questions -> answers, figures, report, page
options.py            what is asked, and how
contestants.py        who answers, as `--models` names them
questions.py          the records that everybody is asked
contest.py            a process for each contestant, and its journal
child.py              that process
checkpoint_model.py   a model of this package in it
transformers_model.py a model of transformers in it
endpoint.py           a model behind an OpenAI-compatible address
chat.py               what chat models are asked
recorded.py           answers from a file
reply.py              an answer, and how it is read from text
quality.py            scores, paired differences, McNemar's test
agreement.py          similarity, majority, disagreement
gallery.py            the page
votes.py              blind votes, counted

>>> asked = CompareOptions(ask=("how many frogs are there?",))
>>> compare_models("pictures", ["mini", "mini@int8"], "cmp", asked)         # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.compare.agreement import Agreement as Agreement
    from paligemma.compare.agreement import Majority as Majority
    from paligemma.compare.comparison import Comparison as Comparison
    from paligemma.compare.comparison import Row as Row
    from paligemma.compare.comparison import Seconds as Seconds
    from paligemma.compare.comparison import compare_models as compare_models
    from paligemma.compare.contest import Answers as Answers
    from paligemma.compare.contestants import Contestant as Contestant
    from paligemma.compare.options import CompareOptions as CompareOptions
    from paligemma.compare.quality import Difference as Difference
    from paligemma.compare.quality import McNemar as McNemar
    from paligemma.compare.quality import Quality as Quality
    from paligemma.compare.votes import PairVotes as PairVotes
    from paligemma.compare.votes import count_votes as count_votes
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
