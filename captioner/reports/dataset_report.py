"""What was found in a data set, as text for a terminal and as one HTML page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captioner.data.images import ImageError, open_image
from captioner.datasets.inspect import QUANTILES, Finding
from captioner.errors import printable
from captioner.reports.page import escape, jpeg_uri

TEMPLATE = Path(__file__).with_suffix(".html")
WIDTH, BAR = 80, 40  # columns of the terminal, and of the longest bar
FEW, MANY = 5, 100  # lines of a finding in the terminal, and on the page
GROUPS, EACH, SIDE = 50, 6, 160  # groups of images shown on the page, images of a group, pixels of their long side


def as_json(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain values: everything, nothing shortened."""
    findings = []
    for finding in report["findings"]:
        found = asdict(finding)
        groups = [[{"split": s, "file": f} for s, f, _ in group] for group in finding.images or ()]
        findings.append({**found, "count": len(finding.lines), "images": groups})
    return {"splits": report["splits"], "findings": findings}


def as_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal of WIDTH columns: warnings first, notes last."""
    lines = _lines([f for f in report["findings"] if f.serious], "! ") or [_good(report)]
    for split in report["splits"]:
        lines += ["", *textwrap.wrap(f"{split['name']}: {split['path']} ({split['format']})", WIDTH)]
        lines += [line for name, value in facts(split) for line in _fact(name, value)]
        lines += ["", "  words a caption"]
        bars = _bins(split["caption_words"]["histogram"])
        highest = max(count for _, count in bars)
        lines += [f"  {name:>7} {'█' * round(BAR * count / highest):<{BAR}} {count:,}" for name, count in bars]
        lines += [
            "",
            f"  {'min_count':>9} {'words':>9} {'of the tokens':>14}" + _others(split, f" {'by the first':>13}"),
        ]
        for row in split["vocabulary"]:
            first = _others(split, f" {row['coverage_by_first']:>13.2%}")
            lines.append(f"  {row['min_count']:>9} {row['words']:>9,} {row['coverage']:>14.2%}{first}")
    notes = _lines([f for f in report["findings"] if not f.serious], "")
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _good(report: Mapping[str, Any]) -> str:
    looked = any("sizes" in split for split in report["splits"])
    return "no problem found" if looked else "no problem found in the captions; the images were not looked at"


def _others(split: Mapping[str, Any], cell: str) -> str:
    """A cell that only a split after the first has."""
    return "" if split["first"] else cell


def _fact(name: str, value: str) -> list[str]:
    return textwrap.wrap(value, WIDTH, initial_indent=f"  {name:<22}", subsequent_indent=" " * 24)


def _lines(findings: Sequence[Finding], mark: str) -> list[str]:
    lines = []
    for finding in findings:
        lines += textwrap.wrap(f"{mark}{finding.heading}: {len(finding.lines):,}", WIDTH, subsequent_indent="  ")
        for line in finding.lines[:FEW]:
            lines += textwrap.wrap(printable(line), WIDTH, initial_indent="    ", subsequent_indent="      ")
        if len(finding.lines) > FEW:
            lines.append(f"    … and {len(finding.lines) - FEW:,} more (--json or --report)")
    return lines


def facts(split: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of the plain facts of a split."""
    words, quantiles = split["caption_words"], split["caption_words"]["quantiles"]
    each = ", ".join(f"{count:,} × {n}" for n, count in split["captions_per_image"].items())
    found = [
        ("images", f"{split['images']:,}"),
        ("captions", f"{split['captions']:,}; captions an image: {each}"),
        ("words a caption", f"{words['mean']:.1f} on average; {_quantiles(quantiles)}"),
        ("tokens", f"{split['tokens']:,}; commonest: {', '.join(word for word, _ in split['commonest'])}"),
    ]
    if not split["first"]:
        also = split["captions_also_in_first"]
        found.append(("also in the first", f"{also:,} captions ({also / split['captions']:.1%}), word for word"))
    if split.get("sizes"):
        sizes = split["sizes"]
        found += [(f"{side} in pixels", _quantiles(sizes[side])) for side in ("width", "height")]
        found.append(("commonest sizes", ", ".join(f"{count:,} of {w} × {h}" for w, h, count in sizes["commonest"])))
    return found


