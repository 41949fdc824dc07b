from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageFont

from paligemma import fonts
from paligemma.draw import PALETTE, _erode, draw_detections
from paligemma.errors import ImageError, OptionError
from paligemma.fonts import Lettering
from paligemma.processor.image import load_image
from paligemma.results import Detection, Detections, Segment, Segments


def detection(label: str, box: tuple[float, float, float, float]) -> Detection:
    return Detection(
        label=label,
        box_xyxy=box,
        box_normalized_xyxy=(0, 0, 1, 1),
        score=0.87,
        existence_score=1.0,
        coordinate_score=0.9,
        label_score=0.9,
    )


def found(
    size_wh: tuple[int, int], *objects: Detection, phrases: tuple[str, ...] = ()
) -> Detections:
    return Detections(
        objects=objects,
        prompt="detect",
        phrases=phrases,
        problems=(),
        size_wh=size_wh,
        stop_reason="eos",
        text="",
    )


SHIPPED = Path(fonts.__file__).with_name("DejaVuSans.ttf")
GRAY = Image.new("RGB", (320, 240), (128, 128, 128))


def test_the_outline_lies_on_the_boxs_own_pixels() -> None:
    drawn = np.asarray(
        draw_detections(GRAY, found(GRAY.size, detection("cat", (40, 60, 200, 180))))
    )
    assert tuple(drawn[120, 40]) == PALETTE[0]
    assert tuple(drawn[120, 199]) == PALETTE[0]
    assert tuple(drawn[179, 120]) == PALETTE[0]
    assert tuple(drawn[120, 39]) == (0, 0, 0)
    assert tuple(drawn[120, 200]) == (0, 0, 0)
    assert tuple(drawn[120, 38]) == (128, 128, 128)
    assert tuple(drawn[120, 100]) == (128, 128, 128)


def test_scores_may_be_left_out() -> None:
    result = found(GRAY.size, detection("cat", (40, 60, 200, 180)))
    scored = np.asarray(draw_detections(GRAY, result))
    plain = np.asarray(draw_detections(GRAY, result, scores=False))
    plates = [(picture[:59] != 128).any(axis=(0, 2)).sum() for picture in (scored, plain)]
    assert plates[0] > plates[1] > 0
    assert np.array_equal(scored[62:], plain[62:])


def test_the_image_itself_stays_as_it_was() -> None:
    before = GRAY.tobytes()
    array = np.array(GRAY)
    result = found(GRAY.size, detection("cat", (40, 60, 200, 180)))
    for image in (GRAY, array):
        assert draw_detections(image, result).mode == "RGB"
    assert GRAY.tobytes() == array.tobytes() == before


def test_a_label_keeps_its_color_whatever_was_found_first() -> None:
    cat, dog = detection("cat", (10, 60, 100, 180)), detection("dog", (150, 60, 300, 180))
    for objects in ((cat, dog), (dog, cat), (dog,)):
        drawn = draw_detections(GRAY, found(GRAY.size, *objects, phrases=("cat", "dog")))
        assert drawn.getpixel((150, 120)) == PALETTE[1]


def test_a_mask_is_tinted_inside_only() -> None:
    mask = np.zeros((240, 320), dtype=bool)
    mask[80:160, 60:180] = True
    segment = Segment(**vars(detection("cat", (40, 60, 200, 180))), mask=mask, mask_score=0.5)
    segments = Segments(**{**vars(found(GRAY.size)), "objects": (segment,)})
    drawn = np.asarray(segments.draw(GRAY))
    assert tuple(drawn[120, 120]) not in ((128, 128, 128), PALETTE[0])
    assert tuple(drawn[120, 60]) == PALETTE[0]  # the mask's own edge
    assert tuple(drawn[120, 50]) == (128, 128, 128)


@pytest.mark.parametrize("num_pixels", [1, 3, 40])
def test_eroding_takes_a_rim_off_a_mask(num_pixels: int) -> None:
    rng = np.random.default_rng(num_pixels)
    gray = Image.fromarray(rng.random((60, 90)) < 0.999).convert("L")
    filtered = gray.filter(ImageFilter.MinFilter(2 * num_pixels + 1))
    eroded = _erode(np.asarray(gray) > 0, num_pixels)
    assert np.array_equal(eroded, np.asarray(filtered) > 0)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 1)])
