"""COCO captions, references and results: what is read, and what is refused in one line."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.data.annotations import Example, match, read_coco, read_named_references, read_references, read_results
from captioner.errors import UserError
from captioner.files import read_json, write_json

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


def refused(function, *arguments, says=()) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    for part in says:
        assert part in line
    return line


# ---- what is read


def test_examples_come_in_the_order_of_images_with_all_their_captions(folder):
    examples, problems = read_coco(saved(folder, small()), folder)
    assert problems == []
    assert examples == [
        Example(3, folder / "b.jpg", ("a dog", "the dog")),
        Example(7, folder / "sub" / "a.jpg", ("a cat", "the cat")),
        Example("x9", folder / "c.jpg", ("a bird",)),
    ]


def test_nothing_is_printed_and_the_order_of_the_annotations_is_kept(folder, capfd):
    read_coco(saved(folder, small()), folder)
    assert capfd.readouterr() == ("", "")


ids = st.one_of(st.integers(-5, 5), st.sampled_from(["1", "a", ""]))
captions = st.sampled_from(["a cat", "  two\nlines \t", "ünï", " ", ""])


@given(st.lists(ids, unique=True, max_size=5), st.lists(st.tuples(ids, captions), max_size=12))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        refused(read_coco, path, folder, True, says=[str(path)])
        refused(read_references, path, says=[str(path)])
        return
    examples, problems = read_coco(path, folder, skip_bad=True)
    assert {example.image_id: list(example.captions) for example in examples} == good == read_references(path)
    assert [example.image_id for example in examples] == list(good)
    assert (problems == []) == is_clean
    if is_clean:
        assert read_coco(path, folder) == (examples, [])
    else:
        assert refused(read_coco, path, folder, says=["--data.skip_bad_images"]).startswith(problems[0])


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
    assert len(read_coco(saved(folder, data), folder)[0]) == 300
    assert len(listed) == 2


def test_a_byte_order_mark_and_linked_files_are_fine(folder):
    (folder / "b.jpg").unlink()
    (folder / "b.jpg").symlink_to(folder / "c.jpg")
    assert len(read_coco(saved(folder, "\ufeff" + json.dumps(small())), folder)[0]) == 3


# ---- problems of single images: skipped on request


def broken(folder, which: str) -> dict:
    data = small()
    first = data["images"][0]
    if which == "missing image file":
        first["file_name"] = "gone.jpg"
    elif which == "missing folder":
        first["file_name"] = "train2014/b.jpg"
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
        ("missing folder", ["image id 3", "'train2014/b.jpg'"], 2),
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
    line = refused(read_coco, path, folder, says=[str(path), *says, "--data.skip_bad_images"])
    assert "more" not in line
    examples, problems = read_coco(path, folder, skip_bad=True)
    assert len(examples) == left
    assert len(problems) == 1
    assert all(part in problems[0] for part in [str(path), *says])
    assert line.startswith(problems[0])


def test_the_first_problem_is_told_and_the_others_are_counted_by_kind(folder):
    data = small()
    for n in range(100, 105):
        data["images"].append({"id": n, "file_name": "gone.jpg"})
        data["annotations"].append({"id": n, "image_id": n, "caption": "x"})
    data["images"].append({"id": 200, "file_name": "b.jpg"})
    says = ["image id 100", "and 5 more", "4 × missing image file", "1 × image without a caption"]
    refused(read_coco, saved(folder, data), folder, says=says)


def test_when_every_image_is_bad_even_skipping_is_an_error(folder, tmp_path):
    (tmp_path / "other").mkdir()
    refused(read_coco, saved(folder, small()), tmp_path / "other", True, says=["no image to use", "image id 3"])
    refused(read_coco, saved(folder, {"images": [], "annotations": []}), folder, True, says=["lists none"])
    refused(read_coco, saved(folder, small()), tmp_path / "nowhere", True, says=["no such folder", "nowhere"])


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
    (changed("annotations", 2, caption=None), "annotation 2 (id 2): 'caption' is null"),
    (changed("annotations", 2, caption=["a"]), "'caption'"),
    (changed("annotations", 2, image_id={}), "'image_id'"),
    (changed("annotations", 2, id=[]), "'id'"),
    (changed("annotations", 2, id=0), "annotation id 0 comes twice"),
]


@pytest.mark.parametrize(("data", "says"), NOT_COCO)
def test_a_file_that_is_not_coco_captions_is_refused_whatever_is_skipped(folder, data, says):
    path = saved(folder, json.dumps(data))
    for skip in (False, True):
        refused(read_coco, path, folder, skip, says=[str(path), says])
    refused(read_references, path, says=[str(path), says])


def test_a_file_name_matters_only_where_images_are_read(folder):
    path = saved(folder, without("images", 0, "file_name"))
    refused(read_coco, path, folder, True, says=["image 0 (id 3): 'file_name' is missing"])
    assert list(read_references(path)) == [3, 7, "x9"]


def test_annotations_without_ids_are_fine(folder):
    data = small()
    for entry in data["annotations"]:
        del entry["id"]
    data["annotations"][0]["id"] = None
    assert len(read_coco(saved(folder, data), folder)[0]) == 3


# ---- results


def test_results_are_read_by_image_id(folder):
    path = saved(folder, [{"image_id": 3, "caption": "a dog", "score": 1}, {"image_id": "x9", "caption": ""}])
    assert read_results(path) == {3: "a dog", "x9": ""}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "an empty list"),
        ({}, "an empty object"),
        (None, "null"),
        ("a cat", "a string"),
        ([1], "result 0"),
        ([{"caption": "a"}], "result 0: 'image_id' is missing"),
        ([{"image_id": 1}], "'caption' is missing"),
        ([{"image_id": 1, "caption": []}], "result 0: 'caption' is an empty list"),
        ([{"image_id": 1, "caption": ["a", 3]}], "result 0: 'caption' has the number 3"),
        ([{"image_id": 1, "caption": "a", "text": "b"}], "both 'caption' and 'text'"),
        ([{"image_id": 1, "caption": "a"}, {"file_name": "b", "caption": "b"}], "result 1: 'image_id' is missing"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": 2, "text": "b"}], "result 1 (id 2): 'caption' is missing"),
        ({"results": [], "predictions": []}, "both 'results' and 'predictions'"),
        ({"results": []}, "an empty list"),
        ({"7": None}, "image '7' is null"),
        ({"7": {"score": 1}}, "image '7' is null"),
        ([{"image_id": 1, "caption": None}], "'caption' is null"),
        ([{"image_id": 1.0, "caption": "a"}], "'image_id' is the number 1.0"),
        ([{"image_id": True, "caption": "a"}], "'image_id'"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}], "image 1 comes twice, as 'a'"),
        ({"1": ["a", "b"], "2": []}, "image '2' is an empty list"),
    ],
)
def test_results_that_are_none_are_refused(folder, data, says):
    path = saved(folder, json.dumps(data))
    refused(read_results, path, says=[str(path), says])


A, B = "a cat .", "a dog"
RESULTS = {
    "COCO": [{"image_id": 3, "caption": A}, {"image_id": 7, "caption": B}],
    "other names": [{"id": 3, "prediction": A, "score": 0.5}, {"id": 7, "prediction": B}],
    "lists": [{"img_id": 3, "captions": [A, "x"]}, {"img_id": 7, "captions": [B]}],
    "numbered rows": [{"id": 0, "cocoid": 3, "text": A}, {"id": 1, "cocoid": 7, "text": B}],
    "COCO annotations": {
        "images": [{"id": 3}, {"id": 7}],
        "annotations": [{"id": 70, "image_id": 3, "caption": A}, {"id": 71, "image_id": 7, "caption": B}],
    },
    "wrapped": {"info": {}, "results": [{"imgid": 3, "output": A}, {"imgid": 7, "output": B}]},
    "the same again": [{"image_id": i, "caption": text} for i, text in ((3, A), (7, B), (3, A))],
}
BY_NAME = {
    "mapping": {"3": A, "7": B},
    "mapping of lists": {"3": [A, "x"], "7": [B]},
    "as coco-caption holds them": {"3": [{"caption": A}], "7": [{"caption": B}]},
    "wrapped mapping": {"predictions": {"3": A, "7": B}},
    "files": [{"file_name": "3", "id": 1, "caption": A}, {"file_name": "7", "id": 2, "caption": B}],
}


@pytest.mark.parametrize("kind", RESULTS)
def test_what_people_write_results_as(folder, kind):
    assert read_results(saved(folder, RESULTS[kind])) == {3: A, 7: B}


@pytest.mark.parametrize("kind", BY_NAME)
def test_what_people_write_results_as_with_strings_for_ids(folder, kind):
    assert read_results(saved(folder, BY_NAME[kind])) == {"3": A, "7": B}


def test_json_lines(folder):
    rows = [{"image": "val/a.jpg", "caption": "ünï", "log_prob": -1.5}, {"image": "b.jpg", "caption": "a dog"}]
    lines = [json.dumps(row) for row in rows]
    expected = {"val/a.jpg": "ünï", "b.jpg": "a dog"}
    assert read_results(saved(folder, "\n".join(lines))) == expected
    assert read_results(saved(folder, "\ufeff\n" + "\r\n\r\n".join(lines) + "\r\n")) == expected
    assert read_results(saved(folder, lines[0])) == {"val/a.jpg": "ünï"}
    refused(read_results, saved(folder, "\n".join([*lines, '{"image": "c.jpg", "cap'])), says=["line 3 column 20"])
    refused(read_results, saved(folder, json.dumps(rows, indent=1) + "\n]"), says=["line 12 column 1", "Extra data"])
    refused(read_results, saved(folder, '{"3": "a", "3": "b"}'), says=["'3' comes twice"])
    assert read_results(saved(folder, '{"3": "a", "3": "a"}')) == {"3": "a"}


# ---- references


@pytest.mark.parametrize(
    "data",
    [
        {"3": ["a dog ", "the dog", ""], "x9": "a bird", "5": [" "]},
        [{"id": "3", "captions": ["a dog", "the dog"]}, {"id": "x9", "captions": ["a bird"]}],
        [{"id": "3", "caption": "x", "references": ["a dog", "the dog"]}, {"id": "x9", "references": "a bird"}],
        [{"image_id": i, "caption": text} for i, text in (("3", "a dog"), ("x9", "a bird"), ("3", "the dog"))],
        {
            "annotations": [
                {"image_id": i, "caption": t} for i, t in (("3", "a dog"), ("3", "the dog"), ("x9", "a bird"))
            ]
        },
    ],
    ids=["mapping", "captions", "references", "repeated ids", "annotations"],
)
def test_what_people_write_references_as(folder, data):
    assert read_references(saved(folder, data)) == {"3": ["a dog", "the dog"], "x9": ["a bird"]}
    if isinstance(data, list):
        lines = "\n".join(map(json.dumps, data))
        assert read_references(saved(folder, lines)) == {"3": ["a dog", "the dog"], "x9": ["a bird"]}


def test_the_file_names_of_references(folder):
    assert read_named_references(saved(folder, small()))[1] == {3: "b.jpg", 7: "sub/a.jpg", "x9": "c.jpg"}
    rows = [{"image_id": 3, "file_name": "b.jpg", "caption": "a"}, {"image_id": 4, "file_name": None, "caption": "b"}]
    assert read_named_references(saved(folder, rows)) == ({3: ["a"], 4: ["b"]}, {3: "b.jpg"})
    assert read_named_references(saved(folder, {"b.jpg": ["a"]})) == ({"b.jpg": ["a"]}, {})


# ---- which image a result is of

NAMES = {3: "b.jpg", 391895: "val/COCO_val2014_000000391895.jpg", "x9": "c/d.jpg", 8: "e/d.jpg"}


@pytest.mark.parametrize(
    "result",
    [
        {3: "a", 391895: "b", "x9": "c", 8: "d"},
        {"391895": "b", "x9": "c", "8": "d", "3": "a"},
        {"b.jpg": "a", "val/COCO_val2014_000000391895.jpg": "b", "c/d.jpg": "c", "e/d.jpg": "d"},
        {"/data/val/b.jpg": "a", "COCO_val2014_000000391895.jpg": "b", "x/c/d.jpg": "c", "./x//e/d.jpg": "d"},
        {"b.jpg": "a", "test\\COCO_val2014_000000391895.jpg": "b", "x\\c\\d.jpg": "c", "e\\d.jpg": "d"},
        {3: "a", "3": "a", 391895: "b", "x9": "c", 8: "d"},
    ],
    ids=["ids", "strings", "files", "paths", "backslashes", "the same again"],
)
def test_results_find_their_images(result):
    assert match(NAMES, result, NAMES) == ({3: "a", 391895: "b", "x9": "c", 8: "d"}, [], [])


def test_missing_and_extra_images_in_their_order():
    pairs, missing, extra = match(NAMES, {5: "?", 8: "d", 3: "a", "4": "?", "f.jpg": "?"}, NAMES)
    assert list(pairs.items()) == [(3, "a"), (8, "d")]
    assert missing == [391895, "x9"]
    assert extra == [5, "4", "f.jpg"]


def test_ids_that_are_file_names():
    references = dict.fromkeys(["train/a.jpg", "train/b.jpg"])
    assert match(references, {"a.jpg": "a", "train/b.jpg": "b"})[0] == {"train/a.jpg": "a", "train/b.jpg": "b"}


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ({"d.jpg": "a"}, ["'d.jpg' is the name of 2 images", "'x9', 8"]),
        ({3: "a", "c/d.jpg": "b"}, ["two ways", "by id (e.g. 3)", "by file name (e.g. 'c/d.jpg')"]),
        ({3: "a", "3": "b"}, ["image 3 comes twice", "'a'", "'b'"]),
        ({"x/b.jpg": "a", "y/b.jpg": "b"}, ["image 3 comes twice", "'y/b.jpg'"]),
    ],
)
def test_ambiguous_results_are_refused(results, says):
    refused(match, NAMES, results, NAMES, "mine.json", says=["mine.json: ", *says])


def test_references_with_an_id_of_both_kinds_are_refused():
    refused(match, {3: [], "3": []}, {3: "a"}, says=["image 3", "a number and as a string"])


@pytest.mark.slow
def test_the_files_of_coco_2014_are_read_in_seconds(folder):
    import time

    images = [{"id": 13 * n, "file_name": f"COCO_val2014_{13 * n:012}.jpg", "height": 480} for n in range(40_504)]
    ids = [image["id"] for image in images for _ in range(5)]
    annotations = [{"id": n, "image_id": i, "caption": f"caption {n} of an image"} for n, i in enumerate(ids)]
    path = saved(folder, {"images": images, "annotations": annotations})
    lines = "\n".join(json.dumps({"image": f"val/{image['file_name']}", "caption": "a"}) for image in images)
    (folder / "results.jsonl").write_text(lines)
    start = time.perf_counter()
    references, names = read_named_references(path)
    pairs, missing, extra = match(references, read_results(folder / "results.jsonl"), names)
    assert time.perf_counter() - start < 10
    assert (len(pairs), missing, extra) == (40_504, [], [])


# ---- JSON


@pytest.mark.parametrize(
    "reader", [read_json, read_results, read_references, lambda path: read_coco(path, path.parent)]
)
def test_every_reader_refuses_broken_files_in_one_line(tmp_path, reader):
    path = tmp_path / "file.json"
    refused(reader, path, says=[str(path), "no such file"])
    says = "no data set in this folder" if reader is read_references else "cannot be read"
    refused(reader, tmp_path, says=[str(tmp_path), says])
    for content, says in {
        b"": "empty",
        b" \n": "empty",
        b'{"images": [\n  {"id" 1}]}': "line 2 column 9",
        b'{"images": [': "line 1 column 13",
        b"\xff\xfe": "UTF-8",
        b"[" * 200_000: "not JSON",
        b"1" * 5_000: "not JSON",
    }.items():
        path.write_bytes(content)
        refused(reader, path, says=[str(path), says])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_is_read(tmp_path, data):
    path = tmp_path / "new" / "folder" / "file.json"
    write_json(path, data)
    assert read_json(path) == data
    assert os.listdir(path.parent) == ["file.json"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, fails):
    path = tmp_path / "file.json"
    write_json(path, [1])

    def fail(*arguments):
        assert read_json(path) == [1]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, fail)
    refused(write_json, path, [2], says=[str(path), "No space left"])
    assert read_json(path) == [1]
    assert os.listdir(tmp_path) == ["file.json"]


def test_what_json_cannot_hold_touches_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"path": tmp_path})
    assert os.listdir(tmp_path) == []


def test_writing_goes_through_a_link_and_respects_the_umask(tmp_path):
    (tmp_path / "real.json").write_text("[]")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "link.json", [1])
    finally:
        os.umask(before)
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(tmp_path / "real.json") == [1]
    assert (tmp_path / "real.json").stat().st_mode & 0o777 == 0o644


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    refused(write_json, tmp_path / "file" / "x.json", [], says=["cannot be written"])
    refused(write_json, tmp_path, [], says=["cannot be written"])
    assert os.listdir(tmp_path) == ["file"]


# ---- the genuine article


@needs_coco
@pytest.mark.parametrize(("split", "images"), [("train2017", 24), ("val2017", 48)])
def test_the_coco_sample_reads_as_pycocotools_reads_it(split, images):
    from pycocotools.coco import COCO as Oracle

    annotations, folder = COCO / "annotations" / f"captions_{split}.json", COCO / "images" / split
    oracle = Oracle(str(annotations))
    examples, problems = read_coco(annotations, folder)
    assert problems == []
    assert len(examples) == images
    assert [example.image_id for example in examples] == oracle.getImgIds()
    for example in examples:
        anns = oracle.loadAnns(oracle.getAnnIds(imgIds=[example.image_id]))
        assert example.captions == tuple(ann["caption"].strip() for ann in anns)
        assert example.path == folder / oracle.imgs[example.image_id]["file_name"]
        assert example.path.is_file()
    assert read_references(annotations) == {example.image_id: list(example.captions) for example in examples}


@needs_coco
def test_a_results_file_or_the_wrong_split_is_recognised(tmp_path):
    annotations = COCO / "annotations" / "captions_val2017.json"
    refused(read_coco, annotations, COCO / "images" / "train2017", says=["image id", "47 × missing image file"])
    results = [{"image_id": image, "caption": texts[0]} for image, texts in read_references(annotations).items()]
    write_json(tmp_path / "results.json", results)
    assert len(read_results(tmp_path / "results.json")) == 48
    refused(read_coco, tmp_path / "results.json", tmp_path, says=["found a list"])
