"""A made-up data set: images of coloured shapes with five true captions each, in COCO's layout.

Small enough to train on in minutes, and every caption can be checked against the :class:`Scene` it was written from.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import UserError
from captioner.files import atomic_folder, write_json

if TYPE_CHECKING:
    from PIL import Image

IMAGES, VAL, SIZE = (
    2000,
    200,
    96,
)  # the defaults of `captioner shapes`: images to train on, held-out ones, pixels a side

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
RELATIONS = {"above": "below", "to the left of": "to the right of"}  # the first shape to the second, and back
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # of a moving shape, (x, y)
FRAMES, STEP = 8, (0.08, 0.12)  # of a clip; what a shape moves from frame to frame, as a share of the side
SINGLE = 0.2  # share of the images with one shape
HELD_OUT = 0.15  # share of the possible contents that only val may show

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
PLAIN = {word: word for word in (*RADIUS, *RELATIONS, *RELATIONS.values())}
OTHER = {
    "small": "little",
    "large": "big",
    "above": "over",
    "below": "under",
    "to the left of": "left of",
    "to the right of": "right of",
}


@dataclass(frozen=True)
class Shape:
    """One shape; ``size`` is a key of ``RADIUS``, ``color`` of ``COLORS``, ``kind`` one of ``KINDS``."""

    size: str
    color: str
    kind: str


@dataclass(frozen=True)
class Scene:
    """What an image shows: one shape and no relation, or the upper (left) one, the lower (right) one and a relation.

    ``relation`` is a key of ``RELATIONS``, ``background`` one of ``BACKGROUNDS``; the two shapes differ in colour.
    """

    shapes: tuple[Shape, ...]
    relation: str | None
    background: str


@dataclass(frozen=True)
class Move:
    """What a clip shows: a shape that moves in one of ``DIRECTIONS``, over one of ``BACKGROUNDS``."""

    shape: Shape
    direction: str
    background: str


def contents(held_out: bool, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Every scene with one shape, and every scene with two, of the part that is held out for val or of the other."""
    shapes = [Shape(size, color, kind) for size in RADIUS for color in COLORS for kind in KINDS]
    single = [Scene((shape,), None, background) for shape in shapes for background in BACKGROUNDS]
    pairs = [
        Scene((first, second), relation, background)
        for first in shapes
        for second in shapes
        if first.color != second.color
        for relation in RELATIONS
        for background in BACKGROUNDS
    ]
    parts = []
    for scenes in (single, pairs):
        random.Random(f"{seed} contents").shuffle(scenes)
        cut = round(HELD_OUT * len(scenes))
        parts.append(scenes[:cut] if held_out else scenes[cut:])
    return parts[0], parts[1]


def moves(held_out: bool, seed: int) -> list[Move]:
    """Every move of the part that is held out for val, or of the other.

    A shape on a background is held out or not in all four directions, so that no look tells which ones were seen.
    """
    looks = [
        (Shape(size, color, kind), background)
        for size in RADIUS
        for color in COLORS
        for kind in KINDS
        for background in BACKGROUNDS
    ]
    random.Random(f"{seed} moves").shuffle(looks)
    cut = round(HELD_OUT * len(looks))
    chosen = looks[:cut] if held_out else looks[cut:]
    return [Move(shape, direction, background) for shape, background in chosen for direction in DIRECTIONS]


def captions(scene: Scene | Move, rng: random.Random) -> list[str]:
    """Five different captions, all true of the scene: always the plainest one, and four paraphrases (by chance).

    >>> scene = Scene((Shape("small", "red", "circle"), Shape("large", "blue", "square")), "above", "light")
    >>> captions(scene, random.Random(0))[0]
    'a small red circle above a large blue square'
    """
    family = []
    if isinstance(scene, Move):
        words = {**asdict(scene.shape), "direction": scene.direction}
        return [text.format(**words).replace("a orange", "an orange") for text in MOVE_TEMPLATES]
    for words in (PLAIN, OTHER):
        names = [f"{words[shape.size]} {shape.color} {shape.kind}" for shape in scene.shapes]
        if scene.relation is None:
            family += [text.format(first=names[0], background=scene.background) for text in SINGLE_TEMPLATES]
        else:
            parts = {"relation": words[scene.relation], "inverse": words[RELATIONS[scene.relation]]}
            family += [text.format(first=names[0], second=names[1], **parts) for text in PAIR_TEMPLATES]
    return [family[0], *rng.sample(family[1:], 4)]


