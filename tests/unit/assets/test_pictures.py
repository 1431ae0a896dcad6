"""The picture of a batch: it shows what it was given and stays small."""

from __future__ import annotations

import base64
import io
import random

import pytest
from PIL import Image

from dim_pipelines.assets.pictures import MAX_URI_BYTES, Bars, Picture, data_uri, draw, to_markdown


def _png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def _noise(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(1).randbytes(size[0] * size[1] * 3)).save(buffer, "PNG")
    return buffer.getvalue()


def _shown(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_a_tile_shows_its_image_enlarged() -> None:
    image = draw(Picture("reds", [(_png((255, 0, 0)), "red")]))

    assert image.width == 720
    assert image.getpixel((16 + 48, 44 + 48)) == (255, 0, 0)


def test_an_image_that_does_not_decode_has_no_tile() -> None:
    good = (_png((0, 255, 0)), "green")

    assert draw(Picture("x", [(b"no image", "?"), good])).tobytes() == draw(Picture("x", [good])).tobytes()


def test_bars_are_as_long_as_their_values() -> None:
    image = draw(Picture("x", (), [Bars("rows", {"a": 100.0, "b": 50.0, "c": 0.0})]))
    blue = (79, 110, 247)
    lengths = [sum(image.getpixel((x, 44 + 26 + 22 * row + 8)) == blue for x in range(720)) for row in range(3)]

    assert lengths[0] == pytest.approx(2 * lengths[1], abs=2)
    assert lengths[2] == 0


def test_a_picture_of_nothing_can_be_drawn() -> None:
    assert draw(Picture("an empty batch", (), [Bars("rows", {})])).height > 0


def test_noise_is_made_to_fit() -> None:
    picture = Picture("photos " * 50, [(_noise((320, 240)), "a long caption " * 9)] * 12, [])
    uri = data_uri(draw(picture))

    assert len(uri) <= MAX_URI_BYTES
    assert _shown(uri).format == "PNG"


def test_markdown_holds_the_picture_and_no_stray_brackets() -> None:
    text = to_markdown(Picture("a [strange] name", [(_png((0, 0, 255)), "|")]))

    assert text.startswith("![a (strange) name](data:image/png;base64,")
    assert text.endswith(")")
