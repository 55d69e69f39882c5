"""A page of captioned images: the probability of each word is its shade, its attention map lies over the image."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from captioner.data.clips import thumbnail
from captioner.errors import UserError
from captioner.models.base import Caption
from captioner.reports.page import QUALITY, Page, common_folder, origin, render, without_folders

IMAGE_SIDE, SMALL_SIDE = 384, 256  # pixels of the long side of the images
MAX_LARGE = 200  # images; where there are more, all are of SMALL_SIDE
DOUBT = "perplexity"  # what :func:`doubt` is, as the pages name it
MIN_PEAK = 4.0  # times the weight of an even map: a lower peak is drawn paler, so that a flat map does not look sharp


class GalleryPage(Page):
    """A page of captioned images, to sort by doubt and to filter; they are named relative to their common folder.

    Args:
        path: the file, as of :class:`Page`, also for errors.
        heading: a line of what was captioned, and how.
        images: all that will be added, to choose their size and find their folder.
        attention: whether the captions have attention maps, and the page explains how to see them.
        command_line: of the command that writes the page.
    """

    def __init__(
        self,
        path: Path,
        heading: str,
        images: Sequence[str | os.PathLike] = (),
        attention: bool = False,
        command_line: Sequence[str] = ("captioner",),
    ) -> None:
        about = {"heading": heading, "attention": attention, "doubt_name": DOUBT, "origin": origin(command_line)}
        super().__init__(path, "reports/gallery.html", **about)
        folder = common_folder(images)
        self.folders = [folder, os.path.relpath(folder)] if folder else []
        self.side = IMAGE_SIDE if len(images) <= MAX_LARGE else SMALL_SIDE

    def add(self, path: str | os.PathLike, captions: Sequence[Caption] | UserError) -> None:
        """Add an image or clip with its captions, best first, or list it as a failure."""
        if isinstance(captions, UserError):
            self.failures.append(self._named(captions))
            return
        try:
            image = thumbnail(path, self.side)
        except UserError as error:  # changed since it was captioned
            self.failures.append(self._named(error))
            return
        self.write(render("reports/gallery_card.html", **card_values(self._named(path), image, captions, self.side)))

    def _named(self, what: object) -> str:
        """A path or message without the common folder."""
        return without_folders(str(what), self.folders)


def doubt(caption: Caption) -> float:
    """How unsure the model is of a caption, by which the pages sort: the higher, the less sure. DOUBT names it."""
    return caption.perplexity


def card_values(name: str, image: Image.Image, captions: Sequence[Caption], side: int = IMAGE_SIDE) -> dict[str, Any]:
    """The variables of gallery_card.html: an image, at most `side` pixels long, and its captions, best first."""
    lines = [caption_values(each) for each in captions]
    seen = captions[0].concepts
    sure = {"doubt": doubt(captions[0]), "doubt_name": DOUBT}
    small = shrink(image, side)
    return {"name": name, "image": small, "quality": QUALITY, "captions": lines, "concepts": seen, **sure}


def shrink(image: Image.Image, side: int) -> Image.Image:
    """A copy of at most `side` pixels on its long side."""
    small = image.copy()
    small.thumbnail((side, side))
    return small


def caption_values(caption: Caption, with_maps: bool = True) -> dict[str, Any]:
    """The variables of captions.html for a caption; ``maps`` are the bytes of :func:`map_bytes` of all words in base64.

    A caption "a dog" with maps becomes

        <div class="words" … data-grid="7" data-maps="…">
        <button class="word" style="--p: 0.91" title="a: 91%">a</button> <button …>dog</button> <button …>end</button>
        </div>
    """
    texts = caption.text.split()
    if len(texts) != len(caption.word_log_probs) - caption.ended:
        texts = list(caption.text)  # of a model that writes characters
    texts += ["end"] if caption.ended else []
    maps: list[Tensor] = list(caption.attention) if with_maps and caption.attention is not None else []
    words = []
    for i, (text, log_prob, weights) in enumerate(zip_longest(texts, caption.word_log_probs, maps)):
        title = f"{text}: {math.exp(log_prob):.0%}"
        if weights is not None and weights.sum() < 0.9995:  # the visual sentinel has the rest
            title += f", {float(weights.sum()):.0%} of the attention on the image"
        end = caption.ended and i == len(texts) - 1
        words.append({"text": text, "probability": math.exp(log_prob), "title": title, "end": end})
    return {
        "text": caption.text,
        "words": words,
        "ended": caption.ended,
        "score": caption.score,
        "confidence": caption.confidence,
        "unsure": caption.unsure,
        "maps": base64.b64encode(b"".join(map(map_bytes, maps))).decode(),
        "grid": maps[0].shape[-1] if maps else 0,
    }


def map_bytes(weights: Tensor) -> bytes:
    """(grid, grid) weights of a word → a byte for each cell, 255 at the peak, or less where the map is nearly even."""
    top = max(float(weights.max()), MIN_PEAK / weights.numel())
    return bytes((weights.flatten() * (255 / top)).round().int().tolist())
