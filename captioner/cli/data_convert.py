"""Write a data set in another format: COCO JSON, or WebDataset shards. Images are copied byte for byte.

Example: captioner data convert captions_train.json --images train --to webdataset --output shards

Ids and captions stay the same. The folder is written whole or not at all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from captioner.cli.options import add_skip_argument, add_split_arguments, read_split
from captioner.errors import UserError, counted

READS = "path images list"
WRITES = "output"
NEEDS = {"shard_size": "--to webdataset", "image_files": "--to coco"}


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("path", type=str, metavar="CAPTIONS", help="captions, in any format of docs/data.md")
    add_split_arguments(parser, "train")
    add_skip_argument(parser)
    parser.add_argument("--to", type=Literal["coco", "webdataset"], required=True, help="the new format")
    parser.add_argument("--output", type=str, required=True, help="a new folder")
    parser.add_argument(
        "--image_files",
        type=Literal["refer", "copy", "link"],
        default="refer",
        help="coco: leave the images where they are, copy them, or link to them",
    )
    parser.add_argument("--shard_size", type=int, default=1000, help="webdataset: images in a shard")


def run(options: Any) -> None:
    """Convert."""
    from captioner.datasets.convert import drop_unreadable, to_coco, to_webdataset

    if options.shard_size < 1:
        raise UserError(f"--shard_size is {options.shard_size}: expected 1 or more")
    examples, skipped = read_split(options, options.path)
    if options.skip_bad_images:
        examples, unreadable = drop_unreadable(examples)
        skipped += unreadable
    if not examples:
        raise UserError(f"{options.path}: no image can be read, the first: {skipped[0]}")
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    out, captions = Path(options.output), sum(len(example.captions) for example in examples)
    counts = f"{counted(len(examples), 'image')}, {counted(captions, 'caption')}"
    if options.to == "coco":
        folder = to_coco(examples, out, _root(examples[0]), options.image_files)
        print(f"{out / 'captions.json'}: {counts}; the images are in {folder}")
    else:
        shards = to_webdataset(examples, out, options.shard_size)
        print(f"{options.output}: {counts} in {counted(shards, 'shard')}")


def _root(example: Any) -> Path:
    """The folder that the name of an example is relative to."""
    path = Path(example.path)
    return path.parents[len(Path(example.name).parts) - 1]
