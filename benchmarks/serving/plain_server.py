"""A minimal server: FastAPI around a predictor, one request at a time.

The baseline for `paligemma serve`. It accepts the requests that `python -m benchmarks.serving`
sends:

    python -m benchmarks.serving.plain_server --port 8001
    python -m benchmarks.serving http://127.0.0.1:8001 --rates 10,20,40
"""

from __future__ import annotations

import argparse
import base64
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI

from paligemma import load
from paligemma.results import Result


def create_app(model: str) -> FastAPI:
    predictor = load(model)
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/v1/{kind}")
    def answer(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        image = base64.b64decode(body["image"])
        result: Result
        with lock:
            match kind:
                case "ask":
                    result = predictor.ask(image, body["question"])
                case "caption":
                    result = predictor.caption(image)
                case "ocr":
                    result = predictor.ocr(image)
                case "detect":
                    result = predictor.detect(image, body["phrases"])
                case "segment":
                    result = predictor.segment(image, body["phrases"])
                case _:
                    raise ValueError(f"Unknown kind of request: {kind!r}.")
        return {"result": result.to_dict()}

    @app.get("/health/ready")
    def ready() -> None:
        """The load test waits for this route to answer."""

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="model to serve (%(default)s)")
    parser.add_argument("--port", type=int, default=8001, help="port (%(default)s)")
    options = parser.parse_args()
    uvicorn.run(create_app(options.model), port=options.port, log_level="warning")
