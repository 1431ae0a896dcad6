from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dim_pipelines.content.images import MAX_PIXELS, decode_image
from dim_pipelines.errors import InputError


def png(pixels: np.ndarray, format_: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_)
    return file.getvalue()


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def test_grey_has_one_channel() -> None:
    assert decode_image(png(GREY), "L", None, "CHW").tolist() == [GREY.tolist()]
    assert decode_image(png(GREY), "L", None, "HWC").shape == (3, 4, 1)


def test_colours_stand_first_or_last() -> None:
    assert np.array_equal(decode_image(png(COLOUR), "RGB", None, "HWC"), COLOUR)
    assert np.array_equal(decode_image(png(COLOUR), "RGB", None, "CHW"), COLOUR.transpose(2, 0, 1))
    assert decode_image(png(COLOUR), "RGBA", None, "CHW").shape == (4, 3, 4)


def test_size_is_height_and_width() -> None:
    assert decode_image(png(GREY), "L", (6, 2), "CHW").shape == (1, 6, 2)
    assert np.array_equal(decode_image(png(GREY), "L", (3, 4), "CHW")[0], GREY)


@pytest.mark.parametrize("format_", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG"])
def test_common_formats_are_read(format_: str) -> None:
    assert decode_image(png(COLOUR, format_), "RGB", None, "CHW").shape == (3, 3, 4)


@pytest.mark.parametrize("data", [b"", b"junk", png(GREY)[:40], png(COLOUR, "JPEG")[:200], png(GREY, "PPM")])
def test_what_does_not_decode_is_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError, match="the image does not decode"):
        decode_image(data, "L", None, "CHW")


def header_of(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + png(GREY)[33:]


def test_an_image_that_claims_too_many_pixels_is_not_decoded() -> None:
    with pytest.raises(InputError, match=f"8192 x 4097 pixels, the limit is {MAX_PIXELS}"):
        decode_image(header_of(8192, 4097), "L", None, "CHW")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_an_input_error(side: int) -> None:
    with pytest.raises(InputError):
        decode_image(header_of(side, side), "L", None, "CHW")


@given(st.integers(0, len(png(COLOUR)) - 1), st.integers(1, 255))
@settings(max_examples=60)
def test_a_broken_file_is_an_input_error_and_nothing_else(position: int, flip: int) -> None:
    data = bytearray(png(COLOUR))
    data[position] ^= flip
    with contextlib.suppress(InputError):
        decode_image(bytes(data), "RGB", None, "CHW")
