"""An evaluation as one HTML page: scores with intervals, lengths, words, and every image, sorted by its score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captioner import metrics
from captioner.data.annotations import Example
from captioner.data.clips import thumbnail
from captioner.errors import UserError, counted, printable
from captioner.metrics.scoring import EXTERNAL, RESAMPLES, ScoringResult, image_scores
from captioner.models.base import Caption
from captioner.reports.gallery import DOUBT, caption_values, doubt, shrink
from captioner.reports.page import TEMPLATES, Page, origin, render, without_folders

LARGE, SMALL = (320, 80), (192, 60)  # of the images on the page: long side in pixels, JPEG quality
MAX_LARGE = 1000  # images; where there are more, all are SMALL
N_BEST = 3  # captions shown of an image, if the beam has as many
MAX_BARS = 18  # of a histogram
MAX_WORDS = 24  # in a list of words

COLOURS = ("first", "second")  # CSS classes of the systems


class EvaluationPage(Page):
    """The page of an evaluation, written image by image; the scores come last, by :meth:`finish`.

    The cards of the images are stored on the page as text, of which the browser shows 24 at a time, in any order.

    Args:
        path, heading, attention, command_line: as of :class:`captioner.reports.gallery.GalleryPage`.
        count: the number of images, which decides their size.
        names: of this system and, where there is one, of the system it is compared with.
        folders: of the images and annotations, which messages on the page do not name.
    """

    def __init__(
        self,
        path: Path,
        heading: str,
        count: int,
        attention: bool,
        names: Sequence[str],
        command_line: Sequence[str] = ("captioner",),
        folders: Sequence[str] = (),
    ) -> None:
        two = len(names) > 1
        about = {"attention": attention, "two": two, "doubt_name": DOUBT, "origin": origin(command_line)}
        super().__init__(path, "reports/evaluation.html", heading=heading, **about)
        self.folders = folders
        self.names, self.size = names, LARGE if count <= MAX_LARGE else SMALL
        self.images: dict[Any, dict[str, Any]] = {}  # by id, for the script of the page
        self.summary: dict[str, Any] = {}  # of evaluation_summary.html

    def add(self, example: Example, captions: Sequence[Caption], other: Sequence[Caption] | str | None = None) -> None:
        """Add an image with its captions, best first, and those of the other system, or its only one."""
        systems = [captions] if other is None else [captions, [other] if isinstance(other, str) else other]
        side, quality = self.size
        unsure = doubt(captions[0])
        card: dict[str, Any] = {"name": example.name, "quality": quality, "doubt": unsure, "doubt_name": DOUBT}
        try:
            card["image"] = shrink(thumbnail(example.path, side), side)
        except UserError as error:  # changed since it was captioned
            card["error"] = without_folders(str(error), [str(example.path).removesuffix(example.name), *self.folders])
        card["systems"] = [
            {"colour": colour, "name": name, "captions": _lines(each), "concepts": getattr(each[0], "concepts", ())}
            for colour, name, each in zip(COLOURS, self.names, systems, strict=False)
        ]
        self.write(render("reports/evaluation_card.html", **card))
        best = [each[0] if isinstance(each[0], str) else each[0].text for each in systems]
        self.images[example.image_id] = {
            "name": printable(example.name),
            "captions": [printable(text) for text in best],
            "references": [printable(reference) for reference in example.captions],
            "doubt": round(unsure, 3),
        }

    def finish(self, scored: ScoringResult, skipped: Sequence[str] = ()) -> None:
        """Set the scores of the images that were added, and list those `skipped`, a message each."""
        self.failures += [without_folders(message, self.folders) for message in skipped]
        systems = [image_scores(scores) for scores in scored.per_image]
        for image, *each in zip(scored.ids, *systems, strict=True):
            rounded = [{name: round(value, 2) for name, value in scores.items()} for scores in each]
            self.images[image]["scores"] = rounded
        texts = [*scored.words, [caption for captions in scored.references for caption in captions]]
        self.summary = {
            "scores": scored.scores,
            "metrics": (*metrics.NAMES, *EXTERNAL),
            "resamples": f"{RESAMPLES:,}",
            "series": list(zip(COLOURS, self.names, strict=False)),
            "ciders": histogram([100 * images.cider for images in scored.per_image], whole=False),
            "lengths": histogram([[len(words) for words in text] for text in texts], whole=True),
            "words": _words(scored.words[0], scored.references),
        }


def _lines(captions: Sequence[Caption | str]) -> list[dict[str, Any] | str]:
    """The captions of one system, best first; only the best has maps, to save space."""
    return [
        caption if isinstance(caption, str) else caption_values(caption, with_maps=i == 0)
        for i, caption in enumerate(captions)
    ]


def histogram(samples: Sequence[Any], whole: bool) -> list[tuple[str, list[float]]]:
    """A histogram of several samples of numbers: the label of each bar, and the share of each sample in it.

    At most MAX_BARS bars of equal width 1, 2 or 5 times a power of ten; `whole` makes that 1 at least. The last one
    also holds everything above it.

        histogram([[3, 3, 4], [5]], whole=True) == [("3", [2 / 3, 0]), ("4", [1 / 3, 0]), ("5", [0, 1])]
    """
    values = [np.asarray(sample, float) for sample in samples]
    low, high = min(each.min() for each in values), max(np.quantile(each, 0.98) for each in values)
    least = max((high - low) / (MAX_BARS - 1), 1 if whole else 1e-3)
    width = next(width for n in range(-3, 9) for width in (10.0**n * part for part in (1, 2, 5)) if width >= least)
    first, last = int(low // width), int(high // width)
    bars = [np.clip(each // width, first, last).astype(int) - first for each in values]
    shares = np.stack([np.bincount(bar, minlength=last - first + 1) / len(bar) for bar in bars], axis=1)
    labels = [
        f"{n * width:g}–{(n + 1) * width - 1:g}" if whole and width > 1 else f"{n * width:g}"
        for n in range(first, last + 1)
    ]
    if max(each.max() for each in values) >= (last + 1) * width:
        labels[-1] = f"{last * width:g}+"
    return list(zip(labels, shares.tolist(), strict=True))


def ticks(bars: Sequence[tuple[str, Sequence[float]]]) -> list[float]:
    """Three to six numbers of a y axis from 0 to the highest bar or above, 1, 2 or 5 times a power of ten apart."""
    highest = max(share for _, shares in bars for share in shares)
    step = next(step for n in range(-6, 1) for step in (10.0**n, 2 * 10.0**n, 5 * 10.0**n) if highest <= 5 * step)
    return [n * step for n in range(max(3, 1 + math.ceil(highest / step - 1e-9)))]


TEMPLATES.filters["ticks"] = ticks


def _words(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[tuple[str, str, list[tuple[str, int, int, int]]]]:
    """Lists of the words used most and least, and of those that only the references have: title, note, words.

    Each word has the count that is shown, its count in the hypotheses, and its count in the references.
    """
    used = Counter(word for caption in hypotheses for word in caption)
    wanted = Counter(word for captions in references for caption in captions for word in caption)
    most = sorted(used, key=lambda word: (-used[word], word))
    least = sorted(used, key=lambda word: (used[word], -wanted[word], word))
    unused = sorted(wanted.keys() - used.keys(), key=lambda word: (-wanted[word], word))
    once = sum(count == 1 for count in used.values())
    lists = [
        ("Most used", f"of {counted(len(used), 'word')}", most[: (len(most) + 1) // 2], used),
        ("Least used", f"used once: {counted(once, 'word')}", least[: len(least) // 2], used),
        ("Never used", f"only in the references: {counted(len(unused), 'word')}", unused, wanted),
    ]
    return [
        (title, note, [(word, counts[word], used[word], wanted[word]) for word in words[:MAX_WORDS]])
        for title, note, words, counts in lists
    ]
