"""Images as arrays: decoded by Pillow, with limits that hostile files cannot pass.

Only formats whose decoders are common are opened. Orientation tags are not followed, and of several frames
the first is taken.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from dim_pipelines.errors import InputError

FORMATS: Final = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
"""Pillow's names of the formats that are opened."""
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"})
"""File names that are taken for images, in lower case."""
MAX_PIXELS: Final = 32 << 20
"""The largest image, in pixels: 32 Mi, 96 MiB as RGB."""


def decode_image(data: bytes, mode: str, size: tuple[int, int] | None, layout: str) -> npt.NDArray[np.uint8]:
    """Decode one image.

    Args:
        data: the file's bytes.
        mode: `L` (grey), `RGB` or `RGBA`; the image is converted to it.
        size: `(height, width)` to resize to, by bilinear interpolation with antialiasing; None keeps the size.
        layout: `CHW` or `HWC`; grey has one channel.

    Returns:
        uint8 array `[channels, height, width]` or `[height, width, channels]`.

    Raises:
        InputError: the image does not decode or is too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f"the image has {width} x {height} pixels, the limit is {MAX_PIXELS} in all")
            made: Any = image.convert(mode)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        raise InputError("the image does not decode") from error
    if size is not None and made.size != (size[1], size[0]):
        made = made.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels: npt.NDArray[np.uint8] = np.asarray(made, dtype=np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    return pixels.transpose(2, 0, 1) if layout == "CHW" else pixels
