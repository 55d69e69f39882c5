"""Write a data set in another layout: COCO's JSON, or WebDataset shards. Images are copied byte for byte.

Example: captioner data convert captions_train.json --images train --to webdataset --output shards

Ids and captions stay. The folder is made whole or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def configure(parser: Any) -> None:
    """Declare the options."""
    parser.add_argument("path", type=str, help="annotations, folder or shards, in any layout of docs/data.md")
    parser.add_argument(
        "--images", type=Path, help="folder that their file names are relative to, where the layout needs it"
    )
    parser.add_argument("--split", type=str, default="train", help="which one, where the layout has several")
    parser.add_argument("--list", type=str, help="file with an image's name in each line: only these")
    parser.add_argument("--columns", type=str, help="IMAGE,CAPTION: the columns of a table")
    parser.add_argument("--to", type=Literal["coco", "webdataset"], required=True, help="the new layout")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--image_files",
        type=Literal["refer", "copy", "link"],
        default="refer",
        help="of coco: leave the images where they are, copy them, or make links to them",
    )
    parser.add_argument("--shard_size", type=int, default=1000, help="images in a shard")
    parser.add_argument(
        "--skip_bad_images", type=bool, default=False, help="leave out what is bad, instead of stopping"
    )


def run(options: Any) -> None:
    """Convert; see the module's docstring."""
    import sys

    from captioner.data.annotations import read_examples
    from captioner.datasets.convert import drop_unreadable, to_coco, to_webdataset
    from captioner.errors import UserError

    if options.shard_size < 1:
        raise UserError(f"--shard_size is {options.shard_size}: expected 1 or more")
    how = {
        "columns": options.columns,
        "listed": options.list,
        "skip_bad": options.skip_bad_images,
        "option": "--skip_bad_images",
    }
    examples, skipped = read_examples(options.path, options.images, options.split, **how)
    if options.skip_bad_images:
        examples, bad = drop_unreadable(examples)
        skipped += bad
    if not examples:
        raise UserError(f"{options.path}: no image in it can be read, the first: {skipped[0]}")
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    captions = sum(len(example.captions) for example in examples)
    said = f"{len(examples):,} images, {captions:,} captions"
    if options.to == "coco":
        folder = to_coco(examples, options.output, _root(examples[0]), options.image_files)
        print(f"{options.output / 'captions.json'}: {said}; the images are in {folder}")
    else:
        count = to_webdataset(examples, options.output, options.shard_size)
        print(f"{options.output}: {said} in {count:,} shard{'s' * (count > 1)}")


def _root(example: Any) -> Path:
    """The folder that the name of an example is relative to."""
    path = Path(example.path)
    return path.parents[len(Path(example.name).parts) - 1]
