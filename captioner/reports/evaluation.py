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
from captioner.data.clips import thumbnail
from captioner.errors import UserError, printable
from captioner.metrics.scoring import RESAMPLES, ScoringResult, image_scores
from captioner.models.base import Caption
from captioner.reports.gallery import STRIP, Page, has_maps, line, text, view

LARGE, SMALL = (320, 80), (192, 60)  # of the images on the page: long side in pixels, JPEG quality
MANY = 1000  # more images than this are SMALL
N_BEST = 3  # captions of an image, where the beam has them anyway
BARS = 18  # of the lengths, at most
WORDS = 24  # in a list of words
EXTERNAL = ("METEOR", "SPICE", "CLIPScore")


class Evaluation(Page):
    """The page of an evaluation, written image by image; the scores come last, by :meth:`finish`.

    The cards of the images lie on the page as text, of which the browser draws 24 at a time, in any order.

    Args:
        path: the file; its folder is made when missing.
        about: a line for the top of the page.
        count: how many images there will be, about.
        attention: the captions have maps, and the page says how to see them.
        names: what to call this system and, where there is one, the other.

    Raises:
        UserError: the file cannot be written there.
    """

    def __init__(self, path: Path, about: str, count: int, attention: bool, names: Sequence[str]) -> None:
        classes = " ".join(["maps" if attention else "no-maps", "two" if len(names) > 1 else "one"])
        super().__init__(path, "evaluation.html", about=text(about), classes=classes)
        self.names, self.size = names, LARGE if count <= MANY else SMALL
        self.places: dict[Any, int] = {}
        self.images: list[dict[str, Any]] = []
        self.summary = ""

    def add(
        self,
        image: Any,
        path: Any,
        name: str,
        references: Sequence[str],
        found: Sequence[Caption],
        other: Sequence[Caption] | str | None = None,
    ) -> None:
        """An image with its captions, the best one first, and those of the other system, or its only one."""
        systems = [found, *([] if other is None else [other])]
        try:
            shown = view(thumbnail(path, self.size[0]), *self.size, found[0].text)
        except UserError as error:  # it could be read a moment ago
            shown = f'<p class="faint">{text(str(error))}</p>'
        # Markup of ours around escaped text: there is no </script> in it.
        self.write(f'<script type="text/html" class="image">{card(shown, name, systems, self.names)}</script>\n')
        self.places[image] = len(self.images)
        words = [each if isinstance(each, str) else each[0].text for each in systems]
        self.images.append(
            {
                "name": printable(name),
                "captions": [printable(each) for each in words],
                "references": [printable(reference) for reference in references],
                "perplexity": round(found[0].perplexity, 3),
            }
        )

    def finish(self, scored: ScoringResult) -> None:
        """Take the scores of the images that were added."""
        seconds = [None] * len(scored.ids) if scored.other_per_image is None else image_scores(scored.other_per_image)
        for image, scores, second in zip(scored.ids, image_scores(scored.per_image), seconds, strict=True):
            both = [scores] if second is None else [scores, second]
            self.images[self.places[image]]["scores"] = [
                {name: round(value, 2) for name, value in each.items()} for each in both
            ]
        self.summary = summary(scored, self.names)

    def end(self) -> dict[str, str]:
        """The summary, and what the script knows of each image."""
        data = json.dumps(self.images, separators=(",", ":")).replace("<", "\\u003c")
        return {"summary": self.summary, "images": data}


def card(shown: str, name: str, systems: Sequence[Sequence[Caption] | str], names: Sequence[str]) -> str:
    """What is shown of an image, and the captions of each system, as HTML; the script adds scores and references."""
    return (
        f'<article class="card">\n<div class="left">{shown}\n<p class="name" dir="auto">{text(name)}</p></div>\n'
        f'<div class="right">\n<div class="systems">\n{"".join(map(_system, systems, _keys(names)))}</div>\n'
        '<h3>References</h3>\n<ul class="references"></ul>\n</div>\n</article>'
    )


