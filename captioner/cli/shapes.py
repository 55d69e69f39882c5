"""Draw the sample data of the demo: images of coloured shapes with five true captions each, as COCO captions.

Example: captioner shapes --output data/shapes --count 2000
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from captioner.datasets.synthetic import make_shapes

NEEDS = {"frames": "--moving"}


def configure(parser: Any) -> None:
    """Declare the options: the parameters of :func:`make_shapes`."""
    parser.add_function_arguments(make_shapes, as_group=False)


def run(options: Any) -> None:
    """Draw the data set and print the command that trains on it."""
    make_shapes(**options.as_dict())
    what, config = ("clips", "moving") if options.moving else ("images", "shapes")
    print(f"{options.output}: {options.count} + {options.val_count} {what}, 5 captions each")
    folder = Path(options.output)
    words = ["captioner", "train", "--config", config]
    if folder != Path("data", config):  # the folder of the config
        for split in ("train", "val"):
            captions = folder / f"captions_{split}.json"
            words += [f"--data.{split}", str(captions), f"--data.{split}_images", str(folder / split)]
    print("now:", shlex.join(words))
