"""CIDEr-D, BLEU and ROUGE-L are pycocoevalcap's, and captions are cut into words as there."""

import contextlib
import io
import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.evals.metrics.captions import Bleu, Cider, RougeL, ptb_words

CAPTIONS = st.text(st.sampled_from("ab "), max_size=10)
SET = st.lists(
    st.tuples(CAPTIONS, st.lists(CAPTIONS, min_size=1, max_size=3)), min_size=1, max_size=5
)

# Words of PTBTokenizer 3.4.1 for each, in lower case, without the punctuation left out there.
WORDS = {
    "A man's hat isn't here, can't won't it's they're I'd we've": (
        "a man 's hat is n't here ca n't wo n't it 's they 're i 'd we 've"
    ),
    "cannot gonna wanna 'tis": "can not gon na wan na 't is",
    "Two dogs (brown) and [black] cats; one: two!": (
        "two dogs -lrb- brown -rrb- and -lsb- black -rsb- cats one two"
    ),
    "Price is $5.00, 10% off, 1,000 people at 10:30 am.": (
        "price is $ 5.00 10 % off 1,000 people at 10:30 am"
    ),
    "Mr. Smith and J. Jones live in the U.S. and St. Louis.": (
        "mr. smith and j. jones live in the u.s. and st. louis"
    ),
    "a man in a no. 7 jersey said no.": "a man in a no. 7 jersey said no",
    "a cat in the sun. it sat.": "a cat in the sun it sat",
    "black/white t-shirt e-mail co-op -- dash - hyphen": (
        "black/white t-shirt e-mail co-op dash hyphen"
    ),
    "A \"quoted\" word and 'single' “smart” ‘quotes’ don’t": (
        "a quoted word and single smart quotes do n't"
    ),
    "well... that is it… ok": "well that is it ok",
    "the dogs' toys 90's 1990s '90s o'clock": "the dogs toys 90 's 1990s '90s o'clock",
    "½ cup of 3½ for €6 or 5¢": "1/2 cup of 3 1/2 for $ 6 or 5 cents",
    "http://www.example.com/a?b=c. and foo@bar.com": "http://www.example.com/a?b=c and foo@bar.com",
    "#hashtag @user #1 & 2 * 3 = 4": "#hashtag @user # 1 & 2 * 3 = 4",
    "AT&T rock & roll b&w": "at&t rock & roll b & w",
    "What?! Really?? Yes!": "what ?! really ?? yes",
    "café Füße 日本語 слово": "café füße 日本語 слово",
    "собака, и кошка. «да»": "собака и кошка да",
    "": "",
    " . , ' \" ": "",
}


@pytest.mark.parametrize("caption", WORDS)
def test_captions_are_cut_like_the_treebank(caption: str) -> None:
    assert " ".join(ptb_words(caption)) == WORDS[caption]


def test_captions_are_cut_like_the_official_tokenizer(shared_data: Path) -> None:
    words = official_words(caption_corpus(shared_data))
    same = sum(ptb_words(caption) == wanted for caption, wanted in words.items())
    assert len(words) > 500
    assert same / len(words) > 0.995
    official = official_words(list(WORDS))
    assert {caption: " ".join(own) for caption, own in official.items()} == WORDS


def test_caption_scores_of_the_official_code(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "metrics" / "captions.json").read_text())
    written = vectors["written_200"]
    predictions = [item["hyp"] for item in written["items"]]
    references = [item["refs"] for item in written["items"]]
    for text in ("split", "ptb"):  # these captions are words already
        cider = Cider(text=text).score(predictions, references)
        assert cider.value == pytest.approx(written["expected"]["CIDEr"], abs=1e-12)
        expected = [item["cider"] for item in written["items"]]
        assert cider.per_example == pytest.approx(expected, abs=1e-12)
    bleu = Bleu(text="split").score(predictions, references)
    assert list(bleu.details.values()) == pytest.approx(written["expected"]["BLEU"], abs=1e-12)
    rouge = RougeL(text="split").score(predictions, references)
    assert rouge.value == pytest.approx(written["expected"]["ROUGE_L"], abs=1e-12)
    expected = [item["rouge_l"] for item in written["items"]]
    assert rouge.per_example == pytest.approx(expected, abs=1e-12)

    example = vectors["nlg_eval_example"]
    cider = Cider().score(example["hyps"], example["refs"])
    assert cider.value == pytest.approx(example["expected"]["CIDEr"], abs=5e-7)
    bleu = Bleu().score(example["hyps"], example["refs"])
    assert list(bleu.details.values()) == pytest.approx(example["expected"]["BLEU"], abs=5e-7)
    rouge = RougeL().score(example["hyps"], example["refs"])
    assert rouge.value == pytest.approx(example["expected"]["ROUGE_L"], abs=5e-7)

    example = vectors["aac_readme"]
    cider = Cider().score(example["cands"], example["refs"])
    assert cider.value == pytest.approx(example["expected"]["cider_d_corpus"], abs=5e-5)
    assert cider.per_example == pytest.approx(example["expected"]["cider_d"], abs=5e-5)
    bleu = Bleu(max_order=1).score(example["cands"], example["refs"])
    assert bleu.value == pytest.approx(example["expected"]["bleu_1"], abs=5e-5)


