"""COCO to shards and back: the same ids, captions, names and bytes; nothing is half-written."""

import contextlib
import io
import json
import sys

import pytest
from coco_split import scene, write_split
from helpers import is_one_line
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from captioner.data.annotations import Example, read_examples
from captioner.datasets.convert import to_coco, to_webdataset

CAPTION = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).map(str.strip).filter(bool)
FACTS = st.lists(st.lists(CAPTION, min_size=1, max_size=3), min_size=1, max_size=4)
NAMES = ["a.jpg", "b.c.jpg", "b_c.png", "sub/a.jpg"]


@pytest.fixture
def coco(tmp_path):
    return write_split(tmp_path, "set", {f"{i}.jpg": scene(i, 60, 50 + i) for i in range(5)}, 7)


def captions(examples):
    return [(example.image_id, example.captions) for example in examples]


@given(FACTS, st.booleans(), st.integers(1, 4))
def test_there_and_back(tmp_path_factory, facts, named, shard_size):
    folder = tmp_path_factory.mktemp("round")
    (folder / "in" / "sub").mkdir(parents=True)
    examples = []
    for i, texts in enumerate(facts):
        scene(i, 20, 10 + i).save(folder / "in" / NAMES[i])
        image_id = f"é{i}" if named else 3 * i + 1
        examples.append(Example(image_id, folder / "in" / NAMES[i], tuple(texts), NAMES[i]))
    assert to_webdataset(examples, folder / "shards", shard_size) == -(-len(examples) // shard_size)
    shards, _ = read_examples(folder / "shards")
    assert captions(shards) == captions(examples)
    assert [shard.path.open().read() for shard in shards] == [example.path.read_bytes() for example in examples]
    root = to_coco(shards, folder / "out", folder, "copy")
    back, _ = read_examples(folder / "out" / "captions.json", root)
    assert captions(back) == captions(examples)
    assert [one.path.read_bytes() for one in back] == [one.path.read_bytes() for one in examples]


def test_pycocotools_loads_it(cli, coco, tmp_path):
    out = tmp_path / "out"
    code, said, err = cli("data", "convert", coco[0], "--images", coco[1], "--to", "coco", "--output", out)
    assert (code, err) == (0, "")
    assert "5 images, 10 captions" in said
    assert str(coco[1]) in said
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(out / "captions.json"))
    assert loaded.getImgIds() == [7, 8, 9, 10, 11]
    assert [(image["file_name"], image["width"], image["height"]) for image in loaded.loadImgs([7, 9])] == [
        ("0.jpg", 60, 50),
        ("2.jpg", 60, 52),
    ]
    assert len(loaded.loadAnns(loaded.getAnnIds([8]))) == 2
    assert sorted(path.name for path in out.iterdir()) == ["captions.json"]


def test_links_and_shards_of_the_command_line(cli, coco, tmp_path):
    call = ("data", "convert", coco[0], "--images", coco[1], "--output")
    assert cli(*call, tmp_path / "linked", "--to", "coco", "--image_files", "link")[0] == 0
    assert (tmp_path / "linked" / "images" / "3.jpg").resolve() == (coco[1] / "3.jpg").resolve()
    code, said, _ = cli(*call, tmp_path / "shards", "--to", "webdataset", "--shard-size", "2")
    assert code == 0
    assert "in 3 shards" in said
    assert cli(*call, tmp_path / "again", "--to", "webdataset", "--shard-size", "2")[0] == 0
    for file in (tmp_path / "shards").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert cli("data", "inspect", tmp_path / "shards", "--workers", "0")[1].startswith("! train: very small images")


def test_webdataset_reads_the_shards(cli, coco, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    call = ("data", "convert", coco[0], "--images", coco[1], "--output", tmp_path / "shards", "--to", "webdataset")
    assert cli(*call)[0] == 0
    samples = list(webdataset.WebDataset(str(tmp_path / "shards" / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["0", "1", "2", "3", "4"]
    assert samples[2]["jpg"] == (coco[1] / "2.jpg").read_bytes()
    about = {"captions": ["picture 9 of a dog", "one more dog"], "image_id": 9, "file_name": "2.jpg"}
    assert json.loads(samples[2]["json"]) == about


@pytest.mark.parametrize("to", ["coco", "webdataset"])
def test_nothing_half_written(cli, coco, tmp_path, to):
    out = tmp_path / "results" / "out"
    (out.parent / ".out.part").mkdir(parents=True)  # of a run that was killed
    (out.parent / ".out.part" / "000009.tar").write_text("old")
    good = (coco[1] / "4.jpg").read_bytes()
    (coco[1] / "4.jpg").write_text("no image")
    call = ("data", "convert", coco[0], "--images", coco[1], "--to", to, "--output", out)
    code, _, err = cli(*call)
    assert code == 2
    assert is_one_line(err, "4.jpg")
    assert list(out.parent.iterdir()) == []
    code, said, err = cli(*call, "--skip_bad_images")
    assert code == 0
    assert "4 images, 8 captions" in said
    assert is_one_line(err, "left out", "4.jpg")
    (coco[1] / "4.jpg").write_bytes(good)
    before = sorted(path.read_bytes() for path in out.iterdir())
    code, _, err = cli(*call)
    assert code == 2
    assert is_one_line(err, "exists already")
    assert sorted(path.read_bytes() for path in out.iterdir()) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_errors_are_one_line(cli, coco, tmp_path, monkeypatch):
    call = ("data", "convert", coco[0], "--images", coco[1], "--output", tmp_path / "out", "--to")
    code, _, err = cli(*call, "webdataset", "--shard-size", "0")
    assert code == 2
    assert is_one_line(err, "--shard_size is 0")
    assert cli(*call, "webdataset")[0] == 0
    code, _, err = cli("data", "convert", tmp_path / "out", "--output", tmp_path / "new", "--to", "coco")
    assert code == 2
    assert is_one_line(err, "use --image_files copy")
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(sys.modules, "webdataset", None)
    code, _, err = cli(*call, "webdataset")
    assert code == 2
    assert is_one_line(err, "pip install -e '.[shards]'")
