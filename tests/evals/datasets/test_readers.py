"""Each reader on a small made-up folder in the official form."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paligemma.data.record import Record
from paligemma.errors import DataError, ImageError
from paligemma.evals.datasets.benchmark import BenchmarkData
from paligemma.evals.datasets.documents import LetterAccuracy
from paligemma.evals.datasets.open import open_benchmark
from paligemma.evals.datasets.probing import PairedAccuracy
from tests.evals.datasets.official import Official

COCO = "COCO_{0}2014_{1:012d}.jpg"


def texts(data: BenchmarkData) -> list[tuple[str, str, tuple[str, ...]]]:
    """Identifier, prompt, references: in the order of the files."""
    return [(r.record_id, r.prefix, r.references) for r in data.records]


def shown(record: Record, folder: Path) -> str:
    assert isinstance(record.image, Path)
    assert record.load_image().size_wh == (8, 6)
    return record.image.relative_to(folder).as_posix()


def ten(answer: str) -> list[dict[str, Any]]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": n + 1, "raw_answer": answer}
        for n in range(10)
    ]


@pytest.mark.parametrize(
    ("name", "questions", "annotations"),
    [
        (
            "vqav2",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            "v2_mscoco_val2014_annotations.json",
        ),
        (
            "okvqa",
            "OpenEnded_mscoco_val2014_questions.json",
            "mscoco_val2014_annotations.json",
        ),
    ],
)
def test_vqa_questions_meet_their_ten_answers(
    official: Official, name: str, questions: str, annotations: str
) -> None:
    official.json(
        questions,
        {
            "questions": [
                {"image_id": 42, "question": "Is it red?", "question_id": 420},
                {"image_id": 43, "question": "What is it?", "question_id": 430},
            ]
        },
    )
    official.json(
        annotations,
        {
            "annotations": [
                {"question_id": 430, "answers": ten("cat"), "answer_type": "other"},
                {"question_id": 420, "answers": ten("yes"), "answer_type": "yes/no"},
            ]
        },
    )
    for image_id in (42, 43):
        official.picture("val2014/" + COCO.format("val", image_id))
    data = open_benchmark(name, official.folder)
    assert texts(data) == [
        ("420", "answer en Is it red?", ("yes",) * 10),
        ("430", "answer en What is it?", ("cat",) * 10),
    ]
    assert data.groups == ("yes/no", "other")
    assert shown(data.records[0], official.folder) == "val2014/COCO_val2014_000000000042.jpg"
    assert data.task == "answer"
    assert data.published[0].row.startswith(data.benchmark.title)


def test_aokvqa_is_read_with_and_without_choices(official: Official) -> None:
    entry = {
        "image_id": 7,
        "question_id": "22MexNkBPpdZGX6sxbxVBH",
        "question": "What is the man by the bags awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "correct_choice_idx": 3,
        "direct_answers": ["ride", "ride", "bus"],
        "difficult_direct_answer": False,
        "rationales": ["r", "r", "r"],
    }
    official.json("aokvqa_v1p0_val.json", [entry])
    official.picture("val2017/000000000007.jpg")
    direct = open_benchmark("aokvqa-da", official.folder)
    assert direct.records[0].references == ("ride", "ride", "bus")
    choice = open_benchmark("aokvqa-mc", official.folder)
    assert choice.records[0].prefix == (
        "answer en  What is the man by the bags awaiting? choose from: "
        "skateboarder \t train \t delivery \t cab"
    )
    assert choice.records[0].suffix == "cab"


def test_textvqa_turns_images_that_stand_on_their_side(official: Official) -> None:
    official.json(
        "TextVQA_0.5.1_val.json",
        {
            "data": [
                {"image_id": "a", "question_id": 1, "question": "What?", "answers": ["x"] * 10},
                {"image_id": "b", "question_id": 2, "question": "Who?", "answers": ["y"] * 10},
            ]
        },
    )
    official.text(
        "train_images/rotation.csv", "ImageID,Subset,Rotation\na,train,0.0\nb,train,90.0\n"
    )
    official.picture("train_images/a.jpg")
    left_red = np.zeros((6, 8, 3), np.uint8)
    left_red[:, :4, 0] = 255
    Image.fromarray(left_red).save(official.folder / "train_images/b.jpg", quality=100)
    data = open_benchmark("textvqa", official.folder)
    assert texts(data)[1] == ("2", "answer en Who?", ("y",) * 10)
    assert shown(data.records[0], official.folder) == "train_images/a.jpg"
    turned = data.records[1].load_image()
    assert turned.size_wh == (6, 8)  # a quarter turn against the clock: left becomes bottom
    pixels = np.asarray(turned.rgb)
    assert pixels[7, 3, 0] > 200
    assert pixels[0, 3, 0] < 50


def test_vizwiz_drops_empty_answers(official: Official) -> None:
    answers = [{"answer": "soup"}, {"answer": ""}, {"answer": "unanswerable"}]
    official.json(
        "annotations/val.json",
        [{"image": "VizWiz_val_00000000.jpg", "question": "What?", "answers": answers}],
    )
    official.picture("val/VizWiz_val_00000000.jpg")
    (record,) = open_benchmark("vizwizvqa", official.folder).records
    assert record.references == ("soup", "unanswerable")
    assert shown(record, official.folder) == "val/VizWiz_val_00000000.jpg"


def test_docvqa_asks_without_a_task_word(official: Official) -> None:
    official.json(
        "val_v1.0_withQT.json",
        {
            "data": [
                {
                    "questionId": 9,
                    "question": "What is the date?",
                    "image": "documents/p_1.png",
                    "answers": ["1 May", "may 1"],
                }
            ]
        },
    )
    official.picture("val/documents/p_1.png")
    data = open_benchmark("docvqa", official.folder)
    assert texts(data) == [("9", "What is the date?", ("1 May", "may 1"))]
    assert shown(data.records[0], official.folder) == "val/documents/p_1.png"


def test_infovqa_takes_the_parts_of_an_answer_in_any_order(official: Official) -> None:
    ten = ", ".join("abcdefghij")
    entry = {
        "questionId": 5,
        "question": "Which two?",
        "image_local_name": "1.jpeg",
        "answers": ["Red, Blue", ten],
    }
    official.picture("images/1.jpeg")
    for name in ("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_train_v1.0.json"):
        official.json(name, {"data": [entry]})
    val = open_benchmark("infovqa", official.folder)
    assert texts(val) == [("5", "answer en Which two?", ("red, blue", "blue, red", ten))]
    train = open_benchmark("infovqa", official.folder, split="train")
    assert train.records[0].references == ("red, blue", ten)


def test_stvqa_takes_images_of_coco_in_their_own_size(official: Official) -> None:
    def entry(number: int, path: str) -> dict[str, Any]:
        return {
            "question_id": number,
            "question": "What?",
            "file_path": path,
            "answers": ["STOP"],
        }

    coco = "COCO_train2014_000000000001.jpg"
    official.json(
        "train_task_3.json", {"data": [entry(1, f"coco-text/{coco}"), entry(2, "iiit_text/x.jpg")]}
    )
    official.picture(f"train2014/{coco}")
    official.picture("train_images/iiit_text/x.jpg")
    data = open_benchmark("stvqa", official.folder)
    assert [shown(r, official.folder) for r in data.records] == [
        f"train2014/{coco}",
        "train_images/iiit_text/x.jpg",
    ]
    assert data.records[0].references == ("stop",)
    assert data.groups == ("coco-text", "iiit_text")


def test_ocrvqa_unfolds_the_questions_of_a_book(official: Official) -> None:
    def book(split: int) -> dict[str, Any]:
        return {"questions": ["Who?", "What?"], "answers": ["A. B.", "Art"], "split": split}

    official.json("dataset.json", {"0001": book(3), "0002": book(1)})
    official.picture("images/0001.jpg")
    data = open_benchmark("ocrvqa", official.folder)
    assert texts(data) == [
        ("0001-0", "answer en Who?", ("A. B.",)),
        ("0001-1", "answer en What?", ("Art",)),
    ]


def test_chartqa_has_two_test_sets(official: Official) -> None:
    for kind, answer in (("human", "3"), ("augmented", "4")):
        official.json(
            f"test/test_{kind}.json", [{"imgname": "1.png", "query": "How many?", "label": answer}]
        )
    official.picture("test/png/1.png")
    human = open_benchmark("chartqa", official.folder)
    assert texts(human) == [("0", "How many?", ("3",))]
    assert {score.row for score in human.published} == {"ChartQA (human)"}
    augmented = open_benchmark("chartqa", official.folder, split="augmented")
    assert augmented.records[0].suffix == "4"


def ai2d(official: Official, *, lettered: bool) -> None:
    question = {
        "questionId": "0.png-1",
        "correctAnswer": 1,
        "answerTexts": ["A", "B", "C"],
        "abcLabel": lettered,
    }
    for number in ("0", "1"):
        official.json(
            f"ai2d/questions/{number}.png.json",
            {"imageName": f"{number}.png", "questions": {"Which eats?": question}},
        )
        official.json(
            f"ai2d/annotations/{number}.png.json",
            {"text": {"T0": {"rectangle": [[10, 10], [30, 30]], "replacementText": "B"}}},
        )
        official.picture(f"ai2d/images/{number}.png", (40, 40), "blue")
    official.text("ai2d_test_ids.csv", "0\n")


def test_ai2d_splits_by_the_list_of_test_images(official: Official) -> None:
    ai2d(official, lettered=False)
    data = open_benchmark("ai2d", official.folder)
    assert texts(data) == [
        ("0.png-1", "answer en  Which eats? choose from: A \t B \t C", ("B",)),
    ]
    assert data.records[0].image == official.folder / "ai2d/images/0.png"
    train = open_benchmark("ai2d", official.folder, split="train")
    assert train.records[0].image == official.folder / "ai2d/images/1.png"


def test_ai2d_covers_words_by_letters_where_the_answers_are_letters(official: Official) -> None:
    ai2d(official, lettered=True)
    (record,) = open_benchmark("ai2d", official.folder).records
    pixels = np.asarray(record.load_image().rgb)
    inside, outside = pixels[11:30, 11:30], pixels[32:, 32:]
    assert (inside == 255).all(axis=2).any()  # white ...
    assert (inside == 0).all(axis=2).any()  # ... with something black on it
    assert (outside == (0, 0, 255)).all()


def test_scienceqa_leaves_out_questions_without_an_image(official: Official) -> None:
    def problem(image: str | None, split: str = "test") -> dict[str, Any]:
        return {
            "question": "Which is it?",
            "choices": ["solid", "liquid"],
            "answer": 1,
            "hint": "",
            "image": image,
            "subject": "natural science",
            "split": split,
        }

    official.json(
        "problems.json",
        {"4": problem("image.png"), "5": problem(None), "6": problem("image.png", "train")},
    )
    official.picture("test/4/image.png")
    data = open_benchmark("science-qa", official.folder)
    assert texts(data) == [
        (
            "4",
            "Question: Which is it?\nContext: N/A\nOptions: (A) solid, (B) liquid\nAnswer:",
            ("The answer is B.",),
        )
    ]


def test_the_letter_of_an_answer_counts_and_nothing_else() -> None:
    said = [
        "The answer is B.",
        "the answer is b. BECAUSE",
        "B",
        "The answer is A.",
        "The answer is B",
    ]
    result = LetterAccuracy().score(said, ["The answer is B."] * 5)
    assert result.per_example == (1.0, 1.0, 0.0, 0.0, 0.0)


def test_gqa_and_xgqa_share_images(official: Official) -> None:
    entry = {"imageId": "n1", "question": "Is it?", "answer": "no", "isBalanced": True}
    official.json("testdev_balanced_questions.json", {"201": entry})
    for language in ("bn", "de", "id", "ko", "pt", "ru", "zh"):
        official.json(
            f"annotations/zero_shot/testdev_balanced_questions_{language}.json",
            {"201": entry | {"question": f"Ist es? {language}"}},
        )
    official.picture("images/n1.jpg")
    assert texts(open_benchmark("gqa", official.folder)) == [("201", "answer en Is it?", ("no",))]
    data = open_benchmark("xgqa", official.folder)
    assert data.groups == ("bn", "de", "id", "ko", "pt", "ru", "zh")
    assert data.benchmark.mean_of_groups
    assert texts(data)[1] == ("de-201", "answer en Ist es? de", ("no",))
    assert len({record.record_id for record in data.records}) == 7


def test_nlvr2_has_two_images(official: Official) -> None:
    def entry(identifier: str, **more: Any) -> dict[str, Any]:
        return {"identifier": identifier, "sentence": "Both are red.", "label": "True"} | more

    official.lines("data/test1.json", entry("test1-0-1-0"))
    official.lines("data/train.json", entry("train-10171-0-0", directory=75, label="False"))
    for side, color in ((0, "red"), (1, "blue")):
        official.picture(f"images/test1/test1-0-1-img{side}.png", color=color)
        official.picture(f"images/train/75/train-10171-0-img{side}.png")
    (record,) = open_benchmark("nlvr2", official.folder).records
    assert record.prefix == "answer en Both are red."
    assert record.references == ("True",)
    left, right = record.load_images()
    assert left.rgb.getpixel((0, 0)) == (255, 0, 0)
    assert right.rgb.getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(DataError, match=r"has 2 images; load all of them with load_images"):
        record.load_image()
    (train,) = open_benchmark("nlvr2", official.folder, split="train").records
    assert train.suffix == "False"


def test_marvl_finds_folders_with_accents_taken_apart(official: Official) -> None:
    official.lines(
        "annotations/marvl-tr.jsonl",
        {
            "concept": "39-Tüfek",
            "language": "tr",
            "caption": "İki tüfek.",
            "left_img": "39-1.jpg",
            "right_img": "39-2.jpg",
            "id": "tr-0",
            "label": True,
        },
    )
    for number in (1, 2):
        official.picture(f"images/tr/images/39-Tu\u0308fek/39-{number}.jpg")
    (record,) = open_benchmark("marvl", official.folder, split="tr").records
    assert len(record.load_images()) == 2
    assert record.references == ("True",)


def test_vsr_labels_become_true_and_false(official: Official) -> None:
    official.lines(
        "splits/zeroshot/test.jsonl",
        {"image": "1.jpg", "caption": "The cat is on the mat.", "label": 1, "relation": "on"},
        {"image": "1.jpg", "caption": "The cat is under the mat.", "label": 0, "relation": "under"},
    )
    official.picture("images/1.jpg")
    data = open_benchmark("vsr", official.folder)
    assert [record.suffix for record in data.records] == ["True", "False"]
    assert data.groups == ("on", "under")


def test_tallyqa_tells_simple_from_complex(official: Official) -> None:
    def entry(number: int, simple: bool) -> dict[str, Any]:
        return {
            "image": "VG_100K_2/1.jpg",
            "image_id": 1,
            "question_id": number,
            "question": "How many?",
            "answer": number,
            "issimple": simple,
        }

    official.json("test.json", [entry(1, True), entry(2, False)])
    official.picture("VG_100K_2/1.jpg")
    (official.folder / "VG_100K").mkdir()
    simple = open_benchmark("tallyqa", official.folder)
    assert texts(simple) == [("1-1", "answer en How many?", ("1",))]
    complex_ = open_benchmark("tallyqa", official.folder, split="complex")
    assert texts(complex_) == [("1-2", "answer en How many?", ("2",))]


def encoded(mode: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new(mode, (8, 6)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_countbenchqa_leaves_out_lost_and_gray_images(official: Official) -> None:
    pytest.importorskip("pyarrow")
    rows: list[dict[str, Any]] = [
        {"image": encoded("RGB"), "text": "two cats", "number": 2, "image_url": ""},
        {"image": None, "text": "three cats", "number": 3, "image_url": ""},
        {"image": encoded("L"), "text": "four cats", "number": 4, "image_url": ""},
        {"image": encoded("RGB"), "text": "five cats", "number": 5, "image_url": ""},
    ]
    official.table("train-00000-of-00001-cf54c241ba947306.parquet", rows)
    official.json(
        "countbench_paired_questions.json",
        [{"question": f"How many cats are there in image {n}?"} for n in range(4)],
    )
    data = open_benchmark("countbenchqa", official.folder)
    assert texts(data) == [
        ("0", "answer en How many cats are there in image 0?", ("2",)),
        ("3", "answer en How many cats are there in image 3?", ("5",)),
    ]
    assert data.records[0].load_image().size_wh == (8, 6)


def test_pope_is_the_mean_of_three_parts(official: Official) -> None:
    for kind in ("random", "popular", "adversarial"):
        official.lines(
            f"pope/coco_pope_{kind}.json",
            {
                "question_id": 1,
                "image": "COCO_val2014_000000000001.jpg",
                "text": "Is there a dog in the image?",
                "label": "no",
            },
        )
    official.picture("val2014/COCO_val2014_000000000001.jpg")
    data = open_benchmark("pope", official.folder)
    assert data.groups == ("random", "popular", "adversarial")
    assert data.benchmark.mean_of_groups
    assert texts(data)[0] == ("random-0", "answer en Is there a dog in the image?", ("no",))
    assert {score.row for score in data.published} == {"POPE"}
    part = open_benchmark("pope", official.folder, split="popular")
    assert {score.row for score in part.published} == {"POPE (popular)"}


def test_mmvp_accepts_the_right_option_what_sets_it_apart_or_its_letter(
    official: Official,
) -> None:
    official.text(
        "Questions.csv",
        "\ufefflndex,Question,Options,Correct Answer\n"
        "1,Open or closed?,(a) Open (b) Closed,(a)\n"
        "2,Open or closed?,(a) Open (b) Closed,(b)\n"
        '3,Where is it?,"(a) On the left, far (b) On the right, far",(b)\n'
        '4,Where is it?,"(a) On the left, far (b) On the right, far",(a)\n',
    )
    for number in range(1, 5):
        official.picture(f"MMVP Images/{number}.jpg")
    data = open_benchmark("mmvp", official.folder)
    assert texts(data) == [
        ("1", "answer en Open or closed?", ("Open", "(a)")),
        ("2", "answer en Open or closed?", ("Closed", "(b)")),
        ("3", "answer en Where is it?", ("On the right, far", "right", "(b)")),
        ("4", "answer en Where is it?", ("On the left, far", "left", "(a)")),
    ]
    assert shown(data.records[3], official.folder) == "MMVP Images/4.jpg"
    figures = {(s.model, s.resolution): s.value for s in data.published if s.value > 47.3}
    assert figures == {("paligemma-3b", 224): 47.33}


def test_a_pair_counts_only_where_both_answers_are_right() -> None:
    metric = PairedAccuracy()
    references = [("Open", "(a)"), ("Closed", "(b)"), ("On the right", "right"), ("left",)]
    result = metric.score(["open.", "B", "The right", "right"], references)
    assert result.value == 0.5
    assert result.per_example == (1.0, 1.0, 0.0, 0.0)
    assert result.details["single"] == 0.75
    for empty in ("", "the", "?"):  # which have nothing left in the normal form, as "(a)" has
        assert metric.score([empty, "b"], references[:2]).value == 0.0
    assert metric.score(["(A)", "closed"], references[:2]).value == 1.0
    value = metric.statistic(["open", "b", "no", "no"], references)
    assert value(np.array([1, 0, 3, 9])) == 0.25
    assert np.isnan(value(np.array([0, 1, 0, 1])))
    with pytest.raises(DataError, match="There are 3 examples"):
        metric.score(["a"] * 3, ["a"] * 3)


def test_mmvp_without_two_options_is_an_error(official: Official) -> None:
    official.text("Questions.csv", "Index,Question,Options,Correct Answer\n1,Open?,Yes,(a)\n")
    (official.folder / "MMVP Images").mkdir()
    with pytest.raises(DataError, match="'Yes' with the answer '\\(a\\)' are not two options"):
        open_benchmark("mmvp", official.folder)


def rsvqa(official: Official, stem: str) -> None:
    questions = [
        {"id": n, "img_id": 3, "type": kind, "question": "Is it?", "active": n != 2} | extra
        for n, (kind, extra) in enumerate(
            [
                ("presence", {"answers_ids": [10]}),
                ("count", {"answers_ids": [11]}),
                ("comp", {"answers_ids": [12]}),
                ("rural_urban", {"answers_ids": [13]}),
            ]
        )
    ]
    answers = [
        {"id": 10 + n, "question_id": n, "answer": a}
        for n, a in enumerate(("Yes", "5", "no", "Rural"))
    ]
    official.json(f"{stem}_questions.json", {"questions": questions})
    official.json(f"{stem}_answers.json", {"answers": answers})


def test_rsvqa_lr_reads_tiff_and_leaves_numbers_out(official: Official) -> None:
    rsvqa(official, "LR_split_test")
    (official.folder / "Images_LR").mkdir()
    path = official.folder / "Images_LR" / "3.tif"
    Image.new("RGB", (8, 6), "red").save(path, "TIFF")
    data = open_benchmark("rsvqa-lr", official.folder)
    assert texts(data) == [
        ("0", "answer en Is it?", ("yes",)),
        ("3", "answer en Is it?", ("rural",)),
    ]
    assert data.groups == ("presence", "rural_urban")
    assert data.records[0].load_image().rgb.getpixel((0, 0)) == (255, 0, 0)
    Image.new("L", (8, 6)).save(path, "TIFF")
    with pytest.raises(ImageError, match=r"shape \(6, 8\); the images of RSVQA"):
        data.records[0].load_image()
    path.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="cannot be read as TIFF"):
        data.records[0].load_image()


def test_rsvqa_hr_calls_its_second_test_set_by_the_city(official: Official) -> None:
    rsvqa(official, "USGS_split_test_phili")
    official.picture("Data/3.png")
    data = open_benchmark("rsvqa-hr", official.folder, split="test2")
    assert [record.record_id for record in data.records] == ["0", "3"]
    assert {score.row for score in data.published} == {"RSVQA-hr (test2)"}


def karpathy(official: Official) -> None:
    def entry(number: int, split: str) -> dict[str, Any]:
        return {
            "cocoid": number,
            "filepath": "val2014",
            "filename": COCO.format("val", number),
            "split": split,
            "sentences": [{"raw": f"A cat. {n}", "tokens": ["a", "cat"]} for n in range(5)],
        }

    official.json("dataset_coco.json", {"images": [entry(1, "val"), entry(2, "restval")]})
    for number in (1, 2):
        official.picture("val2014/" + COCO.format("val", number))
    (official.folder / "train2014").mkdir()


def test_cococap_takes_a_split_of_karpathys_list(official: Official) -> None:
    karpathy(official)
    (record,) = open_benchmark("cococap", official.folder).records
    assert record.prefix == "caption en"
    assert record.references == tuple(f"A cat. {n}" for n in range(5))
    restval = open_benchmark("cococap", official.folder, split="restval")
    assert restval.records[0].record_id == "2"


def test_coco_35l_takes_english_from_the_lines_of_one_language(official: Official) -> None:
    karpathy(official)
    official.lines(
        "coco_mt_dev.jsonl",
        *(
            {
                "image_id": f"1_{number}",
                "trg_lang": language,
                "caption_tokenized": "a cat .",
                "translation_tokenized": f"{language} .",
            }
            for number in range(2)
            for language in ("de", "fr")
        ),
    )
    data = open_benchmark("coco35l", official.folder)
    assert texts(data) == [
        ("1-de", "caption de", ("de .", "de .")),
        ("1-fr", "caption fr", ("fr .", "fr .")),
    ]
    english = open_benchmark("coco35l", official.folder, split="en")
    assert texts(english) == [("1-en", "caption en", ("a cat .", "a cat ."))]


def test_nocaps_counts_its_domains_apart(official: Official) -> None:
    official.json(
        "nocaps_val_4500_captions.json",
        {
            "images": [{"id": 0, "file_name": "x.jpg", "domain": "near-domain"}],
            "annotations": [{"image_id": 0, "caption": c} for c in ("A hat.", "One hat.")],
        },
    )
    official.picture("validation/x.jpg")
    data = open_benchmark("nocaps", official.folder)
    assert texts(data) == [("0", "caption en", ("A hat.", "One hat."))]
    assert data.groups == ("near-domain",)


def test_textcaps_gathers_the_captions_of_an_image(official: Official) -> None:
    entries = [
        {"image_id": "a", "image_name": "a", "caption_str": text}
        for text in ("A sign says STOP.", "A red sign.")
    ]
    official.json("TextCaps_0.1_val.json", {"data": entries})
    official.picture("train_images/a.jpg")
    data = open_benchmark("textcaps", official.folder)
    assert texts(data) == [("a", "caption en", ("a sign says stop.", "a red sign."))]


def test_xm3600_leaves_english_out_of_its_mean(official: Official) -> None:
    languages = [s for s in find_splits("xm3600") if not s.startswith("avg")]
    captions = {language: {"caption": [f"{language} 1"]} for language in languages}
    official.lines("captions.jsonl", {"image/key": "0001", **captions})
    official.picture("images/0001.jpg")
    data = open_benchmark("xm3600", official.folder)
    assert len(data.records) == 35
    assert "en" not in data.groups
    assert "quz" in data.groups
    assert texts(data)[0] == ("0001-ar", "caption ar", ("ar 1",))
    assert len(open_benchmark("xm3600", official.folder, split="avg").records) == 36


def find_splits(name: str) -> list[str]:
    from paligemma.evals.datasets.open import find_benchmark

    return list(find_benchmark(name).splits)


def test_scicap_follows_the_list_of_the_experiment(official: Official) -> None:
    official.json(
        "List-of-Files-for-Each-Experiments/First-Sentence/No-Subfig/test/file_idx.json",
        ["1-Figure2-1.png"],
    )
    official.json(
        "SciCap-Caption-All/test/1-Figure2-1.json",
        {"1-lowercase-and-token-and-remove-figure-index": {"caption": "the loss ."}},
    )
    official.picture("SciCap-No-Subfig-Img/test/1-Figure2-1.png")
    data = open_benchmark("scicap", official.folder)
    assert texts(data) == [("1-Figure2-1", "caption en", ("the loss .",))]
    assert list(data.metrics) == ["CIDEr", "BLEU-4"]


def test_docci_takes_the_images_that_people_judged(official: Official) -> None:
    official.lines(
        "docci_descriptions.jsonlines",
        *(
            {
                "example_id": f"{split}_00000",
                "split": split,
                "image_file": f"{split}_00000.jpg",
                "description": "A close view.",
            }
            for split in ("qual_dev", "train")
        ),
    )
    official.picture("images/qual_dev_00000.jpg")
    (record,) = open_benchmark("docci", official.folder).records
    assert record.record_id == "qual_dev_00000"


def test_screen2words_gathers_five_summaries(official: Official) -> None:
    rows = "".join(f'7,"a page, number {n}"\n' for n in range(5))
    official.text("screen2words/screen_summaries.csv", f"screenId,summary\n{rows}")
    official.text("screen2words/split/test_screens.txt", "7\n")
    official.picture("combined/7.jpg")
    (record,) = open_benchmark("screen2words", official.folder).records
    assert record.references == tuple(f"a page, number {n}" for n in range(5))


def test_widgetcap_frames_the_widget_in_the_resized_image(official: Official) -> None:
    official.text(
        "widget-caption/widget_captions.csv",
        "screenId,nodeId,captions\n7,0.1,go back|back\n8,0.0,other\n",
    )
    official.text("widget-caption/split/test.txt", "7\n")
    official.picture("combined/7.jpg", (540, 960), "white")
    button = {"bounds": [360, 640, 1080, 1280]}  # in a canvas of 1440 x 2560
    official.json(
        "combined/7.json", {"activity": {"root": {"children": [{"bounds": [0, 0, 9, 9]}, button]}}}
    )
    data = open_benchmark("widgetcap", official.folder, resolution=448)
    (record,) = data.records
    assert record.references == ("go back", "back")
    picture = record.load_image()
    assert picture.size_wh == (448, 448)
    red = (np.asarray(picture.rgb) == (255, 0, 0)).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    # A quarter to three quarters across, a quarter to a half down, of 447 steps.
    assert (columns[0], columns[-1]) == (int(0.25 * 447), int(0.75 * 447))
    assert (rows[0], rows[-1]) == (int(0.25 * 447), int(0.5 * 447))
    assert red.sum() == 2 * (columns[-1] - columns[0] + 1) + 2 * (rows[-1] - rows[0] - 1)


REFERENCES: list[dict[str, Any]] = [
    {
        "ref_id": 1,
        "ann_id": 5,
        "image_id": 9,
        "split": "val",
        "sentences": [
            {"sent_id": 0, "sent": "left cat", "raw": "Left cat", "tokens": ["left", "cat"]},
            {"sent_id": 1, "sent": "the cat", "raw": "the cat", "tokens": ["the", "cat"]},
        ],
    },
    {"ref_id": 2, "ann_id": 5, "image_id": 9, "split": "train", "sentences": []},
]


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("refcoco", "refcoco", "refs(unc).p"),
        ("refcoco+", "refcoco+", "refs(unc).p"),
        ("refcocog", "refcocog", "refs(umd).p"),
    ],
)
def test_refcoco_asks_once_for_each_phrase(
    official: Official, name: str, folder: str, file: str
) -> None:
    import pickle

    official.json(
        f"{folder}/instances.json",
        {
            "images": [{"id": 9, "file_name": "x.jpg", "width": 8, "height": 6}],
            "annotations": [
                {
                    "id": 5,
                    "image_id": 9,
                    "bbox": [2, 1, 4, 3],
                    "segmentation": [[2, 1, 6, 1, 6, 4, 2, 4]],
                }
            ],
        },
    )
    (official.folder / folder / file).write_bytes(pickle.dumps(REFERENCES, protocol=0))
    official.picture("train2014/x.jpg")
    data = open_benchmark(name, official.folder)
    assert [record.prefix for record in data.records] == ["left cat", "the cat"]
    assert data.records[0].objects is not None
    (thing,) = data.records[0].objects
    assert thing.box_xyxy == (2, 1, 6, 4)
    assert thing.mask is not None
    assert thing.mask.shape == (6, 8)
    assert thing.mask.sum() == thing.mask[1:4, 2:6].sum() == 12
    assert {score.row for score in data.published} == {f"{data.benchmark.title} (val)"}


@pytest.mark.parametrize(
    ("name", "annotations", "picture"),
    [
        ("coco-detection", "annotations/instances_val2017.json", "val2017/x.jpg"),
        ("doclaynet", "COCO/test.json", "PNG/x.jpg"),
    ],
)
def test_detection_asks_for_all_classes(
    official: Official, name: str, annotations: str, picture: str
) -> None:
    official.json(
        annotations,
        {
            "images": [{"id": 1, "file_name": "x.jpg", "width": 8, "height": 6}],
            "categories": [{"id": 3, "name": "Table"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 3], "iscrowd": 0}
            ],
        },
    )
    official.picture(picture)
    (record,) = open_benchmark(name, official.folder).records
    assert record.prefix == "detect all classes"
    assert record.objects is not None
    assert [(o.label, o.box_xyxy) for o in record.objects] == [("Table", (1, 1, 5, 4))]


def test_icdar_words_may_hold_commas(official: Official) -> None:
    official.picture("ch4_test_images/img_1.jpg", (100, 50))
    official.text(
        "Challenge4_Test_Task4_GT/gt_img_1.txt",
        "\ufeff10,5,30,6,30,16,10,15,Joy, Inc\r\n40,5,120,5,120,20,40,20,###\r\n",
    )
    (record,) = open_benchmark("icdar15", official.folder).records
    assert record.objects is not None
    assert [(o.label, o.box_xyxy) for o in record.objects] == [
        ("Joy, Inc", (10, 5, 30, 16)),
        ("###", (40, 5, 100, 20)),
    ]


def test_total_text_rows_may_go_on_in_the_next_line(official: Official) -> None:
    official.picture("Images/Test/img12.jpg", (100, 50))
    official.text(
        "Groundtruth/Polygon/Test/poly_gt_img12.txt",
        "x: [[ 1 9  9 1]], y: [[1 1\n 5 5]], ornt: [u'h'], transcriptions: [u'OPEN']\n"
        "x: [[20 30 30]], y: [[10 10 20]], ornt: [u'c'], transcriptions: [u\"Joe's\"]\n"
        "x: [[40 50 50]], y: [[10 10 20]], ornt: [u'#'], transcriptions: [u'#']\n",
    )
    (record,) = open_benchmark("total-text", official.folder).records
    assert record.objects is not None
    assert [(o.label, o.box_xyxy) for o in record.objects] == [
        ("OPEN", (1, 1, 9, 5)),
        ("Joe's", (20, 10, 30, 20)),
        ("#", (40, 10, 50, 20)),
    ]
    official.text("Groundtruth/Polygon/Test/poly_gt_img12.txt", "transcriptions: [u'OPEN']\n")
    with pytest.raises(DataError, match="lines in an unknown format"):
        open_benchmark("total-text", official.folder)


def test_pubtabnet_cells_go_into_their_structure(official: Official) -> None:
    html = {
        "structure": {"tokens": ["<thead>", "<tr>", "<td", ' colspan="2"', ">", "</td>", "</tr>"]},
        "cells": [{"tokens": ["<b>", "<", "a", "</b>"], "bbox": [0, 0, 1, 1]}],
    }
    official.lines(
        "PubTabNet_2.0.0.jsonl",
        {"filename": "PMC1.png", "split": "val", "imgid": 1, "html": html},
        {"filename": "PMC2.png", "split": "train", "imgid": 2, "html": html},
    )
    official.picture("val/PMC1.png")
    data = open_benchmark("pubtabnet", official.folder)
    assert data.records[0].references == (
        '<table><thead><tr><td colspan="2"><b>&lt;a</b></td></tr></table>',
    )
    assert list(data.metrics) == ["S-TEDS", "TEDS", "GriTS-Top", "GriTS-Con"]


def test_a_table_with_too_few_cells_is_an_error(official: Official) -> None:
    html = {"structure": {"tokens": ["<tr>", "<td>", "</td>", "</tr>"]}, "cells": []}
    official.lines("PubTabNet_2.0.0.jsonl", {"filename": "a.png", "split": "val", "html": html})
    (official.folder / "val").mkdir()
    with pytest.raises(DataError, match=r"official format .*fewer cells than its structure"):
        open_benchmark("pubtabnet", official.folder)


def test_fintabnet_cuts_tables_out_of_their_pages(official: Official) -> None:
    def table(number: int, box: list[float], split: str = "test") -> dict[str, Any]:
        tokens = ["<table>", "<tr>", "<td>", "</td>", "<td>", "</td>", "</tr>", "</table>"]
        cells = [{"tokens": ["R", "&", "D"], "bbox": [1, 2, 3, 4]}, {"tokens": []}]
        html = {"structure": {"tokens": tokens}, "cells": cells}
        page = "HAL/2009/page_77.pdf"
        return {"filename": page, "table_id": number, "bbox": box, "split": split, "html": html}

    official.lines(
        "fintabnet/FinTabNet_1.0.0_cell_test.jsonl",
        table(7, [10.0, 20.0, 40.0, 45.0]),
        table(8, [-5.0, 40.2, 70.0, 60.0]),
        table(9, [100.0, 120.0, 140.0, 145.0]),
    )
    # A page of 60 x 50 points, black where the first table stands: 20..80 and, from above, 10..60.
    page = np.full((100, 120, 3), 255, np.uint8)
    page[10:60, 20:80] = 0
    official.picture("fintabnet/pages/HAL/2009/page_77.png")
    Image.fromarray(page).save(official.folder / "fintabnet/pages/HAL/2009/page_77.png")
    data = open_benchmark("fintabnet", official.folder)
    first, second, outside = data.records
    html = "<table><tr><td>R&amp;D</td><td></td></tr></table>"
    assert texts(data) == [(number, "table", (html,)) for number in "789"]
    cut = np.asarray(first.load_image().rgb)
    assert cut.shape == (50, 60, 3)
    assert not cut.any()
    assert second.load_image().size_wh == (120, 20)  # what of it lies on the page
    with pytest.raises(ImageError, match=r"The table 9: .*page_77.png.*144 pixels per inch"):
        outside.load_image()
    assert list(data.metrics) == ["S-TEDS", "TEDS", "GriTS-Top", "GriTS-Con"]
    assert ("S-TEDS", 99.2) in {(score.metric, score.value) for score in data.published}


def test_fintabnet_names_the_pages_that_are_missing(official: Official) -> None:
    html = {"structure": {"tokens": []}, "cells": []}
    entry = {"filename": "A/2004/page_5.pdf", "table_id": 1, "bbox": [0, 0, 9, 9], "html": html}
    official.lines("fintabnet/FinTabNet_1.0.0_cell_test.jsonl", entry)
    (official.folder / "fintabnet" / "pages").mkdir()
    with pytest.raises(DataError, match=r"fintabnet/pages/A/2004/page_5\.png.*pdftoppm -r 144"):
        open_benchmark("fintabnet", official.folder)


def test_chemdraw_reads_its_list_of_drawings(official: Official) -> None:
    official.text(
        "synthetic/chemdraw.csv", "image_id,file_path,SMILES\n0,synthetic/chemdraw/0.png,CCO\n"
    )
    official.picture("synthetic/chemdraw/0.png")
    data = open_benchmark("chemdraw", official.folder)
    assert texts(data) == [("0", "molecule", ("CCO",))]


def test_grandstaff_takes_every_file_of_the_split(official: Official) -> None:
    pytest.importorskip("pyarrow")
    row = {"image": encoded("RGB"), "transcription": "**ekern_1.0 <t> **ekern_1.0 \n"}
    for part in range(2):
        official.table(f"data/test-0000{part}-of-00002.parquet", [row])
    official.table("data/train-00000-of-00001.parquet", [row])
    data = open_benchmark("grandstaff", official.folder)
    assert len(data.records) == len({record.record_id for record in data.records}) == 2
    assert data.records[0].references == ("**ekern_1.0 <t> **ekern_1.0",)


def test_mimic_takes_the_sections_of_a_report(official: Official) -> None:
    official.text(
        "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split\nd1,50,10000032,test\nd2,51,10000032,train\n",
    )
    official.text(
        "files/p10/p10000032/s50.txt",
        " FINAL REPORT\n INDICATION:  Cough.\n\n FINDINGS:\n\n The heart\n is normal.\n"
        " IMPRESSION:  No change.\n",
    )
    official.picture("files/p10/p10000032/s50/d1.jpg")
    data = open_benchmark("mimic-cxr", official.folder)
    assert texts(data) == [
        (
            "d1",
            "report Cough.",
            ("FINDINGS: The heart is normal.\nIMPRESSION: No change.",),
        )
    ]
