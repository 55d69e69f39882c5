"""The report of ``captioner data inspect``: as text for a terminal, as plain values, and as one HTML page."""

from __future__ import annotations

import functools
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from captioner.data.images import ImageError, open_image
from captioner.datasets.inspect import QUANTILES, Finding
from captioner.errors import counted, printable
from captioner.reports.page import jpeg_uri, origin, render, short_path, without_folders

WIDTH, BAR = 80, 40  # columns of the terminal, and of the longest bar
MAX_BARS = 15
TERMINAL_LINES = 5  # lines of a finding that are shown
THUMBNAIL_SIDE, QUALITY = 192, 72  # pixels of the long side, and of JPEG

Report = Mapping[str, Any]  # the result of captioner.datasets.inspect.inspect


def as_json(report: Report) -> dict[str, Any]:
    """The whole report as plain values."""
    findings = []
    for finding in report["findings"]:
        groups = [[{"split": split, "file": file} for split, file, _ in group] for group in finding.images or ()]
        findings.append({**asdict(finding), "count": len(finding.lines), "images": groups})
    return {"splits": report["splits"], "findings": findings}


def as_text(report: Report) -> str:
    """The report for a terminal of WIDTH columns: warnings, statistics of each split, notes."""
    lines = _finding_lines([f for f in report["findings"] if f.serious], "! ") or [_no_problem(report)]
    for split in report["splits"]:
        lines += ["", *textwrap.wrap(f"{split['name']}: {split['path']} ({split['format']})", WIDTH)]
        for name, value in _facts(split):
            lines += textwrap.wrap(value, WIDTH, initial_indent=f"  {name:<24}", subsequent_indent=" " * 26)
        lines += ["", "  words per caption"]
        lines += [f"  {words:>7} {'█' * round(BAR * share):<{BAR}} {count:,}" for words, count, share in _bars(split)]
        lines += ["", *("  " + " ".join(f"{cell:>14}" for cell in row) for row in _vocabulary_table(split))]
    notes = _finding_lines([f for f in report["findings"] if not f.serious], "")
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _no_problem(report: Report) -> str:
    read = any("sizes" in split for split in report["splits"])
    return "no problem found" if read else "no problem found in the captions; the images were not read"


def _finding_lines(findings: Sequence[Finding], mark: str) -> list[str]:
    lines = []
    for finding in findings:
        lines += textwrap.wrap(f"{mark}{finding.heading}: {len(finding.lines):,}", WIDTH, subsequent_indent="  ")
        for line in finding.lines[:TERMINAL_LINES]:
            lines += textwrap.wrap(printable(line), WIDTH, initial_indent="    ", subsequent_indent="      ")
        if len(finding.lines) > TERMINAL_LINES:
            lines.append(f"    … and {len(finding.lines) - TERMINAL_LINES:,} more (--json or --report)")
    return lines


def _facts(split: Report) -> list[tuple[str, str]]:
    """Name and value of the plain facts of a split."""
    words = split["caption_words"]
    each = ", ".join(f"{count:,} × {n}" for n, count in split["captions_per_image"].items())
    found = [
        ("images", f"{split['images']:,}"),
        ("captions", f"{split['captions']:,}; captions per image: {each}"),
        ("words per caption", f"{words['mean']:.1f} on average; {_quantiles(words['quantiles'])}"),
        ("tokens", f"{split['tokens']:,}; commonest: {', '.join(word for word, _ in split['commonest'])}"),
    ]
    if not split["first"]:
        also = split["captions_also_in_first"]
        found.append(
            ("also in the first split", f"{counted(also, 'caption')} ({also / split['captions']:.1%}), word for word")
        )
    if split.get("sizes"):
        sizes = split["sizes"]
        found += [(f"{side} in pixels", _quantiles(sizes[side])) for side in ("width", "height")]
        found.append(("commonest sizes", ", ".join(f"{count:,} of {w} × {h}" for w, h, count in sizes["commonest"])))
    return found


def _quantiles(values: Mapping[str, float]) -> str:
    names = {0.0: "min", 0.5: "median", 1.0: "max"}
    return ", ".join(f"{names.get(q, f'{q:.0%}')} {values[str(q)]:g}" for q in QUANTILES)


def _bars(split: Report) -> list[tuple[str, int, float]]:
    """At most MAX_BARS bars of equal width: the caption lengths, how many captions have them, and that ÷ the highest.

    {3: 8, 5: 2} → ("3", 8, 1.0), ("4", 0, 0.0), ("5", 2, 0.25); lengths 1 to 30 → ("1–2", …), ("3–4", …) and so on.
    """
    histogram = split["caption_words"]["histogram"]
    low, high = min(histogram), max(histogram)
    step = -(-(high - low + 1) // MAX_BARS)
    bars = [
        (f"{n}–{n + step - 1}" if step > 1 else str(n), sum(histogram.get(i, 0) for i in range(n, n + step)))
        for n in range(low, high + 1, step)
    ]
    highest = max(count for _, count in bars)
    return [(words, count, count / highest) for words, count in bars]


def _vocabulary_table(split: Report) -> list[list[str]]:
    """Head and rows; the last column is only in the splits after the first."""
    table = [["min_count", "words", "coverage", "by first split"]]
    for row in split["vocabulary"]:
        covered = (f"{row[key]:.2%}" for key in ("coverage", "coverage_by_first"))
        table.append([str(row["min_count"]), f"{row['words']:,}", *covered])
    return [row[:3] for row in table] if split["first"] else table


def as_html(report: Report, command_line: Sequence[str] = ("captioner",), read_images: bool = True) -> str:
    """The report as a page that needs no other file and no network; it states where a long list is shortened.

    The images shown are read again, each once, unless not `read_images`.
    """
    folders = {os.path.dirname(split["path"]) for split in report["splits"]} | {
        os.fspath(image.path).removesuffix(image.name) for _, _, images in report["shown"] for image in images
    }
    splits = [
        {
            **split,
            "path": short_path(split["path"]),
            "facts": _facts(split),
            "bars": _bars(split),
            "table": _vocabulary_table(split),
        }
        for split in report["splits"]
    ]
    no_problem = _no_problem(report).capitalize()
    values = {"splits": splits, "shown": report["shown"], "no_problem": no_problem, "origin": origin(command_line)}
    values |= {"thumbnail": functools.cache(_thumbnail), "read_images": read_images}
    values["findings"] = [
        replace(finding, lines=[without_folders(line, folders) for line in finding.lines])
        for finding in report["findings"]
    ]
    return render("reports/dataset_report.html", **values)


def _thumbnail(path: Any) -> dict[str, Any] | None:
    """The attributes of an img element; None for an image that cannot be read, which is among the findings."""
    try:
        small = open_image(path, size_hint=THUMBNAIL_SIDE)
    except ImageError:
        return None
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return {"src": jpeg_uri(small, QUALITY), "width": small.width, "height": small.height}