def test_masks_of_tiny_images_can_be_drawn(size: tuple[int, int]) -> None:
    mask = np.ones((size[1], size[0]), dtype=bool)
    segment = Segment(**vars(detection("cat", (0, 0, *size))), mask=mask, mask_score=0.5)
    segments = Segments(**{**vars(found(size)), "objects": (segment,)})
    assert segments.draw(Image.new("L", size)).size == size


def test_the_bytes_of_a_file_can_be_drawn_on() -> None:
    content = io.BytesIO()
    GRAY.save(content, "PNG")
    assert draw_detections(content.getvalue(), found(GRAY.size)).tobytes() == GRAY.tobytes()
    with pytest.raises(ImageError, match="The image has an unknown format"):
        draw_detections(b"no picture", found((4, 4)))


def test_sixteen_bits_of_gray_are_not_cut_off() -> None:
    gray = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    assert draw_detections(gray, found((4, 4))).getpixel((1, 1)) == (128, 128, 128)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 16), (40, 700), (1500, 60), (3000, 2000)])
def test_any_size_of_image_and_box_can_be_drawn(size: tuple[int, int]) -> None:
    width, height = size
    boxes = [
        (0.0, 0.0, float(width), float(height)),
        (width - 0.2, height - 0.2, float(width), float(height)),
        (-5.0, -5.0, 2.0 * width, 2.0 * height),
        (width / 2, height / 2, width / 2, height / 2),
    ]
    objects = [detection("a name much too long for any tag " * 9, box) for box in boxes]
    objects += [detection("", boxes[0]), detection("Öl\n", boxes[0])]
    drawn = draw_detections(Image.new("RGB", size), found(size, *objects))
    assert drawn.size == size


def test_tags_of_equal_boxes_do_not_hide_each_other() -> None:
    box = (40.0, 60.0, 300.0, 230.0)
    labels = ("a", "b", "c", "d")
    drawn = draw_detections(GRAY, found(GRAY.size, *(detection(name, box) for name in labels)))
    colors = {color for _, color in drawn.getcolors(2**16) or []}
    assert set(PALETTE[:4]) <= colors


def test_the_result_carries_no_metadata_and_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010E] = "secret"
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    drawn = draw_detections(path, found((20, 30), detection("cat", (2, 2, 18, 28))))
    assert drawn.size == (20, 30)
    assert len(drawn.getexif()) == 0
    assert "exif" not in drawn.info


def test_transparency_becomes_white() -> None:
    drawn = draw_detections(Image.new("RGBA", (30, 20), (0, 0, 0, 0)), found((30, 20)))
    assert drawn.getpixel((15, 10)) == (255, 255, 255)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ImageError, match="320 x 240"):
        draw_detections(GRAY, found((640, 480)))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("hello")
    for image in (path, tmp_path / "absent.png", np.zeros((4, 4, 7), np.float32)):
        with pytest.raises(ImageError):
            draw_detections(image, found((4, 4)))


