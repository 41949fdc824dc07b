"""What is sent between both processes: the lengths of two parts, then JSON, then bytes.

Neither side unpickles anything.
"""

from __future__ import annotations

import json
import struct

LENGTHS = struct.Struct(">II")


def frame(header: object, payload: bytes = b"") -> bytes:
    """JSON and bytes as they are sent.

    >>> frame({"ok": 1}, b"ab")
    b'\\x00\\x00\\x00\\x08\\x00\\x00\\x00\\x02{"ok":1}ab'
    """
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return LENGTHS.pack(len(text), len(payload)) + text + payload
