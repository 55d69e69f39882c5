"""An evaluation as one HTML page: scores with intervals, lengths, words, and every image, sorted by its score."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from captioner import metrics
from captioner.data.annotations import Example
from captioner.data.clips import thumbnail
from captioner.errors import UserError, printable
from captioner.metrics.scoring import EXTERNAL, RESAMPLES, ScoringResult, image_scores
from captioner.models.base import Caption
from captioner.reports.gallery import EMPTY_WORD_MAPS, caption_html, has_maps, image_html
from captioner.reports.page import Page, escape

LARGE, SMALL = (320, 80), (192, 60)  # of the images on the page: long side in pixels, JPEG quality
MAX_LARGE = 1000  # images; where there are more, all are SMALL
N_BEST = 3  # captions shown of an image, where the beam has found as many
MAX_BARS = 18  # of a histogram
MAX_WORDS = 24  # in a list of words

Series = Sequence[tuple[str, str]]  # of a chart: CSS class, which is a colour, and name


class EvaluationPage(Page):
    """The page of an evaluation, written image by image; the scores come last, by :meth:`finish`.

    The cards of the images are stored on the page as text, of which the browser shows 24 at a time, in any order.

    Args:
        path, heading, attention: as of :class:`captioner.reports.gallery.GalleryPage`.
        count: the number of images, which decides their size.
        names: of this system and, where there is one, of the system it is compared with.
    """

    def __init__(self, path: Path, heading: str, count: int, attention: bool, names: Sequence[str]) -> None:
        classes = f"{'maps' if attention else 'no-maps'} {'two-systems' if len(names) > 1 else 'one-system'}"
        super().__init__(path, "evaluation.html", heading=escape(heading), classes=classes)
        self.names, self.size = names, LARGE if count <= MAX_LARGE else SMALL
        self.places: dict[Any, int] = {}  # in `images`, by image id
        self.images: list[dict[str, Any]] = []
        self.summary = ""

    def add(self, example: Example, captions: Sequence[Caption], other: Sequence[Caption] | str | None = None) -> None:
        """Add an image with its captions, best first, and those of the other system, or its only one."""
        systems = [captions] if other is None else [captions, other]
        try:
            shown = image_html(thumbnail(example.path, self.size[0]), *self.size, captions[0].text)
        except UserError as error:  # it was readable when it was captioned
            shown = f'<p class="faint">{escape(str(error))}</p>'
        card = evaluation_card(shown, example.name, systems, self.names)  # escaped, so there is no </script> in it
        self.write(f'<script type="text/html" class="image">{card}</script>\n')
        self.places[example.image_id] = len(self.images)
        texts = [each if isinstance(each, str) else each[0].text for each in systems]
        self.images.append(
            {
                "name": printable(example.name),
                "captions": [printable(text) for text in texts],
                "references": [printable(reference) for reference in example.captions],
                "perplexity": round(captions[0].perplexity, 3),
            }
        )

    def finish(self, scored: ScoringResult) -> None:
        """Set the scores of the images that were added."""
        systems = [image_scores(scores) for scores in scored.per_image]
        for image, *each in zip(scored.ids, *systems, strict=True):
            rounded = [{name: round(value, 2) for name, value in scores.items()} for scores in each]
            self.images[self.places[image]]["scores"] = rounded
        self.summary = summary(scored, self.names)

    def end_values(self) -> dict[str, str]:
        """The summary, and the texts and scores of each image as JSON for the script."""
        data = json.dumps(self.images, separators=(",", ":")).replace("<", "\\u003c")
        return {"summary": self.summary, "images": data}


def evaluation_card(image: str, name: str, systems: Sequence[Sequence[Caption] | str], names: Sequence[str]) -> str:
    """An image (as HTML) and the captions of each system; the script adds scores and references."""
    sections = "".join(map(_system_html, systems, _system_series(names)))
    return (
        f'<article class="card">\n<div class="left">{image}\n<p class="name" dir="auto">{escape(name)}</p></div>\n'
        f'<div class="right">\n<div class="systems">\n{sections}</div>\n'
        '<h3>References</h3>\n<ul class="references"></ul>\n</div>\n</article>'
    )


def _system_html(captions: Sequence[Caption] | str, series: tuple[str, str]) -> str:
    """The captions of one system; a caption from a file has no probabilities."""
    maps = ""
    if isinstance(captions, str):
        lines = [f'<div class="words" dir="auto">{escape(captions)}</div>']
    else:
        best, *rest = captions
        lines = [caption_html(best, True)]
        lines += [caption_html(replace(caption, attention=None), True) for caption in rest]  # their maps take space
        maps = EMPTY_WORD_MAPS if has_maps(best) else ""
    items = "".join(f"<li>{line}</li>\n" for line in lines)
    colour, name = series
    return (
        f'<section class="system by-{colour}">\n<h3>{_swatch(colour)}{escape(name)}</h3>\n<p class="scores"></p>\n'
        f'<ol class="captions">\n{items}</ol>\n{maps}</section>\n'
    )


def summary(scored: ScoringResult, names: Sequence[str]) -> str:
    """Scores, lengths and words as HTML."""
    series = _system_series(names)
    ciders = [100 * images.cider for images in scored.per_image]
    texts = [*scored.words, [caption for captions in scored.references for caption in captions]]
    lengths = histogram([[len(words) for words in text] for text in texts], whole=True)
    return (
        f'<section class="wide">\n<h2>Scores</h2>\n<div class="halves">{_scores(scored.scores, names)}\n'
        f"<div><h3>CIDEr per image</h3>\n{_chart(histogram(ciders, whole=False), series, 'CIDEr from')}</div></div>\n"
        f"{_facts(scored.scores)}</section>\n"
        f"<section>\n<h2>Words per caption</h2>\n"
        f"{_chart(lengths, [*series, ('references', 'references')], 'words')}</section>\n"
        f"<section>\n<h2>Words</h2>\n{_words(scored.words[0], scored.references)}</section>"
    )


def _scores(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    """The table of scores: name, score [interval]; with a second system its score, the difference [interval] and p."""
    intervals, compared, series = scores.get("intervals", {}), scores.get("compare"), _system_series(names)
    rows = []
    for name in (name for name in (*metrics.NAMES, *EXTERNAL) if name in scores):
        cells = [f"{scores[name]:.2f}{_interval(intervals.get(name))}"]
        if compared:
            cells += _comparison_cells(compared.get(name))
        rows.append(_row("".join(f"<td>{cell}</td>" for cell in cells), name))
    if compared:
        heads = ["", *(f"{_swatch(colour)}{colour}" for colour, _ in series), "difference", "p"]
    else:
        heads = ["", *(f"{_swatch(colour)}{escape(name)}" for colour, name in series)]
    notes = f"[low, high]: 95 % of {RESAMPLES:,} bootstrap resamples of the images. " if intervals else ""
    if compared:
        notes += f"Difference: first minus second, on the same images; {compared['test']}."
    legend = _legend(series) if compared else ""
    return f'<div>{legend}{_table(heads, rows)}\n<p class="faint">{notes}</p></div>'


def _comparison_cells(row: Mapping[str, float] | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    significant = row["low"] > 0 or row["high"] < 0
    kind = ("better" if row["difference"] > 0 else "worse") if significant else ""
    difference = f'<span class="{kind}">{row["difference"]:+.2f}</span>{_interval(row, "+")}'
    return [f"{row['second']:.2f}", difference, f"{row['p']:.4f}"]


def _interval(row: Mapping[str, float] | None, sign: str = "") -> str:
    return f" <small>[{row['low']:{sign}.2f}, {row['high']:{sign}.2f}]</small>" if row else ""


def _system_series(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(("first", "second"), names, strict=False))


def _swatch(colour: str) -> str:
    return f'<i class="swatch {colour}"></i>'


def _legend(series: Series) -> str:
    names = "".join(f"<span>{_swatch(colour)}{escape(name)}</span> " for colour, name in series)
    return f'<p class="legend">{names}</p>\n'


def _row(cells: str, name: str) -> str:
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head, body = "".join(f'<th scope="col">{cell}</th>' for cell in heads), "\n".join(rows)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _facts(scores: Mapping[str, Any]) -> str:
    facts = {
        "images": f"{scores['images']:,}",
        "distinct captions": f"{scores['distinct']:.1f} %",
        "vocabulary": f"{scores['vocabulary']:,} words",
        "mean length": f"{scores['mean_length']:.2f} words",
        "self-BLEU": f"{scores['self-BLEU-4']:.2f}",
        "CIDEr, captions shuffled": f"{scores['CIDEr-shuffled']:.2f}",
    }
    if "seen_in_training" in scores:
        facts["copies of training captions"] = f"{scores['seen_in_training']:.1f} %"
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in facts.items())
    return f'<dl>\n{items}</dl>\n<p class="faint">{escape(scores["signature"])}</p>'


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


def _chart(bars: Sequence[tuple[str, Sequence[float]]], series: Series, what: str) -> str:
    """The bars of a histogram, and the same numbers as a table for people who cannot see them."""
    highest = max(max(shares) for _, shares in bars)
    columns, rows = [], []
    for label, shares in bars:
        of_series = list(zip(series, shares, strict=True))
        title = f"{what} {label}: " + ", ".join(f"{name} {share:.1%}" for (_, name), share in of_series)
        heights = "".join(
            f'<i class="{colour}" style="height: {100 * share / highest:.1f}%"></i>' for (colour, _), share in of_series
        )
        columns.append(f'<div class="bin" title="{escape(title)}"><div>{heights}</div><b>{label}</b></div>')
        rows.append(_row("".join(f"<td>{share:.1%}</td>" for share in shares), label))
    table = _table([escape(name) for name in (what, *(name for _, name in series))], rows)
    return (
        f'{_legend(series) if len(series) > 1 else ""}<div class="chart" aria-hidden="true">{"".join(columns)}</div>\n'
        f"<details><summary>Show as a table</summary>{table}</details>\n"
    )


def _words(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> str:
    """The words used most and least, and those that only the references have."""
    used = Counter(word for caption in hypotheses for word in caption)
    wanted = Counter(word for captions in references for caption in captions for word in caption)
    most = sorted(used, key=lambda word: (-used[word], word))
    least = sorted(used, key=lambda word: (used[word], -wanted[word], word))
    unused = sorted(wanted.keys() - used.keys(), key=lambda word: (-wanted[word], word))
    once = sum(count == 1 for count in used.values())
    parts = []
    for title, words, counts, note in (
        ("Most used", most[: (len(most) + 1) // 2], used, f"of {len(used):,} words"),
        ("Least used", least[: len(least) // 2], used, f"{once:,} words are used once"),
        ("Never used", unused, wanted, f"{len(unused):,} words are only in the references"),
    ):
        buttons = " ".join(_word_button(word, counts[word], used[word], wanted[word]) for word in words[:MAX_WORDS])
        if words:
            parts.append(f'<h3>{title} <span class="faint">{note}</span></h3>\n<p class="word-list">{buttons}</p>\n')
    return "".join(parts) + '<p class="faint">Choose a word to list its images.</p>\n'


def _word_button(word: str, count: int, used: int, wanted: int) -> str:
    title = f"{used:,} in the captions, {wanted:,} in the references"
    opening = f'<button type="button" class="find-word" data-word="{escape(word)}" title="{title}">'
    return f"{opening}{escape(word)} <b>{count:,}</b></button>"
