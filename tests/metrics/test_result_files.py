"""Files of results: what is read, which image each result is of, and what is refused in one line."""

import csv
import io
import json

import pytest
from helpers import is_one_line, make_captioner, refused

from captioner.data.annotations import read_references
from captioner.metrics.result_files import match_results, read_results


def saved(folder, data):
    path = folder / "results.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_results_are_read_by_image_id(tmp_path):
    path = saved(tmp_path, [{"image_id": 3, "caption": "a dog", "score": 1}, {"image_id": "x9", "caption": ""}])
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
        ({"7": {"score": 1}}, "image '7' is an object"),
        ([{"image_id": 1, "caption": None}], "'caption' is null"),
        ([{"image_id": 1.0, "caption": "a"}], "'image_id' is the number 1.0"),
        ([{"image_id": True, "caption": "a"}], "'image_id'"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}], "image 1 comes twice, as 'a'"),
        ({"1": ["a", "b"], "2": []}, "image '2' is an empty list"),
    ],
)
def test_invalid_results_are_refused(tmp_path, data, says):
    path = saved(tmp_path, json.dumps(data))
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
def test_layouts_of_results(tmp_path, kind):
    assert read_results(saved(tmp_path, RESULTS[kind])) == {3: A, 7: B}


@pytest.mark.parametrize("kind", BY_NAME)
def test_layouts_of_results_with_strings_for_ids(tmp_path, kind):
    assert read_results(saved(tmp_path, BY_NAME[kind])) == {"3": A, "7": B}


def test_json_lines(tmp_path):
    rows = [{"image": "val/a.jpg", "caption": "ünï", "log_prob": -1.5}, {"image": "b.jpg", "caption": "a dog"}]
    lines = [json.dumps(row) for row in rows]
    expected = {"val/a.jpg": "ünï", "b.jpg": "a dog"}
    assert read_results(saved(tmp_path, "\n".join(lines))) == expected
    assert read_results(saved(tmp_path, "\ufeff\n" + "\r\n\r\n".join(lines) + "\r\n")) == expected
    assert read_results(saved(tmp_path, lines[0])) == {"val/a.jpg": "ünï"}
    refused(read_results, saved(tmp_path, "\n".join([*lines, '{"image": "c.jpg", "cap'])), says=["line 3 column 20"])
    refused(read_results, saved(tmp_path, json.dumps(rows, indent=1) + "\n]"), says=["line 12 column 1", "Extra data"])
    refused(read_results, saved(tmp_path, '{"3": "a", "3": "b"}'), says=["'3' comes twice"])
    assert read_results(saved(tmp_path, '{"3": "a", "3": "a"}')) == {"3": "a"}


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
    assert match_results(NAMES, result, NAMES) == ({3: "a", 391895: "b", "x9": "c", 8: "d"}, [], [])


def test_missing_and_extra_images_in_their_order():
    pairs, missing, extra = match_results(NAMES, {5: "?", 8: "d", 3: "a", "4": "?", "f.jpg": "?"}, NAMES)
    assert list(pairs.items()) == [(3, "a"), (8, "d")]
    assert missing == [391895, "x9"]
    assert extra == [5, "4", "f.jpg"]


def test_ids_that_are_file_names():
    references = dict.fromkeys(["train/a.jpg", "train/b.jpg"])
    assert match_results(references, {"a.jpg": "a", "train/b.jpg": "b"})[0] == {"train/a.jpg": "a", "train/b.jpg": "b"}


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
    refused(match_results, NAMES, results, NAMES, "mine.json", says=["mine.json: ", *says])


def test_references_with_an_id_of_both_kinds_are_refused():
    refused(match_results, {3: [], "3": []}, {3: "a"}, says=["image 3", "a number and as a string"])


@pytest.mark.slow
def test_the_files_of_coco_2014_are_read_in_seconds(tmp_path):
    import time

    images = [{"id": 13 * n, "file_name": f"COCO_val2014_{13 * n:012}.jpg", "height": 480} for n in range(40_504)]
    ids = [image["id"] for image in images for _ in range(5)]
    annotations = [{"id": n, "image_id": i, "caption": f"caption {n} of an image"} for n, i in enumerate(ids)]
    path = saved(tmp_path, {"images": images, "annotations": annotations})
    lines = "\n".join(json.dumps({"image": f"val/{image['file_name']}", "caption": "a"}) for image in images)
    (tmp_path / "results.jsonl").write_text(lines)
    start = time.perf_counter()
    references, names = read_references(path)
    pairs, missing, extra = match_results(references, read_results(tmp_path / "results.jsonl"), names)
    assert time.perf_counter() - start < 10
    assert (len(pairs), missing, extra) == (40_504, [], [])


