"""Make the images that mini's synthetic scenes are drawn from. Run once; the output is committed.

    python -m mini.make_assets --fonts /usr/share/fonts --photos PHOTOS \
        --out mini/data

It needs more than the package does: a Pillow built with FreeType, the font files named in
`EMOJI_FONT` and `FACES` somewhere below the `--fonts` folder (on Debian 12 the packages in
`FONT_PACKAGES` bring all of them), and the photographs named in `PHOTO_CROPS` directly in the
`--photos` folder. `data/NOTICE.md` says where each of them comes from and under which licence;
`data/words.txt` and `data/NOTICE.md` are written by hand and not touched here.

It writes `glyphs.png`, `letters.png`, `digits.png` and `marks.png`, each with a JSON file of the
same name, and `photo_NN.jpg`.
"""

import argparse
import json
import math
import string
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mini.assets import KIND_CODEPOINTS

EMOJI_FONT = "NotoColorEmoji.ttf"
EMOJI_BITMAP_SIZE = 109  # the only size at which this font holds its bitmaps (136x128)
GLYPH_CELL = 128
GLYPHS_PER_ROW = 8

FACES = (
    "DejaVuSans-Bold.ttf",
    "DejaVuSans.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono-Bold.ttf",
    "Lato-Black.ttf",
    "Lato-Medium.ttf",
    "RobotoCondensed-Bold.ttf",
    "Comfortaa-Bold.ttf",
    "Inconsolata.otf",
    "Caladea-Bold.ttf",
    "Cantarell-ExtraBold.otf",
    "Quicksand-Bold.ttf",
    "Courier Prime Bold.otf",
    "EBGaramond12-Bold.ttf",
    "BebasNeue-Bold.otf",
    "YanoneKaffeesatz-Bold.otf",
    "LeagueSpartan-Bold.otf",
    "Dosis-Bold.otf",
)
DIGIT_FACES = FACES[:4]  # the first faces, in their order
MARKS = "-."  # what dates and amounts need
FONT_PACKAGES = (
    "fonts-noto-color-emoji fonts-dejavu-core fonts-dejavu-extra fonts-lato fonts-roboto-unhinted "
    "fonts-comfortaa fonts-inconsolata fonts-crosextra-caladea fonts-cantarell fonts-quicksand "
    "fonts-courier-prime fonts-ebgaramond fonts-bebas-neue fonts-yanone-kaffeesatz "
    "fonts-league-spartan fonts-dosis"
)
CAP_HEIGHT = 48  # pixels, the height of an "H" in letters.png

# (file, left, top, side in pixels, Gaussian blur radius in pixels of the 256x256 result). The crops
# keep clear of the things photographed: a background must not hold an object the truth leaves out.
PHOTO_CROPS = (
    ("cow_in_beach.jpg", 20, 170, 255, 1.6),
    ("cow_in_beach.jpg", 480, 195, 120, 1.6),
    ("lily.jpg", 20, 0, 240, 2.4),
    ("lily.jpg", 330, 655, 198, 2.0),
    ("tower.jpg", 249, 20, 127, 2.0),
    ("truck_street.jpg", 380, 840, 360, 1.6),
    ("truck_street.jpg", 700, 0, 270, 2.0),
    ("dog_bicycle_truck.jpg", 115, 0, 120, 2.8),
    ("dog_bicycle_truck.jpg", 440, 430, 140, 1.6),
    ("horses.jpg", 590, 350, 162, 1.6),
    ("person_dog_horse.jpg", 10, 70, 180, 2.0),
)
PHOTO_SIDE = 256


def find_font(fonts: Path, name: str) -> Path:
    """The file called `name` anywhere below `fonts`."""
    found = sorted(fonts.rglob(name))
    if not found:
        raise SystemExit(f"No {name} below {fonts}. On Debian: apt-get install {FONT_PACKAGES}")
    return found[0]