def _quantiles(values: Mapping[str, float]) -> str:
    names = {0.0: "least", 0.5: "median", 1.0: "most"}
    return ", ".join(f"{names.get(q, f'{q:.0%}')} {values[str(q)]:g}" for q in QUANTILES)


def _bins(histogram: Mapping[int, int], most: int = 15) -> list[tuple[str, int]]:
    """At most `most` bars of equal width: the lengths, and how many captions have them."""
    low, high = min(histogram), max(histogram)
    step = -(-(high - low + 1) // most)
    if step == 1:
        return [(str(n), histogram.get(n, 0)) for n in range(low, high + 1)]
    starts = range(low, high + 1, step)
    return [(f"{n}–{n + step - 1}", sum(histogram.get(i, 0) for i in range(n, n + step))) for n in starts]


def as_html(report: Mapping[str, Any]) -> str:
    """The report as a page that needs no other file and no network; long lists are cut, as the page says."""
    findings = "".join(map(_finding, report["findings"]))
    if not any(finding.serious for finding in report["findings"]):
        findings = f'<p class="good">{_good(report).capitalize()}.</p>\n{findings}'
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{splits}}", "".join(map(_split, report["splits"])))
    return page.replace("{{findings}}", findings)


def _split(split: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in facts(split))
    bars = _bins(split["caption_words"]["histogram"])
    highest = max(count for _, count in bars)
    chart = "".join(
        f'<tr><th scope="row">{name}</th><td><div class="bar" style="width: {100 * count / highest:.1f}%"></div></td>'
        f"<td>{count:,}</td></tr>\n"
        for name, count in bars
    )
    head = "<th>min_count</th><th>words</th><th>of the tokens</th>" + _others(
        split, "<th>by the first split's words</th>"
    )
    table = "".join(
        f"<tr><td>{row['min_count']}</td><td>{row['words']:,}</td><td>{row['coverage']:.2%}</td>"
        + _others(split, f"<td>{row['coverage_by_first']:.2%}</td>")
        + "</tr>\n"
        for row in split["vocabulary"]
    )
    return (
        f"<section>\n<h2>{escape(split['name'])}</h2>\n"
        f'<p class="faint">{escape(split["path"])} ({escape(split["format"])})</p>\n'
        f'<dl>\n{rows}</dl>\n<h3>Words a caption</h3>\n<table class="chart">\n{chart}</table>\n'
        f"<h3>Vocabulary</h3>\n<table>\n<tr>{head}</tr>\n{table}</table>\n</section>\n"
    )


def _finding(finding: Finding) -> str:
    kind = 'class="warning" open' if finding.serious else 'class="note"'
    opening = f"<details {kind}><summary>{escape(finding.heading)}: {len(finding.lines):,}</summary>\n"
    if finding.images is not None:
        shown, limit = "".join(map(_group, finding.images[:GROUPS])), GROUPS
    else:
        items = "".join(f"<li>{escape(line)}</li>\n" for line in finding.lines[:MANY])
        shown, limit = f"<ul>\n{items}</ul>\n", MANY
    more = len(finding.lines) - limit
    rest = f'<p class="faint">… and {more:,} more; --json has all.</p>\n' if more > 0 else ""
    return f"{opening}{shown}{rest}</details>\n"


def _group(group: Sequence[tuple[str, str, Any]]) -> str:
    """Images that are the same, side by side."""
    cells = []
    for split, file, path in group[:EACH]:
        name = escape(f"{split}/{file}")
        try:
            small = open_image(path, size_hint=SIDE)
            small.thumbnail((SIDE, SIDE))
            image = f'<img src="{jpeg_uri(small)}" width="{small.width}" height="{small.height}" alt="">'
        except ImageError:  # it could be read a moment ago
            image = ""
        cells.append(f"<figure>{image}<figcaption>{name}</figcaption></figure>")
    more = f'<p class="faint">and {len(group) - EACH:,} more</p>' if len(group) > EACH else ""
    return f'<div class="group">{"".join(cells)}{more}</div>\n'
