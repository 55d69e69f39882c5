"""Look at a data set: its captions, words and images, what is broken, what comes twice and which splits overlap.

Example: captioner data inspect captions_train.json --images train --val captions_val.json --val_images val

Problems are warnings at the top; the exit code is 0 unless the data cannot be read at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("path", type=str, help="the training split, in any layout of docs/data.md")
    parser.add_argument("--images", type=Path, help="folder that their file names are relative to")
    parser.add_argument("--val", type=str, help="a second split")
    parser.add_argument("--val_images", type=Path, help="folder that their file names are relative to")
    parser.add_argument("--test", type=str, help="a third split")
    parser.add_argument("--test_images", type=Path, help="folder that their file names are relative to")
    for name in ("split", "val_split", "test_split"):
        parser.add_argument(f"--{name}", type=str, help="which one of it, where the layout has several")
    for name in ("list", "val_list", "test_list"):
        parser.add_argument(f"--{name}", type=str, help="file with an image's name in each line: only these")
    parser.add_argument("--columns", type=str, help="IMAGE,CAPTION: the columns of a table")
    parser.add_argument(
        "--read_images", type=bool, default=True, help="decode the images; without, only the captions are inspected"
    )
    parser.add_argument("--distance", type=int, default=4, help="bits of 64 in which hashes of one image may differ")
    parser.add_argument("--workers", type=int, default=-1, help="processes that decode images; -1: one a core, up to 8")
    parser.add_argument("--json", type=Path, help="also write everything that was found to this file")
    parser.add_argument("--report", type=Path, help="also write a page with the images that come twice to this file")


def run(options: Any) -> None:
    """Look and tell; see the module's docstring."""
    from captioner.datasets.inspect import inspect, read_split
    from captioner.errors import UserError
    from captioner.files import write_json, write_text
    from captioner.reports.dataset_report import as_html, as_json, as_text

    if not 0 <= options.distance <= 16:
        raise UserError(f"--distance is {options.distance}: expected 0 to 16")
    named = [("train", options.path, options.images, options.split, options.list)]
    for name in ("val", "test"):
        path, *others = [options[key] for key in (name, f"{name}_images", f"{name}_split", f"{name}_list")]
        if path:
            named.append((name, path, *others))
        elif any(others):
            raise UserError(f"--{name}_images, _split and _list need --{name}: name the annotations, too")
    splits = [
        read_split(name, path, images, split or name, options.columns, listed, options.read_images)
        for name, path, images, split, listed in named
    ]
    report = inspect(splits, options.read_images, options.workers, options.distance)
    print(as_text(report))
    if options.json:
        write_json(options.json, as_json(report))
    if options.report:
        write_text(options.report, as_html(report))
