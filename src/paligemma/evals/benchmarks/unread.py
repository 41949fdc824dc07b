"""Benchmarks whose scores are known here and whose files are not read, and why."""

from __future__ import annotations

from collections.abc import Mapping

from paligemma.evals.benchmarks.benchmark import Benchmark, Metric, Task
from paligemma.evals.benchmarks.prompts import ANSWER, CAPTION
from paligemma.evals.benchmarks.writing import TABLE_METRICS, TABLE_PROMPT
from paligemma.evals.metrics.accuracy import ExactMatch
from paligemma.evals.metrics.cider import Cider

_EXACT = {"acc": ExactMatch()}
_VIDEO = "it is asked about videos, and no videos are decoded here. Take frames of your own, as "
_VIDEO += "several pictures of one record"


def _unread(
    name: str,
    title: str,
    rows: tuple[str, ...],
    reason: str,
    homepage: str,
    *,
    task: Task = "answer",
    metrics: Mapping[str, Metric] = _EXACT,
    num_images: int = 1,
    max_new_tokens: int = 64,
    prompt: str = ANSWER,
) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        task=task,
        prompt=prompt,
        metrics=metrics,
        splits={"test": rows},
        needs=lambda split: (),
        read=lambda place: (),
        homepage=homepage,
        max_new_tokens=max_new_tokens,
        num_images=num_images,
        not_read_because=reason,
    )


def _video_caption(name: str, title: str, row: str, homepage: str, length: int) -> Benchmark:
    return _unread(
        name,
        title,
        (row,),
        _VIDEO,
        homepage,
        task="caption",
        prompt=CAPTION,
        metrics={"CIDEr": Cider()},
        num_images=16,
        max_new_tokens=length,
    )


_ACTIVITYNET = "http://activity-net.org"
_MSRVTT = "https://www.microsoft.com/en-us/research/publication/msr-vtt"
UNREAD = (
    _video_caption("msrvtt-cap", "MSR-VTT captions", "MSRVTT-CAP", _MSRVTT, 32),
    _video_caption("activitynet-cap", "ActivityNet captions", "ActivityNet-CAP", _ACTIVITYNET, 64),
    _video_caption("vatex", "VATEX", "VATEX", "https://eric-xw.github.io/vatex-website", 64),
    _unread("msrvtt-qa", "MSR-VTT questions", ("MSRVTT-QA",), _VIDEO, _MSRVTT, num_images=16),
    _unread(
        "activitynet-qa",
        "ActivityNet questions",
        ("ActivityNet-QA",),
        _VIDEO,
        "https://github.com/MILVLG/activitynet-qa",
        num_images=16,
    ),
    _unread(
        "msvd-qa",
        "MSVD questions",
        ("MSVD-QA",),
        _VIDEO,
        "https://github.com/xudejing/video-question-answering",
        num_images=8,
    ),
    _unread(
        "mmvp",
        "MMVP",
        ("MMVP",),
        "the papers do not print how its two options are asked and the answer is told from them",
        "https://github.com/tsb0601/MMVP",
        metrics={},
    ),
    _unread(
        "objaverse",
        "Objaverse Multiview",
        ("Objaverse Multiview",),
        "its score needs Google's sentence encoder USEv4 and renderings that are not published",
        "https://objaverse.allenai.org",
        metrics={},
    ),
    _unread(
        "fintabnet",
        "FinTabNet",
        ("FinTabNet",),
        "its tables are regions of PDF files, with annotations that the paper refined. Cut the "
        "pictures out, and write them as JSON Lines of image, prefix and suffix",
        "https://developer.ibm.com/exchanges/data/all/fintabnet",
        task="write",
        prompt=TABLE_PROMPT,
        metrics=TABLE_METRICS,
        max_new_tokens=4096,
    ),
)
