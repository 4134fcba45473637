"""Contact sheets: images with a word under each, in groups; as a PNG, or as one HTML file that stands alone.

Promise: what can't be read has a tile that says why. In HTML pictures are data, names are escaped, links relative, nothing is fetched.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageDraw

from dinokit._version import __version__
from dinokit.analysis.panel import INK, NOTE_SIZE, SOFT, Section, Tile, fitted, font, panel
from dinokit.atomic import write_atomically
from dinokit.errors import ImageError, OutputError
from dinokit.images import decode

SIDE = 148
COLUMNS = 7
GROUND = (243, 244, 247)
SUFFIXES = (".png", ".html")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1e22; background: #fff; max-width: 1180px; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; border-top: 1px solid #dee1e6; padding-top: .9rem; margin: 1.6rem 0 .6rem; overflow-wrap: anywhere }
.soft, figcaption span { color: #696e76; font-size: .85rem }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .9rem }
figure { margin: 0 }
img { width: 148px; height: 148px; display: block; max-width: 100% }
figcaption { font-size: .85rem; overflow-wrap: anywhere; line-height: 1.3; margin-top: .25rem }
figcaption span { display: block }
a { color: inherit }
"""


@dataclass(frozen=True)
class Shown:
    """An image, what stands under it, and a second line in grey."""

    path: Path
    caption: str
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Images under a heading; `columns` in a row of a picture, as many as fit if 0."""

    heading: str
    images: Sequence[Shown]
    columns: int = 0


def check_sheet(path: Path, *, overwrite: bool = False) -> Path:
    """Refuse, before anything is computed, what can't become a sheet.

    Raises:
        ValueError: neither .png nor .html.
        OutputError: it exists already.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a contact sheet is a .png or an .html file.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another name or use --overwrite.")
    return path


def write_sheet(
    path: Path, groups: Sequence[Group], *, title: str, subtitle: str = "", overwrite: bool = False
) -> Path:
    """A contact sheet, by the suffix of `path`.

    Raises:
        ValueError, OutputError: as `check_sheet`.
        StorageError: the disk refuses.
    """
    check_sheet(path, overwrite=overwrite)
    if path.suffix.lower() == ".html":
        text = sheet_html(groups, title=title, subtitle=subtitle, folder=path.parent)
        return write_atomically(path, lambda file: file.write(text.encode()))
    sheet = sheet_image(groups, title=title, subtitle=subtitle)
    return write_atomically(path, lambda file: sheet.save(file, "PNG", optimize=True))


def sheet_image(groups: Sequence[Group], *, title: str, subtitle: str = "", columns: int = COLUMNS) -> Image.Image:
    """The sheet as a picture, `columns` images in a row."""
    sections = [
        Section(
            heading=group.heading,
            tiles=[Tile(thumbnail(each.path), each.caption, each.note) for each in group.images],
            columns=group.columns,
        )
        for group in groups
    ]
    return panel(
        sections or [Section(heading="nothing to show")], title=title, subtitle=subtitle, columns=columns, tile=SIDE
    )


def sheet_html(groups: Sequence[Group], *, title: str, subtitle: str = "", folder: Path = Path()) -> str:
    """The sheet as a page that will lie in `folder`; each image links to its file, relative to there."""
    parts = [f"<h1>{_text(title)}</h1>", f'<p class="soft">{_text(subtitle)}</p>']
    for group in groups:
        figures = "".join(_figure(each, folder) for each in group.images)
        heading = f"<h2>{_text(group.heading)}</h2>" if group.heading else ""
        parts.append(f'{heading}<div class="grid">{figures}</div>')
    parts.append(f'<p class="soft">Made by dinokit {__version__}.</p>')
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def thumbnail(path: Path, side: int = SIDE) -> Image.Image:
    """The whole image in a square of `side` pixels; a grey square with the reason if it can't be read."""
    square = Image.new("RGB", (side, side), GROUND)
    try:
        image = decode(path).image
    except ImageError as error:
        face = font(NOTE_SIZE)
        draw = ImageDraw.Draw(square)
        draw.text((side / 2, side / 2 - 9), fitted(error.code, side - 12, face), INK, face, anchor="mm")
        draw.text((side / 2, side / 2 + 9), fitted(path.name, side - 12, face), SOFT, face, anchor="mm")
        return square
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _figure(shown: Shown, folder: Path) -> str:
    buffer = io.BytesIO()
    thumbnail(shown.path, 2 * SIDE).save(buffer, "JPEG", quality=80)  # twice as fine as it is shown, for dense screens
    data = base64.b64encode(buffer.getvalue()).decode()
    link = quote(os.fsencode(os.path.relpath(os.path.abspath(shown.path), os.path.abspath(folder))))
    note = f"<span>{_text(shown.note)}</span>" if shown.note else ""
    return (
        f'<figure><a href="{link}"><img src="data:image/jpeg;base64,{data}" alt="{_text(shown.caption)}"></a>'
        f"<figcaption>{_text(shown.caption)}{note}</figcaption></figure>"
    )


def _text(value: str) -> str:
    """Escaped, and without bytes of file names that are no text."""
    return html.escape(value.encode("utf-8", "replace").decode())
