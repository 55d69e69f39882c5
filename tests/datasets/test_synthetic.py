"""The shapes set: the same bytes for the same seed, valid COCO files, and every caption true of its image."""

import hashlib
import json
import random
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from captioner.datasets.synthetic import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    HELD_OUT,
    RELATIONS,
    STEP,
    SYNONYMS,
    Move,
    Scene,
    Shape,
    captions,
    draw,
    make_shapes,
    moves,
    scenes,
    trajectory,
)
from captioner.errors import UserError

INVERSE = {**RELATIONS, **{back: there for there, back in RELATIONS.items()}}
NAME = r"a (?:single )?(?P<size{0}>\w+) (?P<color{0}>\w+) (?P<kind{0}>circle|square|triangle)"
CAPTION = re.compile(
    r"(?:there is |a picture of )?"
    + NAME.format(1)
    + r"(?: on a (?P<background>\w+) background|(?: is)? (?P<relation>\D+?) "
    + NAME.format(2)
    + ")?"
)


def parsed(caption: str) -> Scene:
    """The scene that a caption describes; background '' if the caption does not name it."""
    plain = {other: word for word, other in SYNONYMS.items()}
    found = CAPTION.fullmatch(caption)
    assert found, caption
    told = {name: plain.get(word, word) for name, word in found.groupdict(default="").items()}
    first = Shape(told["size1"], told["color1"], told["kind1"])
    if not told["relation"]:
        return Scene((first,), None, told["background"])
    second = Shape(told["size2"], told["color2"], told["kind2"])
    if told["relation"] in RELATIONS:
        return Scene((first, second), told["relation"], "")
    return Scene((second, first), INVERSE[told["relation"]], "")


def seen(image: np.ndarray, color: str) -> tuple[float, float, int]:
    """Centre (x, y) and number of the pixels (H, W, 3) of a colour."""
    near = np.abs(image.astype(int) - COLORS[color]).max(axis=-1) <= 8  # (H, W)
    rows, columns = near.nonzero()
    return (columns.mean(), rows.mean(), len(rows)) if len(rows) else (0.0, 0.0, 0)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(f.relative_to(folder)).encode() + f.read_bytes() for f in files)).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(out, count=60, val_count=30, size=64)
    return out


def test_the_seed_decides_every_byte(made, tmp_path):
    make_shapes(tmp_path / "same", count=60, val_count=30, size=64)
    make_shapes(tmp_path / "other", count=60, val_count=30, size=64, seed=1)
    assert digest(tmp_path / "same") == digest(made) != digest(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "same"]  # nothing left beside them


@pytest.mark.parametrize(("split", "count"), [("train", 60), ("val", 30)])
def test_coco_layout(made, split, count):
    data = json.loads((made / f"captions_{split}.json").read_text())
    assert list(data) == ["info", "licenses", "images", "annotations"]
    ids = [image["id"] for image in data["images"]]
    assert len(set(ids)) == len(ids) == count
    assert len({row["id"] for row in data["annotations"]}) == len(data["annotations"]) == 5 * count
    assert sorted(row["image_id"] for row in data["annotations"]) == sorted(ids * 5)
    assert sorted(image["file_name"] for image in data["images"]) == sorted(p.name for p in (made / split).iterdir())
    for image in data["images"]:
        with Image.open(made / split / image["file_name"]) as pixels:
            assert (pixels.mode, *pixels.size) == ("RGB", image["width"], image["height"]) == ("RGB", 64, 64)


def test_written_captions_are_true_of_the_written_images(made):
    for split in ("train", "val"):
        data = json.loads((made / f"captions_{split}.json").read_text())
        places = {}
        for image in data["images"]:
            with Image.open(made / split / image["file_name"]) as pixels:
                places[image["id"]] = {color: seen(np.asarray(pixels), color) for color in COLORS}
        for row in data["annotations"]:
            scene, place = parsed(row["caption"]), places[row["image_id"]]
            assert {color for color, (_, _, n) in place.items() if n > 20} == {shape.color for shape in scene.shapes}
            for shape in scene.shapes:
                assert (place[shape.color][2] > 200) == (shape.size == "large")
            if scene.relation:
                (x1, y1, _), (x2, y2, _) = (place[shape.color] for shape in scene.shapes)
                over, beside = y2 - y1, x2 - x1
                assert (over > 20 and over > abs(beside)) == (scene.relation == "above")
                assert (beside > 20 and beside > abs(over)) == (scene.relation == "to the left of")


def test_every_caption_says_what_the_scene_is():
    rng = random.Random(0)
    single, pairs = scenes(False, 0)
    for scene in single + rng.sample(pairs, 500):
        texts = captions(scene, rng)
        assert len(set(texts)) == 5
        for text in texts:
            told = parsed(text)
            assert (told.shapes, told.relation) == (scene.shapes, scene.relation), text
            assert told.background in ("", scene.background), text


def test_shapes_have_their_form_and_background():
    area = {}
    for kind in ("circle", "square", "triangle"):
        image = np.asarray(draw(Scene((Shape("large", "red", kind),), None, "dark"), 96, random.Random(0)))
        near = np.abs(image.astype(int) - COLORS["red"]).max(axis=-1) <= 8
        rows, columns = near.nonzero()
        area[kind] = near.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1)  # share of its bounding box
        assert tuple(image[0, 0]) == BACKGROUNDS["dark"]
    assert area == pytest.approx({"circle": np.pi / 4, "square": 1, "triangle": 0.5}, abs=0.05)