# ---- results of other tools

IDS = {391895: "val/000000391895.jpg", 522418: "val/000000522418.jpg"}
SAID = {391895: "a man on a bike", 522418: 'a woman, "cuts" a cake'}
KINDS = {
    "coco.json": json.dumps([{"image_id": i, "caption": text} for i, text in SAID.items()]),
    "lavis.json": json.dumps([{"caption": text, "image_id": i, "instance_id": "0"} for i, text in SAID.items()]),
    "object.json": json.dumps({IDS[i]: text for i, text in SAID.items()}),
    "lines.jsonl": "".join(json.dumps({"image": IDS[i], "caption": text}) + "\n" for i, text in SAID.items()),
    "predict.txt": "".join(f"/photos/{IDS[i]}\t{text}\n" for i, text in SAID.items()),
    "n_best.tsv": "".join(
        f"{IDS[i]}\t{text}\t-{n}.5\n" for i, best in SAID.items() for n, text in ((1, best), (2, "b"))
    ),
    "table.csv": "image,caption\n" + "".join(f'{IDS[i]},"{SAID[i].replace(chr(34), chr(34) * 2)}"\n' for i in SAID),
    "padded.json": json.dumps([{"image_id": f"{i:012}", "caption": text} for i, text in SAID.items()]),
    "upper.json": json.dumps([{"image": f"{i:012}.JPG", "caption": text} for i, text in SAID.items()]),
    "stem.json": json.dumps({f"{i:012}": text for i, text in SAID.items()}),
    "pipeline.json": json.dumps([{"image": IDS[i], "generated_text": text} for i, text in SAID.items()]),
    "nested.json": json.dumps([[{"generated_text": text}, {"generated_text": "b"}] for text in SAID.values()]),
    "by_name.json": json.dumps({IDS[i]: [{"generated_text": text}] for i, text in SAID.items()}),
    "llava.jsonl": "".join(
        json.dumps({"question_id": i, "prompt": "Describe", "text": text, "model_id": "m"}) + "\n"
        for i, text in SAID.items()
    ),
}


@pytest.mark.parametrize("names", [IDS, {}], ids=["with names", "ids alone"])
@pytest.mark.parametrize("kind", KINDS)
def test_results_of_any_tool_are_the_same(tmp_path, kind, names):
    if not names and (IDS[391895] in KINDS[kind] or ".JPG" in KINDS[kind]):
        pytest.skip("names images by their files")
    (tmp_path / kind).write_text(KINDS[kind])
    found, missing, extra = match_results(SAID, read_results(tmp_path / kind), names, kind)
    assert (found, missing, extra) == (SAID, [], [])


def test_it_is_said_what_was_taken_for_what(tmp_path, capsys):
    for kind, says in (
        ("padded.json", "file name without its ending, such as '000000391895'"),
        ("nested.json", "order"),
    ):
        (tmp_path / kind).write_text(KINDS[kind])
        match_results(SAID, read_results(tmp_path / kind), IDS, kind)
        assert is_one_line(capsys.readouterr().err, kind, says)


def test_a_list_without_names_needs_as_many_images(tmp_path):
    (tmp_path / "nested.json").write_text(KINDS["nested.json"])
    refused(
        match_results, {1: "a"}, read_results(tmp_path / "nested.json"), says=["2 captions without names", "1 image"]
    )


def test_a_submission(cli, tmp_path, images):
    names = [path.name for path in images]
    info = {"images": [{"id": 10 + i, "file_name": name} for i, name in enumerate([*names, "other.jpg"])]}
    (tmp_path / "info.json").write_text(json.dumps(info))
    make_captioner().save(tmp_path / "model.safetensors")
    common = ("predict", *images, "--checkpoint", tmp_path / "model.safetensors", "--format", "coco")
    code, out, err = cli(*common, "--annotations", tmp_path / "info.json", "--output", tmp_path / "out.json")
    assert (code, out) == (0, "")
    assert "1 of 6 images without a caption" in err
    found = json.loads((tmp_path / "out.json").read_text())
    _, printed, _ = cli("predict", *images, "--checkpoint", tmp_path / "model.safetensors", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert found == [{"image_id": 10 + i, "caption": row["caption"]} for i, row in enumerate(rows)]
    code, _, err = cli(*common)
    assert (code, is_one_line(err, "--format coco", "--annotations")) == (2, True)
