"""Draws pictures of two things that mini has never seen, gauges and valves, with COCO labels.

    python examples/make_gauges.py --out gauges --count 60

Pictures are random, and the same for the same seed. The data of docs/finetuning.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

CATEGORIES = ("gauge", "valve")
WIDTH, HEIGHT = 320, 240


def draw_gauge(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rng: random.Random) -> None:
    """A round dial with marks and a needle."""
    rim = rng.choice(["#303030", "#8a6d3b", "#404a60"])
    draw.ellipse((x - r, y - r, x + r, y + r), fill=rim)
    inner = 0.84 * r
    draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill="#fbfbf5")
    for mark in range(9):
        angle = math.radians(135 + mark * 270 / 8)
        ends = [(x + s * r * math.cos(angle), y + s * r * math.sin(angle)) for s in (0.62, 0.78)]
        draw.line(ends, fill="#202020", width=max(1, round(r / 16)))
    angle = math.radians(135 + rng.random() * 270)
    tip = (x + 0.66 * r * math.cos(angle), y + 0.66 * r * math.sin(angle))
    draw.line([(x, y), tip], fill="#c02020", width=max(2, round(r / 10)))
    draw.ellipse((x - r / 9, y - r / 9, x + r / 9, y + r / 9), fill="#202020")


def draw_valve(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rng: random.Random) -> None:
    """A hand wheel with spokes."""
    color = rng.choice(["#c43c2c", "#2c7a4b", "#2c5f9e"])
    draw.ellipse((x - r, y - r, x + r, y + r), outline=color, width=max(3, round(r / 4)))
    turn = rng.random() * 2 * math.pi
    for spoke in range(5):
        angle = turn + spoke * 2 * math.pi / 5
        end = (x + 0.9 * r * math.cos(angle), y + 0.9 * r * math.sin(angle))
        draw.line([(x, y), end], fill=color, width=max(2, round(r / 7)))
    draw.ellipse((x - r / 4, y - r / 4, x + r / 4, y + r / 4), fill=color)


def make_picture(rng: random.Random) -> tuple[Image.Image, list[tuple[str, list[float]]]]:
    """A picture and its things: names and boxes [x, y, width, height] in pixels."""
    shade = rng.randint(150, 235)
    tint = [min(255, max(0, shade + rng.randint(-25, 25))) for _ in range(3)]
    picture = Image.new("RGB", (WIDTH, HEIGHT), tuple(tint))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(0, 3)):  # pipes
        at = rng.randint(10, HEIGHT - 10)
        thick = rng.randint(5, 14)
        draw.rectangle((0, at, WIDTH, at + thick), fill=tuple(max(0, c - 45) for c in tint))
    things: list[tuple[str, list[float]]] = []
    for _ in range(rng.randint(1, 3)):
        r = rng.uniform(24, 52)
        x, y = rng.uniform(r + 2, WIDTH - r - 2), rng.uniform(r + 2, HEIGHT - r - 2)
        if any(
            math.hypot(x - (bx + bw / 2), y - (by + bh / 2)) < r + bw / 2 + 4
            for _, (bx, by, bw, bh) in things
        ):
            continue
        name = rng.choice(CATEGORIES)
        (draw_gauge if name == "gauge" else draw_valve)(draw, x, y, r, rng)
        things.append((name, [x - r, y - r, 2 * r, 2 * r]))
    return picture, things


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(given.count):
        picture, things = make_picture(rng)
        name = f"{number:03}.jpg"
        picture.save(given.out / name, quality=90)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for label, box in things:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CATEGORIES.index(label) + 1,
                    "bbox": [round(value, 1) for value in box],
                    "area": round(box[2] * box[3], 1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, start=1)]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (given.out / "annotations.json").write_text(json.dumps(labels) + "\n", encoding="utf-8")
    print(f"{given.count} pictures with {len(annotations)} things: {given.out}/annotations.json")


if __name__ == "__main__":
    main()
