"""The picture of a batch: some inputs with their predictions, and bars; drawn with Pillow, pure over plain values.

Dagster has no image metadata: a picture travels as Markdown with a `data:` URI inside the event's row, so it
is kept small.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from PIL import Image, ImageDraw, ImageFont

MAX_URI_BYTES: Final = 60_000
"""The longest `data:` URI, in bytes: it is stored in one row of Dagster's event log."""
MAX_SOURCE_PIXELS: Final = 50_000_000
"""A larger input image is left out of the sheet: decoding it would cost more than the sheet is worth."""

_WIDTH: Final = 720
_MARGIN: Final = 16
_TILE: Final = 96
_COLUMNS: Final = 6
_CAPTION: Final = 18
_BAR: Final = 18
_GAP: Final = 4
_LABEL: Final = 90
_PAPER: Final = (255, 255, 255)
_INK: Final = (32, 36, 44)
_FAINT: Final = (232, 235, 240)
_BLUE: Final = (79, 110, 247)


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar chart: a title and label → value, drawn in the given order."""

    title: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Picture:
    """What the picture shows.

    Attributes:
        title: one line above everything.
        tiles: encoded images (PNG, JPEG, ...) with a caption each; those that do not decode are left out.
        bars: charts, two in a row.
    """

    title: str
    tiles: Sequence[tuple[bytes, str]] = ()
    bars: Sequence[Bars] = field(default_factory=tuple)


def draw(picture: Picture) -> Image.Image:
    """Draw the picture, RGB, 720 pixels wide and as high as it needs."""
    tiles = [(image, caption) for data, caption in picture.tiles if (image := _tile(data)) is not None]
    tile_rows = -(-len(tiles) // _COLUMNS)
    chart_rows = [picture.bars[start : start + 2] for start in range(0, len(picture.bars), 2)]
    height = 2 * _MARGIN + 24 + tile_rows * (_TILE + _CAPTION + 8)
    height += sum(max(_chart_height(chart) for chart in row) for row in chart_rows)
    canvas = Image.new("RGB", (_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN), _fitting(pen, picture.title, 16, _WIDTH - 2 * _MARGIN), fill=_INK, font=_font(16))
    top = _MARGIN + 28
    step = (_WIDTH - 2 * _MARGIN) / _COLUMNS
    for index, (image, caption) in enumerate(tiles):
        left = int(_MARGIN + (index % _COLUMNS) * step)
        above = top + (index // _COLUMNS) * (_TILE + _CAPTION + 8)
        canvas.paste(image, (left + (_TILE - image.width) // 2, above + (_TILE - image.height) // 2))
        pen.rectangle((left, above, left + _TILE - 1, above + _TILE - 1), outline=_FAINT)
        text = _fitting(pen, caption, 13, int(step) - 4)
        pen.text((left + _TILE / 2, above + _TILE + 2), text, fill=_INK, font=_font(13), anchor="ma")
    top += tile_rows * (_TILE + _CAPTION + 8)
    for row in chart_rows:
        width = (_WIDTH - 2 * _MARGIN - (len(row) - 1) * _MARGIN) // len(row)
        for index, chart in enumerate(row):
            _draw_bars(pen, chart, _MARGIN + index * (width + _MARGIN), top, width)
        top += max(_chart_height(chart) for chart in row)
    return canvas


def data_uri(image: Image.Image, limit: int = MAX_URI_BYTES) -> str:
    """Give a PNG `data:` URI of at most `limit` bytes, with fewer colours and then fewer pixels until it fits."""
    colours = 128
    while True:
        buffer = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        if len(uri) <= limit or image.width < 64:
            return uri
        if colours > 32:
            colours //= 2
        else:
            image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)


def to_markdown(picture: Picture, limit: int = MAX_URI_BYTES) -> str:
    """Draw the picture and give the Markdown that shows it."""
    alternative = picture.title.replace("[", "(").replace("]", ")")
    return f"![{alternative}]({data_uri(draw(picture), limit)})"


def _tile(data: bytes) -> Image.Image | None:
    """Fit an image into a tile, tiny ones enlarged without smoothing; None where it does not decode."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_SOURCE_PIXELS:
                return None
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # the sheet is an illustration: a row without an image simply has no tile
    scale = min(_TILE / image.width, _TILE / image.height)
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def _chart_height(chart: Bars) -> int:
    return 26 + len(chart.values) * (_BAR + _GAP) + 12


def _draw_bars(pen: ImageDraw.ImageDraw, chart: Bars, left: int, top: int, width: int) -> None:
    pen.text((left, top + 4), _fitting(pen, chart.title, 14, width), fill=_INK, font=_font(14))
    largest = max((abs(value) for value in chart.values.values()), default=0) or 1
    room = width - _LABEL - 70
    for index, (label, value) in enumerate(chart.values.items()):
        above = top + 26 + index * (_BAR + _GAP)
        pen.text((left, above + 1), _fitting(pen, label, 13, _LABEL - 8), fill=_INK, font=_font(13))
        length = max(1, int(room * abs(value) / largest)) if value else 0
        if length:
            pen.rectangle((left + _LABEL, above, left + _LABEL + length, above + _BAR - 2), fill=_BLUE)
        text = f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"
        pen.text((left + _LABEL + length + 6, above + 1), text, fill=_INK, font=_font(13))


def _fitting(pen: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """Cut the text so that it is at most `width` pixels wide."""
    line = " ".join(text.split())
    if pen.textlength(line, font=_font(size)) <= width:
        return line
    while line and pen.textlength(line + "…", font=_font(size)) > width:
        line = line[:-1]
    return line + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