def _system(captions: Sequence[Caption] | str, named: tuple[str, str]) -> str:
    """The captions that a system gives an image; of captions from a file nothing is known but the text."""
    if isinstance(captions, str):
        lines = [f'<div class="words" dir="auto">{text(captions)}</div>']
    else:
        best, *rest = captions
        lines = [line(best, True), *(line(replace(each, attention=None), True) for each in rest)]  # maps take room
    items = "".join(f"<li>{each}</li>\n" for each in lines)
    strip = "" if isinstance(captions, str) or not has_maps(captions[0]) else STRIP
    key, name = named
    return (
        f'<section class="system by-{key}">\n<h3><i class="key {key}"></i>{text(name)}</h3>\n<p class="scores"></p>\n'
        f'<ol class="captions">\n{items}</ol>\n{strip}</section>\n'
    )


def summary(scored: ScoringResult, names: Sequence[str]) -> str:
    """Scores, lengths and words as HTML."""
    systems = [scored.words, *([scored.other_words] if scored.other_per_image is not None else [])]
    each = [images.cider for images in (scored.per_image, scored.other_per_image) if images is not None]
    return "\n".join(
        [
            f'<section class="wide">\n<h2>Scores</h2>\n<div class="halves">{_scores(scored.scores, names)}',
            f"<div>{_ciders(each, names)}</div></div>\n{_facts(scored.scores)}</section>",
            f"<section>\n<h2>Words a caption</h2>\n{_lengths(systems, scored.references, names)}</section>",
            f"<section>\n<h2>Words</h2>\n{_words(scored.words, scored.references)}</section>",
        ]
    )


