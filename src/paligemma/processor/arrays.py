"""Arrays and tensors -> PIL images; how numbers that are not 8-bit values are read.

uint8                  as they are
bool                   black and white
floats                 must lie in [0, 1]; times 255
other integers         8-bit values where none is above 255 (with a warning), else 16-bit
                       values up to 65535, divided by 257
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paligemma.errors import ImageError, counted


def tensor_to_array(tensor: Any) -> NDArray[Any]:
    """The values of a torch tensor with channels last. Raises ImageError for unclear shapes.

    A tensor of three axes is (3, H, W) or (1, H, W) or has its channels last, (H, W, 1 or 3 or 4);
    one that could be both, such as (3, 8, 3), is refused.
    """
    shape = tuple(tensor.shape)
    if tensor.is_meta or str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        raise ImageError(
            f"The tensor has shape {shape} and no plain values ({tensor.device}, {tensor.layout}, "
            f"{tensor.dtype}). Pass a dense one with values."
        )
    values = tensor.detach().cpu()
    if values.dtype.is_floating_point:
        values = values.float()  # numpy has no bfloat16
    array: NDArray[Any] = values.numpy()
    if len(shape) != 3:
        if len(shape) == 4:
            raise ImageError(
                f"The tensor has shape {shape}, a batch. Pass one image of it, such as tensor[0]."
            )
        return array
    is_first, is_last = shape[0] in (1, 3), shape[2] in (1, 3, 4)
    if is_first == is_last:
        problem = "could have its channels first or last" if is_first else "has no axis of channels"
        raise ImageError(
            f"The tensor has shape {shape}, which {problem}. Pass (3, H, W), or an array of shape "
            "(H, W, 3)."
        )
    return np.moveaxis(array, 0, -1) if is_first else array


def array_to_image(array: NDArray[Any], subject: str) -> Image.Image:
    """Raises ImageError for shapes and dtypes that are not an image."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        is_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        advice = "try numpy.moveaxis(array, 0, -1)." if is_first else "pass one image at a time."
        raise ImageError(
            f"{subject} has shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or "
            f"(H, W, 4). Channels come last: {advice}"
        )
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == np.bool_:
        return Image.fromarray(array.astype(np.uint8) * np.uint8(255))
    if array.dtype.kind == "f":
        return Image.fromarray(unit_to_bytes(array, subject))
    if array.dtype.kind in "iu":
        values = integers_to_bytes(array, subject)
        if array.dtype != np.uint16 and int(array.max()) > 255:
            _say(f"{subject} has integers of up to {array.max()}, which are read as 16-bit values.")
        return Image.fromarray(values)
    raise ImageError(
        f"{subject} has dtype {array.dtype}; expected uint8, other integers, bool or floats in "
        "[0, 1]. Convert it first."
    )


def unit_to_bytes(values: NDArray[Any], subject: str) -> NDArray[np.uint8]:
    """Floats in [0, 1], times 255. Raises ImageError for others."""
    low, high = float(values.min()), float(values.max())
    if math.isnan(low):
        raise ImageError(
            f"{subject} has {counted(int(np.isnan(values).sum()), 'value')} that are not numbers "
            "(NaN); floats must lie in [0, 1]. Replace them first."
        )
    if low < 0 or high > 1:
        raise ImageError(
            f"{subject} has values from {low:g} to {high:g}; floats must lie in [0, 1]. "
            "Scale them, or pass uint8."
        )
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)


def integers_to_bytes(values: NDArray[Any], subject: str) -> NDArray[np.uint8]:
    """Integers of more than 8 bits; see the table above. Raises ImageError beyond 16 bits."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{subject} has values from {low} to {high}; expected 0 to 255 or 0 to 65535. "
            "Scale them first."
        )
    if 0 < high <= 255:
        _say(f"{subject} has integers from {low} to {high}, which are read as 8-bit values.")
        return values.astype(np.uint8)
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _say(assumption: str) -> None:
    warnings.warn(f"{assumption} Use 8-bit values (uint8) to be sure.", stacklevel=2)