def test_val_shows_nothing_that_train_shows(made):
    train, val = ([scene for part in scenes(held_out, 0) for scene in part] for held_out in (False, True))
    assert not set(train) & set(val)
    assert len(val) / len(train + val) == pytest.approx(HELD_OUT, abs=0.01)
    files = {split: {path.read_bytes() for path in (made / split).iterdir()} for split in ("train", "val")}
    assert not files["train"] & files["val"]


@pytest.mark.parametrize(("option", "value"), [("count", 0), ("val_count", 0), ("size", 16), ("size", 5000)])
def test_bad_options(tmp_path, option, value):
    with pytest.raises(UserError, match=f"--{option} is {value}"):
        make_shapes(tmp_path / "set", **{option: value})
    assert not any(tmp_path.iterdir())


def test_an_output_that_exists(tmp_path, capsys):
    out = tmp_path / "set"
    out.mkdir()
    make_shapes(out, count=3, val_count=2, size=32)  # an empty folder is fine
    before = digest(out), out.stat().st_mtime_ns
    make_shapes(out, count=3, val_count=2, size=32)
    assert "left as it is" in capsys.readouterr().out
    with pytest.raises(UserError, match="other options"):
        make_shapes(out, count=4, val_count=2, size=32)
    assert (digest(out), out.stat().st_mtime_ns) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    for foreign in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match="exists already"):
            make_shapes(foreign, count=3, val_count=2, size=32)
    with pytest.raises(UserError, match="cannot be written"):
        make_shapes(tmp_path / "mine" / "thesis.txt" / "set", count=3, val_count=2, size=32)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "words"


def test_a_stopped_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("captioner.datasets.synthetic.captions", stop)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "set", count=3, val_count=2, size=32)
    assert not any(tmp_path.iterdir())


# ---- clips


def test_clips_move_as_their_captions_say(tmp_path):
    for name in ("one", "two"):
        make_shapes(tmp_path / name, count=30, val_count=10, size=64, moving=True, frames=5)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    for split, count in (("train", 30), ("val", 10)):
        data = json.loads((tmp_path / "one" / f"captions_{split}.json").read_text())
        assert len(data["images"]) == count
        for image in data["images"]:
            texts = [row["caption"] for row in data["annotations"] if row["image_id"] == image["id"]]
            assert len(set(texts)) == 5
            color, kind, direction = re.fullmatch(r"the (\w+) (\w+) moves (\w+)", texts[0]).groups()
            for text in texts[1:]:
                assert {color, kind, direction} <= set(text.split())
                assert "a orange" not in text
            with Image.open(tmp_path / "one" / split / image["file_name"]) as clip:
                assert clip.n_frames == 5
                frames = [(clip.seek(i), np.asarray(clip.convert("RGB")))[1] for i in range(5)]
            near = [np.abs(frame.astype(int) - COLORS[color]).max(axis=-1) <= 8 for frame in frames]
            wanted = DIRECTIONS[direction]
            for before, after in pairwise(near):  # turned back by the step they cover each other
                low, high = int(64 * STEP[0]), int(64 * STEP[1]) + 2
                overlap = {
                    d: max((np.roll(before, (s * d[1], s * d[0]), axis=(0, 1)) & after).sum() for s in range(low, high))
                    for d in DIRECTIONS.values()
                }
                assert max(overlap, key=overlap.get) == wanted


def test_no_single_frame_tells_the_direction():
    """A shape that starts anywhere on a ring is later anywhere on it, whatever its direction."""
    shape, places = Shape("small", "red", "circle"), 4000
    for direction in DIRECTIONS:
        rng = random.Random(0)
        tracks = np.array([trajectory(Move(shape, direction, "dark"), 8, rng) for _ in range(places)])  # (places, 8, 2)
        assert tracks.min() >= 0
        assert tracks.max() <= 1
        for frame in range(8):
            for axis in range(2):
                uniform = (np.arange(places) + 0.5) / places
                distance = np.abs(np.sort(tracks[:, frame, axis]) - uniform).max()  # Kolmogorov and Smirnov's
                assert distance < 1.63 / places**0.5  # by chance 1 in 100 is further


def test_val_has_looks_that_train_has_not_and_no_look_tells_the_direction():
    train, val = ([((m.shape, m.background), m.direction) for m in moves(part, 0)] for part in (False, True))
    looks = [{look for look, _ in part} for part in (train, val)]
    assert not looks[0] & looks[1]
    assert len(val) / len(train + val) == pytest.approx(HELD_OUT, abs=0.01)
    for part, its in zip((train, val), looks, strict=True):
        assert sorted(part, key=str) == sorted(((look, d) for look in its for d in DIRECTIONS), key=str)
    for field in ("size", "color", "kind"):
        assert {getattr(shape, field) for shape, _ in looks[0]} >= {getattr(shape, field) for shape, _ in looks[1]}


def test_a_set_of_clips_is_another_set(tmp_path):
    make_shapes(tmp_path / "set", count=3, val_count=2, size=32, moving=True)
    make_shapes(tmp_path / "set", count=3, val_count=2, size=32, moving=True)
    for other in ({}, {"moving": True, "frames": 9}):
        with pytest.raises(UserError, match="other options"):
            make_shapes(tmp_path / "set", count=3, val_count=2, size=32, **other)
    with pytest.raises(UserError, match="--frames is 1"):
        make_shapes(tmp_path / "other", moving=True, frames=1)
