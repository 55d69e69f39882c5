"""A page of captioned images: the probability of each word is its shade, its attention map lies over the image."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from PIL import Image
from torch import Tensor

from captioner.data.clips import thumbnail
from captioner.errors import UserError
from captioner.models.base import Caption
from captioner.reports.page import QUALITY, Page, escape, jpeg_uri

IMAGE_SIDE = 384  # pixels of the long side of the images
EMPTY_WORD_MAPS = (
    '<details class="word-maps"><summary>Attention map of each word</summary></details>'  # maps.js fills it
)
MIN_PEAK = 4.0  # times the weight of an even map: a lower peak is drawn paler, so that a flat map does not look sharp


class GalleryPage(Page):
    """A page of captioned images with a line of `heading`; see :class:`Page` for `path` and errors.

    With `attention` the captions have attention maps, and the page explains how to see them.
    """

    def __init__(self, path: Path, heading: str, attention: bool = False) -> None:
        super().__init__(path, "gallery.html", heading=escape(heading), maps="maps" if attention else "no-maps")

    def add(self, path: str | os.PathLike, captions: Sequence[Caption] | UserError) -> None:
        """Add an image or clip with its captions, best first, or list it as a failure."""
        if isinstance(captions, UserError):
            self.failures.append(str(captions))
            return
        try:
            image = thumbnail(path, IMAGE_SIDE)
        except UserError as error:  # it was readable when it was captioned
            self.failures.append(str(error))
            return
        self.write(gallery_card(os.fspath(path), image, captions))


def gallery_card(name: str, image: Image.Image, captions: Sequence[Caption]) -> str:
    """An image and its captions, best first, as HTML."""
    items = "".join(f"<li>{caption_html(caption, len(captions) > 1)}</li>\n" for caption in captions)
    return (
        f'<article class="card">\n{image_html(image, IMAGE_SIDE, QUALITY, captions[0].text)}\n'
        f'<ol class="captions">\n{items}</ol>\n{EMPTY_WORD_MAPS if has_maps(captions[0]) else ""}\n'
        f'<p class="name" dir="auto">{escape(name)}</p>\n</article>\n'
    )


def image_html(image: Image.Image, side: int, quality: int, alt: str) -> str:
    """The image, at most `side` pixels long, in a box where maps.js draws attention maps over it."""
    small = image.copy()
    small.thumbnail((side, side))
    return (
        f'<div class="image-box" style="--ratio: {small.width / small.height:.4f}">'
        f'<img src="{jpeg_uri(small, quality)}" width="{small.width}" height="{small.height}" alt="{escape(alt)}"'
        ' loading="lazy" decoding="async"><output class="word-label"></output></div>'
    )


def caption_html(caption: Caption, with_score: bool) -> str:
    """The words of a caption, each shaded by its probability; buttons that show the word's map, where there are maps.

    ``data-maps`` holds the bytes of :func:`map_bytes` of all words in base64. A caption "a dog" with maps is

        <div class="words" … data-grid="7" data-maps="…">
        <button class="word" style="--p: 0.91" title="a: 91%">a</button> <button …>dog</button> <button …>end</button>
        </div>
    """
    words = caption.text.split()
    if len(words) != len(caption.word_log_probs) - caption.ended:
        words = list(caption.text)  # of a model that writes characters
    words += ["end"] if caption.ended else []
    maps: list[Tensor] = [] if caption.attention is None else list(caption.attention)
    parts = [
        _word_html(word, math.exp(log_prob), weights, first=i == 0, end=caption.ended and i == len(words) - 1)
        for i, (word, log_prob, weights) in enumerate(zip_longest(words, caption.word_log_probs, maps))
    ]
    attributes = ""
    if maps:
        encoded = base64.b64encode(b"".join(map(map_bytes, maps))).decode()
        attributes = f' role="toolbar" aria-label="Words of the caption" data-grid="{maps[0].shape[-1]}"'
        attributes += f' data-maps="{encoded}"'
    cut = "" if caption.ended else " …"
    score = f' <span class="score" title="log-probability">{caption.log_prob:.2f}</span>' if with_score else ""
    return f'<div class="words" dir="auto"{attributes}>{" ".join(parts)}{cut}{score}</div>'


def _word_html(word: str, probability: float, weights: Tensor | None, first: bool, end: bool) -> str:
    title = f"{word}: {probability:.0%}"
    tag, attributes = "span", ""
    if weights is not None:
        total = float(weights.sum())
        if total < 0.9995:  # the visual sentinel has the rest
            title += f", {total:.0%} of the attention on the image"
        tag, attributes = "button", f' type="button" tabindex="{0 if first else -1}" aria-pressed="false"'
    return (
        f'<{tag} class="{"word end" if end else "word"}" style="--p: {probability:.2f}"{attributes}'
        f' title="{escape(title)}">{escape(word)}</{tag}>'
    )


def has_maps(caption: Caption) -> bool:
    """Whether the words of this caption have attention maps."""
    return caption.attention is not None and len(caption.attention) > 0


def map_bytes(weights: Tensor) -> bytes:
    """(grid, grid) weights of a word → a byte for each cell, 255 at the peak, or less where the map is nearly even."""
    top = max(float(weights.max()), MIN_PEAK / weights.numel())
    return bytes((weights.flatten() * (255 / top)).round().int().tolist())
