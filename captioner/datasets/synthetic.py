"""The shapes data set: drawn images of coloured shapes, or clips of moving ones, with five true captions each.

Small enough to train on in minutes, and every caption can be checked against its :class:`Scene`.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.errors import UserError
from captioner.files import atomic_folder, write_json

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("circle", "square", "triangle")
COLORS = {
    "red": (220, 20, 30),
    "green": (20, 160, 50),
    "blue": (30, 70, 230),
    "yellow": (255, 215, 0),
    "purple": (140, 30, 170),
    "orange": (255, 125, 0),
}
RADIUS = {"small": 0.105, "large": 0.21}  # half the height of a shape, as a share of the side
BACKGROUNDS = {"light": (235, 235, 235), "dark": (25, 25, 25)}
RELATIONS = {"above": "below", "to the left of": "to the right of"}  # of the first shape to the second: the inverse
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y) of a moving shape
STEP = (0.08, 0.12)  # range of a shape's step from frame to frame, as a share of the side
SINGLE = 0.2  # share of the images with one shape
HELD_OUT = 0.15  # share of the scenes that occur in val only

PAIR_TEMPLATES = (
    "a {first} {relation} a {second}",
    "a {second} {inverse} a {first}",
    "there is a {first} {relation} a {second}",
    "there is a {second} {inverse} a {first}",
    "a {first} is {relation} a {second}",
    "a {second} is {inverse} a {first}",
)
SINGLE_TEMPLATES = (
    "a {first} on a {background} background",
    "there is a {first} on a {background} background",
    "a single {first} on a {background} background",
    "a picture of a {first}",
    "there is a {first}",
)
MOVE_TEMPLATES = (
    "the {color} {kind} moves {direction}",
    "a {color} {kind} moves {direction}",
    "the {color} {kind} is moving {direction}",
    "a {color} {kind} goes {direction}",
    "there is a {color} {kind} that moves {direction}",
)
SYNONYMS = {
    "small": "little",
    "large": "big",
    "above": "over",
    "below": "under",
    "to the left of": "left of",
    "to the right of": "right of",
}


class Shape(NamedTuple):
    """One shape: a key of RADIUS, a key of COLORS, one of KINDS."""

    size: str
    color: str
    kind: str


class Scene(NamedTuple):
    """The content of an image: one shape, or two of different colours and their relation (a key of RELATIONS)."""

    shapes: tuple[Shape, ...]  # the upper or left one comes first
    relation: str | None
    background: str


class Move(NamedTuple):
    """The content of a clip: a shape that moves in one of DIRECTIONS over one of BACKGROUNDS."""

    shape: Shape
    direction: str
    background: str


SHAPES = [Shape(*words) for words in product(RADIUS, COLORS, KINDS)]


def _part(items: list[Any], held_out: bool, seed: str) -> list[Any]:
    """A random HELD_OUT share of the items, or the others."""
    random.Random(seed).shuffle(items)
    cut = round(HELD_OUT * len(items))
    return items[:cut] if held_out else items[cut:]


def scenes(held_out: bool, seed: int) -> tuple[list[Scene], list[Scene]]:
    """All scenes with one shape and all with two, of the part held out for val or of the training part."""
    single = [Scene((shape,), None, background) for shape, background in product(SHAPES, BACKGROUNDS)]
    pairs = [
        Scene((first, second), relation, background)
        for first, second, relation, background in product(SHAPES, SHAPES, RELATIONS, BACKGROUNDS)
        if first.color != second.color
    ]
    return _part(single, held_out, f"{seed} contents"), _part(pairs, held_out, f"{seed} contents")


def moves(held_out: bool, seed: int) -> list[Move]:
    """All moves of the part held out for val or of the training part; the split is by shape and background."""
    looks = _part(list(product(SHAPES, BACKGROUNDS)), held_out, f"{seed} moves")
    return [Move(shape, direction, background) for shape, background in looks for direction in DIRECTIONS]


def captions(scene: Scene | Move, rng: random.Random) -> list[str]:
    """Five different captions, all true of the scene: the plainest first, then four random paraphrases.

    >>> scene = Scene((Shape("small", "red", "circle"), Shape("large", "blue", "square")), "above", "light")
    >>> captions(scene, random.Random(0))[0]
    'a small red circle above a large blue square'
    """
    if isinstance(scene, Move):
        words = {**scene.shape._asdict(), "direction": scene.direction}
        return [text.format(**words).replace("a orange", "an orange") for text in MOVE_TEMPLATES]
    texts: list[str] = []
    for words in ({word: word for word in SYNONYMS}, SYNONYMS):
        names = [f"{words[shape.size]} {shape.color} {shape.kind}" for shape in scene.shapes]
        if scene.relation is None:
            texts += [text.format(first=names[0], background=scene.background) for text in SINGLE_TEMPLATES]
        else:
            parts = {"relation": words[scene.relation], "inverse": words[RELATIONS[scene.relation]]}
            texts += [text.format(first=names[0], second=names[1], **parts) for text in PAIR_TEMPLATES]
    return [texts[0], *rng.sample(texts[1:], 4)]


def draw(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """The scene as an RGB image of size × size pixels; `rng` places the shapes so that the relation holds."""
    placed = []
    for index, shape in enumerate(scene.shapes):
        if scene.relation is None:
            x, y = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)
        else:
            along, across = (0.25, 0.75)[index] + rng.uniform(-0.015, 0.015), rng.uniform(0.4, 0.6)
            x, y = (across, along) if scene.relation == "above" else (along, across)
        placed.append((shape, x, y))
    return _render(placed, scene.background, size)


def _render(placed: list[tuple[Shape, float, float]], background: str, size: int) -> Image.Image:
    """Shapes at (x, y), as shares of the side; drawn at four times the size and averaged, for smooth edges."""
    from PIL import Image, ImageDraw

    side = 4 * size
    image = Image.new("RGB", (side, side), BACKGROUNDS[background])
    pen = ImageDraw.Draw(image)
    for shape, x, y in placed:
        x, y, r, color = x * side, y * side, RADIUS[shape.size] * side, COLORS[shape.color]
        if shape.kind == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
        elif shape.kind == "square":
            r *= 0.9  # about the area of the circle
            pen.rectangle((x - r, y - r, x + r, y + r), fill=color)
        else:
            pen.polygon([(x, y - r), (x - 1.05 * r, y + r), (x + 1.05 * r, y + r)], fill=color)
    return image.reduce(4)


def trajectory(move: Move, frames: int, rng: random.Random) -> list[tuple[float, float]]:
    """The position (x, y) of the shape in each frame, as shares of the side from 0 to 1.

    It starts anywhere and re-enters at the opposite edge. In each frame all positions are then equally likely:
    only the order of the frames determines the direction.
    """
    (x, y), step, (right, down) = (rng.random(), rng.random()), rng.uniform(*STEP), DIRECTIONS[move.direction]
    return [((x + i * step * right) % 1, (y + i * step * down) % 1) for i in range(frames)]


def draw_clip(move: Move, size: int, frames: int, rng: random.Random) -> list[Image.Image]:
    """The move as RGB images of size × size pixels; a shape on an edge is partly visible at both edges."""
    clip = []
    for x, y in trajectory(move, frames, rng):
        copies = [(move.shape, x + right, y + down) for right in (-1, 0, 1) for down in (-1, 0, 1)]
        clip.append(_render(copies, move.background, size))
    return clip


def make_shapes(
    output: str | Path = "data/shapes",
    count: int = 2000,
    val_count: int = 200,
    size: int = 96,
    seed: int = 0,
    moving: bool = False,
    frames: int = 8,
) -> None:
    """Write ``train/``, ``val/``, ``captions_train.json`` and ``captions_val.json`` into a folder.

    The scenes are split at random before anything is drawn, so no val image has the scene of a training image, while
    every word occurs in both. With one version of Pillow the same options give the same bytes.

    Args:
        output: folder of the data set; unchanged if it has a data set with the same options
        count: number of training images
        val_count: number of validation images; none has the scene of a training image
        size: width and height of an image in pixels
        seed: another seed draws other images
        moving: draw clips (animated GIFs) in which one shape moves left, right, up or down
        frames: frames of a clip
    """
    limits = {"count": (1, 1_000_000), "val_count": (1, 1_000_000), "size": (32, 1024), "frames": (2, 256)}
    given = {"count": count, "val_count": val_count, "size": size, "frames": frames}
    for option, (least, most) in limits.items():
        if not least <= given[option] <= most:
            raise UserError(f"--{option} is {given[option]}: expected {least} to {most}")
    options = {"images": count, "val": val_count, "size": size, "seed": seed, **({"frames": frames} if moving else {})}
    output, found = Path(output), _read_options(Path(output))
    if found == options:
        print(f"{output} exists already with the same options: left as it is")
        return
    if found:
        raise UserError(
            f"--output {output} has other options ({_show_options(found)}): name another or delete that one first"
        )
    with atomic_folder(output) as folder:
        _write_split(folder, "train", range(1, count + 1), options)
        _write_split(folder, "val", range(count + 1, count + val_count + 1), options)


def _show_options(options: dict[str, int]) -> str:
    """``--count 10 --val_count 2 --size 96 --seed 0``, with ``--moving --frames 8`` of clips."""
    names = {
        "images": "--count",
        "val": "--val_count",
        "size": "--size",
        "seed": "--seed",
        "frames": "--moving --frames",
    }
    return " ".join(f"{option} {options[name]}" for name, option in names.items() if name in options)


def _read_options(folder: Path) -> dict[str, int] | None:
    """The options that the shapes set in `folder` was made with; None if there is no such set."""
    try:
        return json.loads((folder / "captions_val.json").read_text(encoding="utf-8"))["info"]["shapes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_split(folder: Path, split: str, ids: range, options: dict[str, int]) -> None:
    """Draw the images with these ids into `folder`/`split` and write their captions."""
    size, frames = options["size"], options.get("frames")
    rng = random.Random(f"{options['seed']} {split}")
    single, pairs = scenes(split == "val", options["seed"])
    moving = moves(split == "val", options["seed"])
    rows: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    (folder / split).mkdir()
    for image_id in ids:
        scene: Scene | Move
        if frames:
            scene, name = rng.choice(moving), f"{image_id:06d}.gif"
            first, *rest = (image.quantize() for image in draw_clip(scene, size, frames, rng))
            first.save(folder / split / name, save_all=True, append_images=rest, duration=150, loop=0)
        else:
            scene, name = rng.choice(single if rng.random() < SINGLE else pairs), f"{image_id:06d}.png"
            draw(scene, size, rng).save(folder / split / name, compress_level=6)
        rows.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for number, caption in enumerate(captions(scene, rng)):
            annotations.append({"id": 5 * image_id - 4 + number, "image_id": image_id, "caption": caption})
    info = {"description": f"captioner shapes, {split} split", "shapes": options}
    data = {"info": info, "licenses": [], "images": rows, "annotations": annotations}
    write_json(folder / f"captions_{split}.json", data)
