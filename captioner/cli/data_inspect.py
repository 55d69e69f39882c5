"""Check a data set: its captions, words and images, broken files, duplicates, and splits that overlap.

Example: captioner data inspect captions_train.json --images train --val captions_val.json --val_images val

Problems are listed as warnings at the top; the exit code is 0 unless the data cannot be read at all.
"""

from __future__ import annotations

from typing import Any

from captioner.cli.options import add_split_arguments
from captioner.errors import UserError

READS = "path images list val val_images val_list test test_images test_list"
WRITES = "json report"
NEEDS = {f"{name}_images {name}_split {name}_list": f"--{name}" for name in ("val", "test")}
NEEDS |= {"samples seed": "--report", "distance": "--read_images"}


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("path", type=str, metavar="CAPTIONS", help="the training split, in any format of docs/data.md")
    add_split_arguments(parser, None)
    for name, about in (("val", "a second split"), ("test", "a third split")):
        parser.add_argument(f"--{name}", type=str, help=about)
        add_split_arguments(parser, None, f"{name}_")
    parser.add_argument("--read_images", type=bool, default=True, help="also decode the images")
    parser.add_argument("--distance", type=int, default=4, help="bits, of 64, in which duplicates' hashes may differ")
    about = "processes that decode images (-1 = one per core, up to 8)"
    parser.add_argument("--workers", type=int, default=-1, help=about)
    parser.add_argument("--json", type=str, help="also write every finding to this JSON file")
    about = "also write an HTML page with images: samples, extremes and duplicates"
    parser.add_argument("--report", type=str, help=about)
    parser.add_argument("--samples", type=int, default=24, help="random images of each split on the page, up to 200")
    parser.add_argument("--seed", type=int, default=0, help="of the random images")


def run(options: Any) -> None:
    """Inspect and print."""
    if not 0 <= options.distance <= 16:
        raise UserError(f"--distance is {options.distance}: expected 0 to 16")
    if not 0 <= options.samples <= 200:
        raise UserError(f"--samples is {options.samples}: expected 0 to 200")
    sources = [("train", options.path, options.images, options.split, options.list)]
    for name in ("val", "test"):
        path, *others = [options[key] for key in (name, f"{name}_images", f"{name}_split", f"{name}_list")]
        if path:
            sources.append((name, path, *others))
    from captioner.datasets.inspect import inspect, read_split
    from captioner.files import write_json, write_text
    from captioner.reports.dataset_report import as_html, as_json, as_text

    splits = [
        read_split(name, path, images, split, options.columns, listed, options.read_images)
        for name, path, images, split, listed in sources
    ]
    more = (options.workers, options.distance, options.samples, options.seed)
    report = inspect(splits, options.read_images, *more)
    print(as_text(report))
    if options.json:
        write_json(options.json, as_json(report))
    if options.report:
        write_text(options.report, as_html(report, options.command_line, options.read_images))
