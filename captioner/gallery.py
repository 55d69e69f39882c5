"""Captioned pictures as one HTML page that needs no other file, no server and no network."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import math
import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from PIL import Image
from torch import Tensor

from captioner.captions import Caption
from captioner.errors import UserError
from captioner.images import open_image

TEMPLATE = Path(__file__).with_suffix(".html")  # what is the same on every page, with {{about}} and {{cards}} in it
SIDE, QUALITY = 384, 80  # of the pictures on the page: long side in pixels, JPEG quality
FLAT = 4.0  # a map whose highest weight is below this many times the even one is drawn the paler


class Gallery:
    """A page that is written picture by picture: each with its captions, how sure every word is, and where it looked.

    It is written aside and renamed when whole: at the end of ``with Gallery(…) as page: page.add(…)``.

    Args:
        path: the file; its folder is made when missing.
        about: a line for the top of the page.
        attention: the captions have maps, and the page says how to see them.

    Raises:
        UserError: the file cannot be written there.
    """

    def __init__(self, path: Path, about: str, attention: bool = False) -> None:
        self.path = Path(os.path.realpath(path))  # a link stays a link
        self.aside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        self.about, self.attention, self.failures = about, attention, list[str]()
        self.top, self.bottom = TEMPLATE.read_text(encoding="utf-8").split("{{cards}}")

    def __enter__(self) -> Gallery:
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.aside, "w", encoding="utf-8")
            maps = "maps" if self.attention else "no-maps"
            self.file.write(self.top.replace("{{about}}", text(self.about)).replace("{{maps}}", maps))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._writing(), self.file:
                if kind is None:
                    self._end()
            if kind is None:
                with self._writing():
                    os.replace(self.aside, self.path)
        finally:
            self.aside.unlink(missing_ok=True)

    def add(self, path: str | os.PathLike, found: Sequence[Caption] | UserError) -> None:
        """The card of a picture: its captions, the best one first, or why it has none."""
        if isinstance(found, UserError):
            self.failures.append(str(found))
            return
        try:
            picture = open_image(path, size_hint=SIDE)
        except UserError as error:  # it could be read a moment ago
            self.failures.append(str(error))
            return
        with self._writing():
            self.file.write(card(os.fspath(path), picture, found))

    def _end(self) -> None:
        """The end of the page: which pictures have no caption."""
        said = ""
        if self.failures:
            items = "".join(f"<li>{text(failure)}</li>\n" for failure in self.failures)
            said = f'<section class="failures">\n<h2>Without a caption</h2>\n<ul>\n{items}</ul>\n</section>\n'
        self.file.write(self.bottom.replace("{{failures}}", said))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error}); name another place or make room") from None


def text(plain: str) -> str:
    """Plain text as HTML; what no page can hold, such as the broken Unicode of a file name, is a question mark."""
    return html.escape("".join(c if c.isprintable() else "?" for c in plain))


def card(name: str, picture: Image.Image, captions: Sequence[Caption]) -> str:
    """A picture and its captions, one at least, as HTML."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    best = captions[0]
    several = len(captions) > 1
    return "\n".join(
        [
            '<article class="card">',
            f'<div class="view" style="--ratio: {small.width / small.height:.4f}">'
            f'<img src="{data_uri(small)}" width="{small.width}" height="{small.height}" alt="{text(best.text)}"'
            ' loading="lazy" decoding="async">',
            '<output class="said"></output></div>',
            '<ol class="captions">',
            *(f"<li>{line(caption, several)}</li>" for caption in captions),
            "</ol>",
            *(['<details class="strip"><summary>Word by word</summary></details>'] if has_maps(best) else []),
            f'<p class="name">{text(name)}</p>',
            "</article>\n",
        ]
    )


def line(caption: Caption, scored: bool) -> str:
    """The words of a caption, each shaded by its probability; buttons, where there are maps to be seen.

    ``data-maps`` has the bytes of :func:`shades`, base64, word after word.
    """
    words = [*caption.text.split(), *(["end"] if caption.ended else [])]
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
            title += f", {seen:.0%} of it from the picture"
        parts.append(
            f'<button type="button" class="{kind}" style="--p: {p:.2f}" tabindex="{-1 if i else 0}"'
            f' aria-pressed="false" title="{text(title)}">{text(word)}</button>'
        )
    opening = '<div class="words">'
    if has_maps(caption):
        grid = maps[0].shape[-1]
        encoded = base64.b64encode(b"".join(map(shades, maps))).decode()
        opening = (
            '<div class="words" role="toolbar" aria-label="Words of the caption"'
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


def data_uri(picture: Image.Image) -> str:
    """The picture as a JPEG inside an address."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