def draw(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """The scene as an RGB image of size × size pixels; ``rng`` moves the shapes a little and never changes the scene.

    Drawn at four times the size and averaged down, so that edges are smooth.
    """
    from PIL import Image, ImageDraw

    side = 4 * size
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    for index, shape in enumerate(scene.shapes):
        if scene.relation is None:
            x, y = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)
        else:
            along, across = (0.25, 0.75)[index] + rng.uniform(-0.015, 0.015), rng.uniform(0.4, 0.6)
            x, y = (across, along) if scene.relation == "above" else (along, across)
        _paint(pen, shape, x * side, y * side, side)
    return image.reduce(4)


def _paint(pen: Any, shape: Shape, x: float, y: float, side: int) -> None:
    r, color = RADIUS[shape.size] * side, COLORS[shape.color]
    if shape.kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif shape.kind == "square":
        r *= 0.9  # about the area of the circle
        pen.rectangle((x - r, y - r, x + r, y + r), fill=color)
    else:
        pen.polygon([(x, y - r), (x - 1.05 * r, y + r), (x + 1.05 * r, y + r)], fill=color)


def track(move: Move, frames: int, rng: random.Random) -> list[tuple[float, float]]:
    """Where the shape is in each frame, x and y as shares of the side from 0 to 1.

    It begins anywhere and comes back in at the edge opposite to where it leaves, so that in every single frame it may
    be anywhere, all places alike, whichever way it moves: only the order of the frames tells the direction.
    """
    (x, y), step, (right, down) = (rng.random(), rng.random()), rng.uniform(*STEP), DIRECTIONS[move.direction]
    return [((x + i * step * right) % 1, (y + i * step * down) % 1) for i in range(frames)]


def draw_clip(move: Move, size: int, frames: int, rng: random.Random) -> list[Image.Image]:
    """The move as RGB images of size × size pixels; a shape over an edge is seen in part at both."""
    from PIL import Image, ImageDraw

    side, clip = 4 * size, []
    for x, y in track(move, frames, rng):
        image = Image.new("RGB", (side, side), BACKGROUNDS[move.background])
        pen = ImageDraw.Draw(image)
        for across in (x - 1, x, x + 1):
            for along in (y - 1, y, y + 1):
                _paint(pen, move.shape, across * side, along * side, side)
        clip.append(image.reduce(4))
    return clip


def make_shapes(
    out: Path, images: int = IMAGES, val: int = VAL, size: int = SIZE, seed: int = 0, frames: int = 0
) -> None:
    """Write ``train/``, ``val/``, ``captions_train.json`` and ``captions_val.json`` into the folder ``out``.

    Held out: the content of an image is its shapes (size, colour, kind), their relation and the background; the
    contents are split by chance before anything is drawn, so no val image shows the content of a training image,
    while every single word occurs in both. Within a split a content may come again, at another place.

    With ``frames`` the images are clips, animated GIFs of so many; see :func:`moves`.

    The same options give the same bytes with one version of Pillow. The set is made beside ``out`` and renamed when
    whole. A set already there with the same options is left as it is; anything else there is a ``UserError``.
    """
    out = Path(os.path.realpath(out))
    options = {"images": images, "val": val, "size": size, "seed": seed}
    if frames:
        options["frames"] = frames
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = _options_of(out)
        if found == options:
            print(f"{out} is there already, with the same options: left as it is")
            return
        what = "something else" if found is None else f"a shapes set with other options ({found})"
        raise UserError(f"--output {out} holds {what}: name another folder or delete that one first")
    with atomic_folder(out) as folder:
        _write_split(folder, "train", range(1, images + 1), options)
        _write_split(folder, "val", range(images + 1, images + val + 1), options)


def _options_of(out: Path) -> dict[str, int] | None:
    """The options that the shapes set in ``out`` was made with; None if it is none."""
    try:
        return json.loads((out / "captions_val.json").read_text(encoding="utf-8"))["info"]["shapes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_split(folder: Path, split: str, ids: range, options: dict[str, int]) -> None:
    """Draw the images with these ids into ``folder/split`` and write ``captions_SPLIT.json``."""
    size, frames = options["size"], options.get("frames", 0)
    rng = random.Random(f"{options['seed']} {split}")
    single, pairs = contents(split == "val", options["seed"])
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
