"""A process that reads one video: the program.

python -m paligemma.server.video_child '{"memory_bytes": ..., ...}'
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from paligemma.sandbox.child import serve
from paligemma.sandbox.frames import frame


class _VideoReader:
    """Answers requests about one video."""

    def __init__(self) -> None:
        # Imported before the limits are set.
        with suppress(ImportError):  # reported when a video is opened
            import av  # noqa: F401

        from paligemma.errors import InputError, MissingExtraError
        from paligemma.video import clip, decoding, orientation, windows  # noqa: F401

        self._opening = clip
        self._limits_type = decoding.ClipLimits
        self._reduced = windows.reduced
        self.errors = (InputError, MissingExtraError)
        self._clip: Any = None
        self._frames: Any = None

    def answer(self, request: dict[str, Any], payload: bytes) -> bytes:
        call = request["call"]
        if call == "open":
            self._clip = self._opening.open_clip(payload, self._limits_type(**request["limits"]))
            return frame({"info": asdict(self._clip.info), **self._state()})
        if call == "frames":
            if self._frames is not None:
                self._frames.close()
            self._frames = self._clip.frames(**request["which"])
            return frame({})
        found = next(self._frames, None)
        if found is None:
            return frame({"is_end": True, **self._state()})
        image = self._reduced(found.image, request["resolution"])
        about = {"index": found.index, "time_s": found.time_s, "size_wh": image.size}
        return frame({**about, **self._state()}, image.tobytes())

    def _state(self) -> dict[str, Any]:
        return {"problems": self._clip.problems, "is_damaged": self._clip.is_damaged}


if __name__ == "__main__":
    serve(_VideoReader, sys.argv[1])