def make_glyphs(font_file: Path, out: Path) -> None:
    """All glyphs, tight around what is drawn, one to a cell; sizes go to glyphs.json."""
    font = ImageFont.truetype(font_file, EMOJI_BITMAP_SIZE)
    rows = math.ceil(len(KIND_CODEPOINTS) / GLYPHS_PER_ROW)
    atlas = Image.new("RGBA", (GLYPHS_PER_ROW * GLYPH_CELL, rows * GLYPH_CELL))
    sizes: list[tuple[int, int]] = []
    for index, codepoint in enumerate(KIND_CODEPOINTS):
        canvas = Image.new("RGBA", (200, 200))
        ImageDraw.Draw(canvas).text((20, 20), chr(codepoint), font=font, embedded_color=True)
        box = canvas.getchannel("A").getbbox()
        if box is None:
            raise SystemExit(f"{font_file} draws nothing for U+{codepoint:04X}")
        # Pillow lays the glyph on transparent black, so edge colors come out multiplied by alpha.
        blended = Image.frombytes("RGBa", canvas.size, canvas.tobytes())
        glyph = blended.convert("RGBA").crop(box)
        if max(glyph.size) > GLYPH_CELL:
            scale = GLYPH_CELL / max(glyph.size)
            width, height = (max(1, round(side * scale)) for side in glyph.size)
            glyph = glyph.resize((width, height), Image.Resampling.LANCZOS)
        column, row = index % GLYPHS_PER_ROW, index // GLYPHS_PER_ROW
        atlas.paste(glyph, (column * GLYPH_CELL, row * GLYPH_CELL))
        sizes.append(glyph.size)
    atlas.save(out / "glyphs.png", optimize=True)
    table = {"cell": GLYPH_CELL, "per_row": GLYPHS_PER_ROW, "sizes_wh": sizes}
    (out / "glyphs.json").write_text(json.dumps(table) + "\n")


def make_characters(fonts: Path, faces: tuple[str, ...], characters: str, out: Path) -> None:
    """`characters` of every face, one row per face: `out` and a JSON file of its name next to it.

    Per character [x, width, height, dx, dy, advance]: x is the left edge of the ink in the image;
    dx, dy lead from the pen, and from the top of a capital "H", to the ink. All in pixels at cap
    height 48.
    """
    table: list[dict[str, object]] = []
    rows: list[Image.Image] = []
    for name in faces:
        path = find_font(fonts, name)
        big = ImageFont.truetype(path, 1000).getbbox("H", anchor="ls")
        font = ImageFont.truetype(path, CAP_HEIGHT * 1000 / (big[3] - big[1]))
        cap_top = font.getbbox("H", anchor="ls")[1]
        places: dict[str, list[int]] = {}
        inks: list[tuple[int, Image.Image]] = []
        x = 0
        for character in characters:
            canvas = Image.new("L", (160, 160))
            ImageDraw.Draw(canvas).text((40, 100), character, font=font, fill=255, anchor="ls")
            left, top, right, bottom = canvas.getbbox() or (0, 0, 0, 0)
            places[character] = [
                x,
                right - left,
                bottom - top,
                left - 40,
                top - 100 - int(cap_top),
                round(font.getlength(character)),
            ]
            inks.append((x, canvas.crop((left, top, right, bottom))))
            x += right - left
        row = Image.new("L", (x, max(ink.height for _, ink in inks)))
        for ink_x, ink in inks:
            row.paste(ink, (ink_x, 0))
        rows.append(row)
        table.append({"font": name, "height": row.height, "letters": places})
    atlas = Image.new("L", (max(row.width for row in rows), sum(row.height for row in rows)))
    y = 0
    for face, row in zip(table, rows, strict=True):
        atlas.paste(row, (0, y))
        face["y"] = y
        y += row.height
    # Sixteen levels of coverage are enough for a smooth edge and halve the file.
    atlas = atlas.point([round(value / 17) * 17 for value in range(256)])
    atlas.save(out, optimize=True)
    written = {"cap_height": CAP_HEIGHT, "faces": table}
    out.with_suffix(".json").write_text(json.dumps(written, separators=(",", ":")) + "\n")


def make_photos(photos: Path, out: Path) -> None:
    """Square crops of scenery, softened so that they are texture and not objects."""
    for index, (name, left, top, side, blur) in enumerate(PHOTO_CROPS):
        with Image.open(photos / name) as photo:
            crop = photo.convert("RGB").crop((left, top, left + side, top + side))
        crop = crop.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
        crop = crop.filter(ImageFilter.GaussianBlur(blur))
        crop.save(out / f"photo_{index:02d}.jpg", quality=80, optimize=True)


def main() -> None:
    """Reads the three folders from the command line and writes the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--fonts", type=Path, required=True, help="folder to search for font files, recursively"
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder with the photographs")
    parser.add_argument(
        "--out", type=Path, required=True, help="output folder: the repository's mini/data"
    )
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    make_glyphs(find_font(arguments.fonts, EMOJI_FONT), out)
    make_characters(arguments.fonts, FACES, string.ascii_uppercase, out / "letters.png")
    make_characters(arguments.fonts, DIGIT_FACES, string.digits, out / "digits.png")
    make_characters(arguments.fonts, DIGIT_FACES, MARKS, out / "marks.png")
    make_photos(arguments.photos, out)


if __name__ == "__main__":
    main()