def test_every_form_of_image_that_detect_takes_can_be_drawn_on(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    GRAY.save(path)
    array = np.asarray(GRAY)
    sources = (path, str(path), path.read_bytes(), GRAY, array, load_image(path))
    for source in (*sources, array[..., 0], array.astype(np.float32) / 255):
        assert draw_detections(source, found(GRAY.size)).tobytes() == GRAY.tobytes()
    assert GRAY.getpixel((0, 0)) == (128, 128, 128)


def test_an_image_that_is_scaled_down_while_reading_is_drawn_scaled_down() -> None:
    huge = Image.new("1", (12_000, 7_000))
    mask = np.zeros((7000, 12_000), dtype=bool)
    mask[2000:4000, 2000:6000] = True
    box = detection("cat", (1000.0, 1000.0, 8000.0, 5000.0))
    segment = Segment(**vars(box), mask=mask, mask_score=0.5)
    segments = Segments(**{**vars(found(huge.size)), "objects": (segment,)})
    drawn = np.asarray(segments.draw(huge))
    assert drawn.shape == (3500, 6000, 3)
    assert tuple(drawn[1500, 500]) == PALETTE[0]
    assert tuple(drawn[1500, 499]) == tuple(drawn[900, 900]) == (0, 0, 0)
    assert tuple(drawn[1500, 1000]) == PALETTE[0]  # the mask's edge
    with pytest.raises(ImageError, match="12100 x 14000"):
        draw_detections(Image.new("1", (12_100, 14_000)), found((12_100, 14_000)))


BOX = (5.0, 100.0, 310.0, 200.0)


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    fonts._system_font_with.cache_clear()
    yield
    fonts._system_font_with.cache_clear()


@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize(
    "letters",
    [
        "äöüÄÖÜßéèêëçñáíóúãõâôàìòùåøæœłşğčžŻ¿¡€–“”…°",
        "σκύλοςΔ",
        "собакаёжЩїў",
        "צפרדע",
        "ضفدعقطة",
        "می\u200cروم",
        "ăđươễ",
    ],
)
def test_letters_of_many_languages_are_drawn_without_any_font_of_the_system(letters: str) -> None:
    assert not [c for c in letters if c != "\u200c" and not fonts._has(fonts._SHIPPED, c)]
    draw_detections(GRAY, found(GRAY.size, detection(letters, BOX)))  # without a warning


@pytest.mark.usefixtures("no_system_fonts")
def test_letters_that_no_font_has_are_named_once() -> None:
    result = found(GRAY.size, detection("青蛙 frog", BOX), detection("青 कु", BOX))
    with pytest.warns(UserWarning, match="No font has") as caught:
        result.draw(GRAY)
    [warning] = caught
    assert "'青蛙कु'" in str(warning.message)
    for package in ("fonts-noto-cjk", "fonts-noto-core", "font=PATH"):
        assert package in str(warning.message)
    assert warning.filename == __file__


def test_a_font_of_the_system_is_found_for_letters_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    few_letters = ImageFont.load_default(20)
    assert isinstance(few_letters, ImageFont.FreeTypeFont)
    (tmp_path / "few.bin").write_bytes(few_letters.font_bytes)
    monkeypatch.setattr(fonts, "_SHIPPED", str(tmp_path / "few.bin"))
    monkeypatch.setattr(fonts, "_font_folders", lambda: [str(tmp_path), str(SHIPPED.parent)])
    for cached in (fonts._system_fonts, fonts._system_font_with, fonts._usable_size):
        cached.cache_clear()
    try:
        runs = list(Lettering(20)._runs("кот!"))
    finally:
        for cached in (fonts._system_fonts, fonts._system_font_with):
            cached.cache_clear()
    assert [(run.text, Path(run.path).name) for run in runs] == [
        ("кот", "DejaVuSans.ttf"),
        ("!", "few.bin"),
    ]


def test_a_font_may_be_given() -> None:
    result = found(GRAY.size, detection("frog", BOX))
    other = Path(ImageFont.__file__).parent
    assert result.draw(GRAY, font=SHIPPED).tobytes() == result.draw(GRAY).tobytes()
    for path in (other / "absent.ttf", Path(__file__)):
        with pytest.raises(OptionError, match="cannot be read"):
            result.draw(GRAY, font=path)


def test_a_label_from_right_to_left_has_its_score_at_the_left() -> None:
    if not fonts._shapes_text():
        pytest.skip("This Pillow has no Raqm.")
    lettering = Lettering(20)
    canvas = Image.new("RGB", (200, 40))
    lettering.draw(canvas, (0, 30), "ضفدع", (255, 255, 255))
    joined = sum(lettering.length(c) for c in "ضفدع")
    assert lettering.length("ضفدع") < joined


@pytest.mark.usefixtures("no_system_fonts")
def test_without_shaping_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_shapes_text", lambda: False)
    with pytest.warns(UserWarning, match="from left to right"):
        draw_detections(GRAY, found(GRAY.size, detection("ضفدع", BOX)))
    draw_detections(GRAY, found(GRAY.size, detection("Frösche", BOX)))
