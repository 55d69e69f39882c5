"""Draw the sample data of the demo: images of coloured shapes with five true captions each, as COCO captions.

Example: captioner shapes --output data/shapes --count 2000
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioner.datasets.synthetic import FRAMES, IMAGES, SIZE, VAL, make_shapes
from captioner.errors import UserError


def shapes(
    output: Path = Path("data/shapes"),
    count: int = IMAGES,
    val_count: int = VAL,
    size: int = SIZE,
    seed: int = 0,
    moving: bool = False,
    frames: int = FRAMES,
) -> None:
    """Draw the data set and print the command that trains on it.

    Args:
        output: folder of the data set; left as it is if it has a data set with the same options
        count: number of training images
        val_count: number of validation images; none shows what a training image shows
        size: width and height of an image in pixels
        seed: another seed draws other images
        moving: draw clips in which one shape moves left, right, up or down
        frames: frames of a clip
    """
    for option, value, least, most in (
        ("--count", count, 1, 1_000_000),
        ("--val_count", val_count, 1, 1_000_000),
        ("--size", size, 32, 1024),
        ("--frames", frames, 2, 256),
    ):
        if not least <= value <= most:
            raise UserError(f"{option} is {value}: expected {least} to {most}")
    make_shapes(output, count, val_count, size, seed, frames if moving else 0)
    what, config = ("clips", "moving") if moving else ("images", "shapes")
    print(
        f"{output}: {count} + {val_count} {what}, 5 captions each; now: captioner train --config configs/{config}.yaml"
    )


def configure(parser: Any) -> None:
    """Declare the options: the parameters of :func:`shapes`."""
    parser.add_function_arguments(shapes, as_group=False)


def run(options: Any) -> None:
    """Draw."""
    shapes(**options.as_dict())