def test_bleu_of_another_evaluation(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "metrics" / "text_misc.json").read_text())["torchmetrics"]
    case = next(case for case in vectors if case["metric"] == "BLEU-4")
    for times in (1, 2):  # alone too a caption is measured by its reference of the closest length
        result = Bleu(text="split").score(case["preds"] * times, case["target"] * times)
        assert result.value == pytest.approx(case["value"], abs=5e-5)


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_random_captions_are_the_official_ones(seed: int) -> None:
    bleu_scorer = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer", reason="no oracle")
    cider_scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer", reason="no oracle")
    rng = random.Random(seed)
    vocabulary = ["a", "the", "dog", "cat", "on", "runs", "sits", "red", "été", "日本"]

    def caption() -> str:
        return " ".join(rng.choices(vocabulary, k=rng.randint(0, 9)))

    count = (1, 2, 7, 40)[seed]
    predictions = [caption() for _ in range(count)]
    references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(count)]
    cider_oracle, bleu_oracle = cider_scorer.CiderScorer(), bleu_scorer.BleuScorer()
    for guess, accepted in zip(predictions, references, strict=True):
        cider_oracle += (guess, accepted)
        bleu_oracle += (guess, accepted)
    value, per_example = cider_oracle.compute_score()
    cider = Cider(text="split").score(predictions, references)
    assert cider.value == pytest.approx(float(value), abs=1e-9)
    assert cider.per_example == pytest.approx(per_example.tolist(), abs=1e-9)
    values, per_caption = bleu_oracle.compute_score(option="closest")  # as its Bleu class calls it
    bleu = Bleu(text="split").score(predictions, references)
    assert list(bleu.details.values()) == pytest.approx(values, abs=1e-9)
    assert bleu.per_example == pytest.approx(per_caption[3], abs=1e-9)
    rouge_oracle = pytest.importorskip("pycocoevalcap.rouge.rouge", reason="no oracle").Rouge()
    expected = [
        rouge_oracle.calc_score([guess], accepted)
        for guess, accepted in zip(predictions, references, strict=True)
    ]
    rouge = RougeL(text="split").score(predictions, references)
    assert rouge.per_example == pytest.approx(expected, abs=1e-12)


def test_cider_by_hand() -> None:
    # Two pictures without a shared word: every n-gram has weight log 2, so a caption that equals
    # its reference has cosine 1 for each n that it has: 1, 2 and, with four words, 3 and 4 too.
    result = Cider().score(["a b", "c d e f"], ["a b", "c d e f"])
    assert result.per_example == pytest.approx((5.0, 10.0))
    # Words that are in the references of every picture weigh nothing.
    assert Cider().score(["a", "a"], ["a", "a"]).value == 0.0


def test_bleu_by_hand() -> None:
    # 3 of 4 words, 1 of 3 pairs, and as long as the reference.
    result = Bleu(max_order=2).score(["a b x c", "a b x c"], ["a b c d", "a b c d"])
    assert result.details["bleu_1"] == pytest.approx(3 / 4)
    assert result.value == pytest.approx((3 / 4 * 1 / 3) ** 0.5)
    # Half as long as wanted: penalty exp(1 - 2).
    short = Bleu(max_order=1).score(["a b", "a b"], ["a b c d", "a b c d"])
    assert short.value == pytest.approx(0.36787944, abs=1e-8)


def test_rouge_by_hand() -> None:
    # "a cat" in order out of 3 words and out of 4: precision 2/3, recall 1/2.
    expected = (1 + 1.44) * (2 / 3) * (1 / 2) / (1 / 2 + 1.44 * 2 / 3)
    assert RougeL().score(["A red, cat."], ["a dog cat runs"]).value == pytest.approx(expected)
    # The best precision is with the first, the best recall with the second.
    assert RougeL().score(["a b"], [["a b c d", "a"]]).value == pytest.approx(1.0)


def test_empty_captions_score_nothing() -> None:
    assert RougeL().score(["", "a"], ["a", ""]).per_example == (0.0, 0.0)
    assert RougeL().score(["."], [["a", "!?"]]).value == 0.0
    assert RougeL().score(["."], [["a", ""]]).value == pytest.approx(1.0)
    assert Cider().score(["", "a b"], ["a b c d", ""]).per_example == (0.0, 0.0)
    assert Bleu().score(["", ""], ["a", "b"]).value == pytest.approx(0.0, abs=1e-9)


@settings(deadline=None, derandomize=True)
@given(SET, st.randoms())
def test_the_order_of_captions_and_references_is_of_no_account(
    captions: list[tuple[str, list[str]]], rng: random.Random
) -> None:
    shuffled = [(guess, rng.sample(refs, len(refs))) for guess, refs in captions]
    order = rng.sample(range(len(captions)), len(captions))
    for metric in (Cider(), Bleu(), RougeL()):
        one = metric.score([guess for guess, _ in captions], [refs for _, refs in captions])
        other = metric.score([shuffled[i][0] for i in order], [shuffled[i][1] for i in order])
        assert one.value == pytest.approx(other.value, abs=1e-9)
        assert [one.per_example[i] for i in order] == pytest.approx(other.per_example, abs=1e-9)


def caption_corpus(shared_data: Path) -> list[str]:
    """Texts of three words or more from captions and transcriptions."""
    texts: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, str):
            texts.update(line for line in value.split("\n") if len(line.split()) > 2)
        elif isinstance(value, dict):
            for part in value.values():
                collect(part)
        elif isinstance(value, list):
            for part in value:
                collect(part)

    for name in ("captions", "cer_wer_handwriting", "vqa_accuracy"):
        collect(json.loads((shared_data / "metrics" / f"{name}.json").read_text()))
    return sorted(texts)


def official_words(captions: list[str]) -> dict[str, list[str]]:
    module = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer", reason="the oracle is not installed"
    )
    if shutil.which("java") is None:
        pytest.skip("the official tokenizer needs java")
    batch = {index: [{"caption": caption}] for index, caption in enumerate(captions)}
    with contextlib.redirect_stderr(io.StringIO()):
        words = module.PTBTokenizer().tokenize(batch)
    return {caption: words[index][0].split() for index, caption in enumerate(captions)}
