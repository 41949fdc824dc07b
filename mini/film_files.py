"""Write a film of mini's world, with its ground truth.

    python -m mini.film film.mp4 film.json --seed 7 --index 0

The film is an .mp4 file of eight seconds, 384 x 384 pixels and 25 frames a second. The JSON file
has the frames with time, and for each object that can be seen there its number, label, box in
pixels and the share of it that is visible. Needs PyAV: pip install "paligemma[video]".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mini import film, language
from mini.scene import RESOLUTION
from paligemma.cli.console import check_output_files
from paligemma.errors import PaliGemmaError
from paligemma.video.encoding import check_film_name, write_film
from paligemma.writing import replacing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mini.film",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("film", type=Path, help="film to write, .mp4")
    parser.add_argument("truth", type=Path, help="JSON file to write")
    parser.add_argument("--seed", type=int, default=7, help="random seed (%(default)s)")
    parser.add_argument("--index", type=int, default=0, help="number of the film (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        write_film_and_truth(options.film, options.truth, seed=options.seed, index=options.index)
    except PaliGemmaError as error:
        parser.error(str(error))
    print(f"Wrote {options.film} and {options.truth}")


def write_film_and_truth(path: Path, truth_path: Path, *, seed: int, index: int) -> None:
    """Writes one film, and its truth last. Raises OptionError."""
    check_film_name(path)
    check_output_files(truth_path)
    made = film.make_film(seed, index)
    truth = made.to_truth(RESOLUTION, [kind.name for kind in language.KINDS])
    images = (
        (time_s, Image.fromarray(made.draw(time_s, RESOLUTION))) for time_s in film.frame_times()
    )
    with replacing(truth_path) as unfinished:
        unfinished.write_text(_truth_json(truth), encoding="utf-8")
        write_film(path, images)


def _truth_json(truth: dict[str, object]) -> str:
    """One JSON object with a line per frame."""
    frames = truth["frames"]
    assert isinstance(frames, list)
    opening = json.dumps({**truth, "frames": []}).removesuffix("]}")
    lines = ",\n".join(json.dumps(frame, ensure_ascii=False) for frame in frames)
    return f"{opening}\n{lines}\n]}}\n"