def _scores(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    intervals, compared = scores.get("intervals", {}), scores.get("compare")
    rows = []
    for name in (name for name in (*metrics.NAMES, *EXTERNAL) if name in scores):
        cells = [f"{scores[name]:.2f}{_interval(intervals.get(name))}"]
        if compared:
            row = compared.get(name)
            sure = row and (row["low"] > 0 or row["high"] < 0)
            better = ("better" if row["difference"] > 0 else "worse") if sure else ""
            cells += (
                [
                    f"{row['second']:.2f}",
                    f'<span class="{better}">{row["difference"]:+.2f}</span>{_interval(row, "+")}',
                    f"{row['p']:.4f}",
                ]
                if row
                else ["", "", ""]
            )
        rows.append(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    keys = [f'<i class="key {key}"></i>{key if compared else text(name)}' for key, name in _keys(names)]
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in ["", *keys, *(["difference", "p"] if compared else [])])
    notes = []
    if intervals:
        notes.append(f"[ ]: 95 % of {RESAMPLES:,} bootstrap resamples of the images.")
    if compared:
        notes.append(f"Difference: first less second, on the same images; {compared['test']}.")
    legend = _legend(_keys(names)) if compared else ""
    return f'<div>{legend}{_table(heads, rows)}\n<p class="faint">{" ".join(notes)}</p></div>'


def _legend(series: Sequence[tuple[str, str]]) -> str:
    names = "".join(f'<span><i class="key {key}"></i>{text(name)}</span> ' for key, name in series)
    return f'<p class="legend">{names}</p>\n'


def _table(heads: str, rows: Sequence[str]) -> str:
    head, body = f"<thead><tr>{heads}</tr></thead>", "\n".join(rows)
    return f'<div class="scroll" tabindex="0"><table>\n{head}\n<tbody>\n{body}\n</tbody></table></div>'


def _interval(row: Mapping[str, float] | None, sign: str = "") -> str:
    return f" <small>[{row['low']:{sign}.2f}, {row['high']:{sign}.2f}]</small>" if row else ""


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
    return f'<dl>\n{items}</dl>\n<p class="faint">{text(scores["signature"])}</p>'


def shares(series: Sequence[Any], whole: bool) -> list[tuple[str, list[float]]]:
    """A histogram of several series: names of at most BARS bars, and the share of each series that falls into them.

    The bars begin at round numbers, whole ones if need be; the last has all that lies above.
    """
    values = [np.asarray(each, float) for each in series]
    low, high = min(each.min() for each in values), max(np.quantile(each, 0.98) for each in values)
    least = max((high - low) / (BARS - 1), 1 if whole else 1e-3)
    step = next(step for n in range(-3, 9) for step in (10.0**n * part for part in (1, 2, 5)) if step >= least)
    first, last = int(low // step), int(high // step)
    places = [np.clip(each // step, first, last).astype(int) - first for each in values]
    counts = [np.bincount(place, minlength=last - first + 1) / len(place) for place in places]
    names = [
        f"{n * step:g}–{(n + 1) * step - 1:g}" if whole and step > 1 else f"{n * step:g}"
        for n in range(first, last + 1)
    ]
    if max(each.max() for each in values) >= (last + 1) * step:
        names[-1] = f"{last * step:g}+"
    return [(name, [float(share) for share in row]) for name, row in zip(names, zip(*counts, strict=True), strict=True)]


def _lengths(
    systems: Sequence[Sequence[Sequence[str]]], references: Sequence[Sequence[Sequence[str]]], names: Sequence[str]
) -> str:
    every = [*systems, [caption for captions in references for caption in captions]]
    series = [*_keys(names), ("references", "references")]
    return _chart(shares([[len(caption) for caption in captions] for captions in every], True), series, "words")


def _ciders(each: Sequence[np.ndarray], names: Sequence[str]) -> str:
    chart = _chart(shares([100 * values for values in each], False), _keys(names), "CIDEr from")
    return f"<h3>CIDEr of each image</h3>\n{chart}"


def _chart(bars: Sequence[tuple[str, Sequence[float]]], series: Sequence[tuple[str, str]], what: str) -> str:
    """Columns side by side, and the same as a table for who cannot see them."""
    highest = max(max(row) for _, row in bars)
    columns, rows = [], []
    for label, row in bars:
        said = ", ".join(f"{name} {share:.1%}" for (_, name), share in zip(series, row, strict=True))
        heights = "".join(
            f'<i class="{key}" style="height: {100 * share / highest:.1f}%"></i>'
            for (key, _), share in zip(series, row, strict=True)
        )
        columns.append(
            f'<div class="bin" title="{text(f"{what} {label}: {said}")}"><div>{heights}</div><b>{label}</b></div>'
        )
        cells = "".join(f"<td>{share:.1%}</td>" for share in row)
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in [what, *(name for _, name in series)])
    return (
        f'{_legend(series) if len(series) > 1 else ""}<div class="chart" aria-hidden="true">{"".join(columns)}</div>\n'
        f"<details><summary>As a table</summary>{_table(head, rows)}</details>\n"
    )


def _words(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> str:
    used = Counter(word for caption in hypotheses for word in caption)
    wanted = Counter(word for captions in references for caption in captions for word in caption)
    most = sorted(used, key=lambda word: (-used[word], word))
    least = sorted(used, key=lambda word: (used[word], -wanted[word], word))
    missed = sorted(wanted.keys() - used.keys(), key=lambda word: (-wanted[word], word))
    once = sum(count == 1 for count in used.values())
    lists = [
        ("Most used", most[: (len(most) + 1) // 2], used, f"of {len(used):,} words"),
        ("Least used", least[: len(least) // 2], used, f"words that come once: {once:,}"),
        ("Never used", missed, wanted, f"words that only the references have: {len(missed):,}"),
    ]
    return (
        "".join(
            f'<h3>{title} <span class="faint">{about}</span></h3>\n<p class="chips">'
            + " ".join(_chip(word, counts[word], used[word], wanted[word]) for word in words[:WORDS])
            + "</p>\n"
            for title, words, counts, about in lists
            if words
        )
        + '<p class="faint">Choose a word to see its images.</p>\n'
    )


def _chip(word: str, count: int, used: int, wanted: int) -> str:
    title = f"{used:,} in the captions, {wanted:,} in the references"
    opening = f'<button type="button" class="chip" data-word="{text(word)}" title="{title}">'
    return f"{opening}{text(word)} <b>{count:,}</b></button>"


def _keys(names: Sequence[str]) -> list[tuple[str, str]]:
    """The colours of the systems, and their names."""
    return list(zip(("first", "second"), names, strict=False))
