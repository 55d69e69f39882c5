"""Captioned images as one HTML page that needs no other file, no server and no network."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from captioner.data.images import open_image
from captioner.errors import UserError, printable
from captioner.files import atomic_write
from captioner.models.base import Caption

if TYPE_CHECKING:
    from typing import Self

HERE = Path(__file__).parent
SHARED = ("page.css", "maps.js")  # what the pages have in common
SIDE, QUALITY = 384, 80  # of the images on the page: long side in pixels, JPEG quality
STRIP = '<details class="strip"><summary>Word by word</summary></details>'
FLAT = 4.0  # a map whose highest weight is below this many times the even one is drawn the paler


class Page:
    """A page that needs no other file, written piece by piece: aside, and renamed when whole.

    That is at the end of ``with Page(…) as page: page.write(…)``.

    Args:
        path: the file; its folder is made when missing.
        template: name of the HTML file beside this one, with {{pieces}} where :meth:`write` goes on.
        values: what stands for {{name}} above the pieces, as HTML.

    Raises:
        UserError: the file cannot be written there.
    """

    def __init__(self, path: Path, template: str, **values: str) -> None:
        self.path = path
        self.stack = contextlib.ExitStack()
        self.failures: list[str] = []
        self.top, self.bottom = filled(read(template), {name: read(name) for name in SHARED}).split("{{pieces}}")
        self.top = filled(self.top, values)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            part = stack.enter_context(atomic_write(self.path))
            self.file = stack.enter_context(open(part, "w", encoding="utf-8"))
            self.file.write(self.top)
            self.file.flush()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            unfinished = Exception()
            self.stack.__exit__(type(unfinished), unfinished, None)  # removes the temporary file
            return
        with self.stack:
            self.file.write(filled(self.bottom, {"failures": self._failures(), **self.end()}))

    def write(self, piece: str) -> None:
        """Add some HTML."""
        try:
            self.file.write(piece)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error}); name another place or free disk space"
            ) from None

    def end(self) -> dict[str, str]:
        """What stands for {{name}} below the pieces, as HTML."""
        return {}

    def _failures(self) -> str:
        """Which images have no caption."""
        if not self.failures:
            return ""
        items = "".join(f"<li>{text(failure)}</li>\n" for failure in self.failures)
        return f'<section class="failures">\n<h2>Without a caption</h2>\n<ul>\n{items}</ul>\n</section>\n'


class Gallery(Page):
    """A page of captioned images: each with its captions, how sure every word is, and where it looked.

    Args:
        path: the file; its folder is made when missing.
        about: a line for the top of the page.
        attention: the captions have maps, and the page says how to see them.

    Raises:
        UserError: the file cannot be written there.
    """

    def __init__(self, path: Path, about: str, attention: bool = False) -> None:
        super().__init__(path, "gallery.html", about=text(about), maps="maps" if attention else "no-maps")

    def add(self, path: str | os.PathLike, found: Sequence[Caption] | UserError) -> None:
        """The card of an image: its captions, the best one first, or why it has none."""
        if isinstance(found, UserError):
            self.failures.append(str(found))
            return
        try:
            image = open_image(path, size_hint=SIDE)
        except UserError as error:  # it could be read a moment ago
            self.failures.append(str(error))
            return
        self.write(card(os.fspath(path), image, found))


def read(name: str) -> str:
    """A file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with the values for each {{name}}; what stands in a value is left alone."""
    return re.sub(r"\{\{([\w.]+)\}\}", lambda found: values.get(found[1], found[0]), template)


def text(plain: str) -> str:
    """Plain text as HTML; what no page can hold, such as the broken Unicode of a file name, is a question mark."""
    return html.escape(printable(plain))


def card(name: str, image: Image.Image, captions: Sequence[Caption]) -> str:
    """An image and its captions, one at least, as HTML."""
    best, several = captions[0], len(captions) > 1
    return "\n".join(
        [
            '<article class="card">',
            view(image, SIDE, QUALITY, best.text),
            '<ol class="captions">',
            *(f"<li>{line(caption, several)}</li>" for caption in captions),
            "</ol>",
            *([STRIP] if has_maps(best) else []),
            f'<p class="name" dir="auto">{text(name)}</p>',
            "</article>\n",
        ]
    )


def view(image: Image.Image, side: int, quality: int, said: str) -> str:
    """The image, at most `side` pixels long, with room for a map over it; `said` is read out in its place."""
    small = image.copy()
    small.thumbnail((side, side))
    return (
        f'<div class="view" style="--ratio: {small.width / small.height:.4f}">'
        f'<img src="{data_uri(small, quality)}" width="{small.width}" height="{small.height}" alt="{text(said)}"'
        ' loading="lazy" decoding="async"><output class="said"></output></div>'
    )


def line(caption: Caption, scored: bool) -> str:
    """The words of a caption, each shaded by its probability; buttons, where there are maps to be seen.

    ``data-maps`` has the bytes of :func:`shades`, base64, word after word.
    """
    words = caption.text.split()
    if len(words) != len(caption.word_log_probs) - caption.ended:
        words = list(caption.text)  # of a model that writes characters
    words += ["end"] if caption.ended else []
    maps: list[Tensor] = [] if caption.attention is None else list(caption.attention)
    parts = []
    for i, (word, term, weights) in enumerate(zip_longest(words, caption.word_log_probs, maps)):
        p, kind = math.exp(term), "word end" if i == len(words) - 1 and caption.ended else "word"
        title = f"{word}: {p:.0%}"
        if weights is None:
            parts.append(f'<span class="{kind}" style="--p: {p:.2f}" title="{text(title)}">{text(word)}</span>')
            continue
        seen = float(weights.sum())
        if seen < 0.9995:  # the rest is the sentinel's
            title += f", {seen:.0%} of it from the image"
        parts.append(
            f'<button type="button" class="{kind}" style="--p: {p:.2f}" tabindex="{-1 if i else 0}"'
            f' aria-pressed="false" title="{text(title)}">{text(word)}</button>'
        )
    opening = '<div class="words" dir="auto">'
    if has_maps(caption):
        grid = maps[0].shape[-1]
        encoded = base64.b64encode(b"".join(map(shades, maps))).decode()
        opening = (
            '<div class="words" dir="auto" role="toolbar" aria-label="Words of the caption"'
            f' data-grid="{grid}" data-maps="{encoded}">'
        )
    score = f' <span class="score" title="log-probability">{caption.log_prob:.2f}</span>' if scored else ""
    return opening + " ".join(parts) + ("" if caption.ended else " …") + score + "</div>"


def has_maps(caption: Caption) -> bool:
    """Whether it is known where the words of this caption were looked for."""
    return caption.attention is not None and len(caption.attention) > 0


def shades(weights: Tensor) -> bytes:
    """(grid, grid) weights of a word → a byte a cell, 255 for the highest, unless they are nearly even (FLAT)."""
    top = max(float(weights.max()), FLAT / weights.numel())
    return bytes((weights.flatten() * (255 / top)).round().int().tolist())


def data_uri(image: Image.Image, quality: int = QUALITY) -> str:
    """The image as a JPEG inside an address."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
