"""Build the page: python examples/browser/build.py FOLDER, then put FOLDER on any web server.

    python -m http.server --directory FOLDER

Needs Node's npm, which fetches onnxruntime-web and a tokenizer once, and
`pip install "paligemma[formats]"`. The page itself loads nothing from other addresses.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PAGE = ("index.html", "style.css", "app.js", "image.js", "model.js")
SAMPLE = HERE.parent / "scene.png"
VENDOR = (
    "onnxruntime-web/dist/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs",
)


def build(folder: Path, model: str = "mini", node_modules: Path | None = None) -> None:
    """Export the model and copy the page and its libraries into a new folder.

    `node_modules` has the packages of package.json; by default npm installs them.
    """
    (folder / "vendor").mkdir(parents=True)
    command = [sys.executable, "-m", "paligemma", "convert", model, str(folder / "model")]
    subprocess.run([*command, "--to", "onnx", "--dtype", "q8"], check=True)
    for name in PAGE:
        shutil.copy(HERE / name, folder)
    shutil.copy(SAMPLE, folder)
    with tempfile.TemporaryDirectory() as temporary:
        if node_modules is None:
            shutil.copy(HERE / "package.json", temporary)
            subprocess.run(["npm", "install", "--ignore-scripts"], cwd=temporary, check=True)
            node_modules = Path(temporary) / "node_modules"
        for name in VENDOR:
            shutil.copy(node_modules / name, folder / "vendor")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the page into a new folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    build(arguments.folder, arguments.model)
