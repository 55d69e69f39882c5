"""COCO captions: what is read, and what is refused in one line."""

import json
import os
from pathlib import Path

import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.annotations import Example, read_examples, read_references
from captioner.metrics.result_files import read_results

COCO = Path(__file__).parents[3] / "shared" / "coco_sample"
needs_coco = pytest.mark.skipif(not COCO.is_dir(), reason="the COCO sample is not here (../shared/coco_sample)")


def small() -> dict:
    """Three images, with two, one and two captions out of order."""
    captions = [(7, "a cat"), (3, "a dog"), (7, "the cat"), ("x9", "a bird"), (3, "the dog")]
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 3, "file_name": "b.jpg"},
            {"id": 7, "file_name": "sub/a.jpg"},
            {"id": "x9", "file_name": "c.jpg"},
        ],
        "annotations": [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)],
        "categories": [{"id": 1, "name": "unused by captions"}],
    }


@pytest.fixture
def folder(tmp_path):
    """Empty files where the three images should be: reading annotations opens none of them."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("b.jpg", "sub/a.jpg", "c.jpg"):
        (images / name).touch()
    return images


def saved(folder: Path, data) -> Path:
    path = folder.parent / "captions.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def read(path, images, skip_bad=False):
    return read_examples(path, images, skip_bad=skip_bad)


# ---- what is read


def test_examples_come_in_the_order_of_images_with_all_their_captions(folder):
    examples, problems = read(saved(folder, small()), folder)
    assert problems == []
    assert examples == [
        Example(3, folder / "b.jpg", ("a dog", "the dog")),
        Example(7, folder / "sub" / "a.jpg", ("a cat", "the cat")),
        Example("x9", folder / "c.jpg", ("a bird",)),
    ]


def test_nothing_is_printed_and_the_order_of_the_annotations_is_kept(folder, capfd):
    read(saved(folder, small()), folder)
    assert capfd.readouterr() == ("", "")


ids = st.one_of(st.integers(-5, 5), st.sampled_from(["1", "a", ""]))
captions = st.sampled_from(["a cat", "  two\nlines \t", "ünï", " ", ""])


@given(st.lists(ids, unique=True, max_size=5), st.lists(st.tuples(ids, captions), max_size=12))
def test_skipping_keeps_exactly_the_good_ones_and_names_the_rest(folder, listed, written):
    data = {
        "images": [{"id": image, "file_name": "b.jpg"} for image in listed],
        "annotations": [{"image_id": image, "caption": text} for image, text in written],
    }
    path = saved(folder, data)
    good = {image: [t.strip() for i, t in written if i == image and t.strip()] for image in listed}
    good = {image: texts for image, texts in good.items() if texts}
    is_clean = set(good) == set(listed) >= {image for image, _ in written} and all(text.strip() for _, text in written)
    if not good:
        refused(read, path, folder, True, says=[str(path)])
        refused(read_references, path, says=[str(path)])
        return
    examples, problems = read(path, folder, skip_bad=True)
    assert {example.image_id: list(example.captions) for example in examples} == good == read_references(path).captions
    assert [example.image_id for example in examples] == list(good)
    assert (problems == []) == is_clean
    if is_clean:
        assert read(path, folder) == (examples, [])
    else:
        assert refused(read, path, folder, says=["--data.skip_bad_images"]).startswith(problems[0])


def test_a_folder_is_listed_once_however_many_images_it_has(folder, monkeypatch):
    data = {"images": [], "annotations": []}
    for n in range(300):
        name = f"{'sub' if n % 2 else '.'}/{n}.jpg"
        (folder / name).touch()
        data["images"].append({"id": n, "file_name": name})
        data["annotations"].append({"id": n, "image_id": n, "caption": "a cat"})
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert len(read(saved(folder, data), folder)[0]) == 300
    assert len(listed) == 2


def test_a_byte_order_mark_and_linked_files_are_fine(folder):
    (folder / "b.jpg").unlink()
    (folder / "b.jpg").symlink_to(folder / "c.jpg")
    assert len(read(saved(folder, "\ufeff" + json.dumps(small())), folder)[0]) == 3


# ---- problems of single images: skipped on request


def broken(folder, which: str) -> dict:
    data = small()
    first = data["images"][0]
    if which == "missing image file":
        first["file_name"] = "gone.jpg"
    elif which == "missing folder":
        first["file_name"] = "train2014/gone.jpg"
    elif which == "a folder":
        first["file_name"] = "sub"
    elif which == "no caption":
        data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] != 3]
    elif which == "only blank captions":
        for entry in data["annotations"]:
            if entry["image_id"] == 3:
                entry["caption"] = " \n"
    elif which == "unknown image id":
        data["annotations"].append({"id": 99, "image_id": "3", "caption": "the id is a string here"})
    elif which == "blank caption":
        data["annotations"][1]["caption"] = "\t"
    else:
        first["file_name"] = which
    return data


LEAVING = ["../../etc/passwd", "/etc/passwd", "..", "sub/../../secret.jpg", "../images/b.jpg"]


@pytest.mark.parametrize(
    ("which", "says", "left"),
    [
        ("missing image file", ["image id 3", "'gone.jpg'"], 2),
        ("missing folder", ["image id 3", "'train2014/gone.jpg'"], 2),
        ("a folder", ["image id 3", "'sub'"], 2),
        ("a\0b.jpg", ["image id 3"], 2),
        ("\0/b.jpg", ["image id 3"], 2),
        ("", ["image id 3"], 2),
        ("no caption", ["image id 3", "no caption"], 2),
        ("only blank captions", ["image id 3", "no caption"], 2),
        ("unknown image id", ["image id '3'", "'images'"], 3),
        ("blank caption", ["image id 3", "blank caption"], 3),
        *((name, ["image id 3", repr(name), "leaves"], 2) for name in LEAVING),
    ],
)
def test_a_bad_image_is_named_or_skipped(folder, which, says, left):
    (folder.parent / "secret.jpg").touch()
    path = saved(folder, broken(folder, which))
    line = refused(read, path, folder, says=[str(path), *says, "--data.skip_bad_images"])
    assert "more" not in line
    examples, problems = read(path, folder, skip_bad=True)
    assert len(examples) == left
    assert len(problems) == 1
    assert all(part in problems[0] for part in [str(path), *says])
    assert line.startswith(problems[0])


def test_the_first_problem_is_named_and_the_others_are_counted_by_kind(folder):
    data = small()
    for n in range(100, 105):
        data["images"].append({"id": n, "file_name": "gone.jpg"})
        data["annotations"].append({"id": n, "image_id": n, "caption": "x"})
    data["images"].append({"id": 200, "file_name": "b.jpg"})
    says = ["image id 100", "and 5 more", "4 × missing image file", "1 × image without a caption"]
    refused(read, saved(folder, data), folder, says=says)


def test_when_every_image_is_bad_even_skipping_is_an_error(folder, tmp_path):
    (tmp_path / "other").mkdir()
    refused(read, saved(folder, small()), tmp_path / "other", True, says=["no image to use", "image id 3"])
    refused(read, saved(folder, {"images": [], "annotations": []}), folder, True, says=["lists none"])
    refused(read, saved(folder, small()), tmp_path / "nowhere", True, says=["no such folder", "nowhere"])


# ---- files that are not COCO captions: always an error


def changed(key: str, position: int, **values) -> dict:
    data = small()
    data[key][position].update(values)
    return data


def without(key: str, position: int, name: str) -> dict:
    data = small()
    del data[key][position][name]
    return data


NOT_COCO = [
    ([], "list"),
    ("a", "a string"),
    (None, "null"),
    (5, "5"),
    ({}, "'images'"),
    ({"images": []}, "'annotations'"),
    ({"images": {}, "annotations": []}, "'images'"),
    ({"images": [3], "annotations": []}, "image 0"),
    ({"images": [], "annotations": ["a cat"]}, "annotation 0"),
    (without("annotations", 2, "caption"), "instances"),
    (without("annotations", 2, "image_id"), "'image_id' is missing"),
    (without("images", 1, "id"), "image 1: 'id' is missing"),
    (changed("images", 1, id=True), "'id'"),
    (changed("images", 1, id=1.5), "'id'"),
    (changed("images", 1, id=[1]), "'id'"),
    (changed("images", 1, id=3), "image id 3 comes twice"),
    (changed("annotations", 2, image_id={}), "'image_id'"),
    (changed("annotations", 2, id=[]), "'id'"),
    (changed("annotations", 2, id=0), "annotation id 0 comes twice"),
]


@pytest.mark.parametrize(("data", "says"), NOT_COCO)
def test_a_file_that_is_not_coco_captions_is_refused_whatever_is_skipped(folder, data, says):
    path = saved(folder, json.dumps(data))
    for skip in (False, True):
        refused(read, path, folder, skip, says=[str(path), says])
    refused(read_references, path, says=[str(path), says])


def test_a_file_name_matters_only_where_images_are_read(folder):
    path = saved(folder, without("images", 0, "file_name"))
    refused(read, path, folder, True, says=["image 0 (id 3): 'file_name' is missing"])
    assert list(read_references(path).captions) == [3, 7, "x9"]


def test_annotations_without_ids_are_fine(folder):
    data = small()
    for entry in data["annotations"]:
        del entry["id"]
    data["annotations"][0]["id"] = None
    assert len(read(saved(folder, data), folder)[0]) == 3


# ---- real files


@needs_coco
@pytest.mark.parametrize(("split", "images"), [("train2017", 24), ("val2017", 48)])
def test_the_coco_sample_reads_as_pycocotools_reads_it(split, images):
    from pycocotools.coco import COCO as Oracle

    annotations, folder = COCO / "annotations" / f"captions_{split}.json", COCO / "images" / split
    oracle = Oracle(str(annotations))
    examples, problems = read(annotations, folder)
    assert problems == []
    assert len(examples) == images
    assert [example.image_id for example in examples] == oracle.getImgIds()
    for example in examples:
        anns = oracle.loadAnns(oracle.getAnnIds(imgIds=[example.image_id]))
        assert example.captions == tuple(ann["caption"].strip() for ann in anns)
        assert example.path == folder / oracle.imgs[example.image_id]["file_name"]
        assert example.path.is_file()
    assert read_references(annotations).captions == {example.image_id: list(example.captions) for example in examples}


@needs_coco
def test_a_results_file_or_the_wrong_split_is_refused(tmp_path):
    annotations = COCO / "annotations" / "captions_val2017.json"
    refused(read, annotations, COCO / "images" / "train2017", says=["image id", "47 × missing image file"])
    references = read_references(annotations).captions
    results = [{"image_id": image, "caption": texts[0]} for image, texts in references.items()]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert len(read_results(tmp_path / "results.json")) == 48
    refused(read, tmp_path / "results.json", tmp_path, says=["no columns of file names and captions"])


@pytest.mark.parametrize(
    ("caption", "says"), [(None, "is null"), (["a"], "is a list"), (float("nan"), "is NaN"), (5, "is the number 5")]
)
def test_a_caption_that_is_no_text_is_named_or_skipped(folder, caption, says):
    path = saved(folder, changed("annotations", 0, caption=caption))
    refused(read, path, folder, says=[str(path), "annotation 0", "'caption'", says])
    _, problems = read(path, folder, skip_bad=True)
    assert says in problems[0]


def test_an_id_of_another_type_is_said(folder):
    data = changed("annotations", 0, image_id="3")
    refused(
        read, saved(folder, data), folder, says=["image id '3'", "where it is the number 3", "write both in one way"]
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sub\\c.jpg", "sub/c.jpg"),
        ("A.JPG", "a.jpg"),
        ("b%20c.jpg", "b c.jpg"),
        ("cafe\u0301.jpg", "caf\xe9.jpg"),
        ("caf\xe9.jpg", "cafe\u0301.jpg"),
        ("/data/upload/3/a.jpg", "a.jpg"),
        ("/data/upload/3/0f3a9b12-a.jpg", "a.jpg"),
        ("train2014/sub/c.jpg", "sub/c.jpg"),
    ],
)
def test_a_name_that_is_written_in_another_way(tmp_path, capsys, name, file):
    images = tmp_path / "images"
    (images / file).parent.mkdir(parents=True)
    for each in (file, "other.jpg"):
        (images / each).touch()
    data = {"images": [{"id": 1, "file_name": name}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}
    (example,), _ = read(saved(tmp_path, data), images)
    assert example.path == images / file
    assert repr(file) in capsys.readouterr().err


def test_a_name_that_fits_several_files_or_none(tmp_path):
    for file in ("x/a.jpg", "y/a.jpg", "dog_01.jpg"):
        (tmp_path / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / file).touch()
    for name, says in (
        ("z/a.jpg", ["fits 2 files", "x/a.jpg"]),
        ("dog-01.jpg", ["no file", "nearest is 'dog_01.jpg'"]),
    ):
        data = {"images": [{"id": 1, "file_name": name}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}
        refused(read, saved(tmp_path, data), tmp_path / "images", says=[repr(name), *says])
    data = {"images": [{"id": i, "file_name": f"{i}/dog_01.jpg"} for i in (1, 2)], "annotations": []}
    data["annotations"] = [{"id": i, "image_id": i, "caption": "a"} for i in (1, 2)]
    refused(read, saved(tmp_path, data), tmp_path / "images", says=["'1/dog_01.jpg' and '2/dog_01.jpg' both fit"])
