"""References: what is read, and what is refused in one line."""

import json

import pytest
from helpers import refused

from captioner.data.annotations import read_examples, read_references
from captioner.files import read_json
from captioner.metrics.result_files import read_results


def saved(folder, data):
    path = folder / "captions.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


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
def test_layouts_of_references(tmp_path, data):
    assert read_references(saved(tmp_path, data)).captions == {"3": ["a dog", "the dog"], "x9": ["a bird"]}
    if isinstance(data, list):
        lines = "\n".join(map(json.dumps, data))
        assert read_references(saved(tmp_path, lines)).captions == {"3": ["a dog", "the dog"], "x9": ["a bird"]}


def test_the_file_names_of_references(tmp_path):
    images = [{"id": 3, "file_name": "b.jpg"}, {"id": "x9", "file_name": "sub/c.jpg"}]
    annotations = [{"image_id": image["id"], "caption": "a"} for image in images]
    coco = saved(tmp_path, {"images": images, "annotations": annotations})
    assert read_references(coco).names == {3: "b.jpg", "x9": "sub/c.jpg"}
    rows = [{"image_id": 3, "file_name": "b.jpg", "caption": "a"}, {"image_id": 4, "file_name": None, "caption": "b"}]
    assert read_references(saved(tmp_path, rows)) == ({3: ["a"], 4: ["b"]}, {3: "b.jpg"})
    assert read_references(saved(tmp_path, {"b.jpg": ["a"]})) == ({"b.jpg": ["a"]}, {})


@pytest.mark.parametrize(
    "reader", [read_json, read_results, read_references, lambda path: read_examples(path, path.parent)]
)
def test_every_reader_refuses_broken_files_in_one_line(tmp_path, reader):
    path = tmp_path / "file.json"
    refused(reader, path, says=[str(path), "no such file"])
    says = "cannot be read" if reader in (read_json, read_results) else "no data set in this folder"
    refused(reader, tmp_path, says=[str(tmp_path), says])
    for content, says in {
        b"": "empty",
        b" \n": "empty",
        b'{"images": [\n  {"id" 1}]}': "line 2 column 9",
        b'{"images": [': "line 1 column 13",
        b"\xff\xfd": "UTF-8",
        b"[" * 200_000: "invalid JSON",
        b"1" * 5_000: "invalid JSON",
    }.items():
        path.write_bytes(content)
        refused(reader, path, says=[str(path), says])
