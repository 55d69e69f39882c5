"""Exports of labelling tools, each written by hand from its documentation."""

import json

import pytest
from helpers import draw, refused

from captioner.data.annotations import read_examples, read_references
from captioner.data.formats import detect_format

CAPTIONS = {"000.png": ("a red square", "a square"), "001.png": ("a circle",)}


def studio(name: str, texts: tuple[str, ...], number: int) -> dict:
    """https://labelstud.io/guide/export: JSON."""
    value = {"text": list(texts)}
    result = {
        "id": "x",
        "type": "textarea",
        "value": value,
        "to_name": "image",
        "from_name": "caption",
        "origin": "manual",
    }
    cancelled = {"id": 9, "was_cancelled": True, "result": [{"type": "textarea", "value": {"text": ["no"]}}]}
    data = {"image": f"/data/upload/1/{number:08x}-{name}"}
    return {"id": number, "annotations": [cancelled, {"id": 1, "result": [result]}], "data": data, "project": 1}


def studio_min(name: str, texts: tuple[str, ...], number: int) -> dict:
    """https://labelstud.io/guide/export: JSON_MIN; several texts are an object with a list."""
    said = texts[0] if len(texts) == 1 else {"text": list(texts), "type": "TextArea"}
    return {
        "image": f"/data/upload/1/{number:08x}-{name}",
        "id": number,
        "caption": said,
        "annotator": 1,
        "annotation_id": 5,
    }


def llava(name: str, text: str, number: int) -> dict:
    """https://github.com/haotian-liu/LLaVA: docs/Finetune_Custom_Data.md."""
    turns = [("human", "<image>\nDescribe it."), ("gpt", text), ("human", "What colour?"), ("gpt", "red")]
    return {"id": str(number), "image": name, "conversations": [{"from": who, "value": said} for who, said in turns]}


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <image id="0" name="000.png" width="32" height="32">
    <tag label="image" source="manual"><attribute name="caption">a red square</attribute></tag>
    <tag label="image" source="manual"><attribute name="caption">a square</attribute></tag>
    <box label="square" xtl="1" ytl="1" xbr="2" ybr="2"><attribute name="caption">no</attribute></box>
  </image>
  <image id="1" name="001.png" width="32" height="32">
    <tag label="image" source="manual"><attribute name="caption">a circle</attribute></tag>
  </image>
</annotations>"""
ALL = list(enumerate(CAPTIONS.items()))
FILES = {
    "label_studio": ("x.json", json.dumps([studio(*pair, i) for i, pair in ALL])),
    "table: JSON_MIN": ("x.json", json.dumps([studio_min(*pair, i) for i, pair in ALL])),
    "llava": ("x.json", json.dumps([llava(name, text, i) for i, (name, texts) in ALL for text in texts])),
    "cvat": ("x.xml", CVAT),
    "table: Roboflow": (
        "x.jsonl",  # PaliGemma's lines, as Roboflow exports captions
        "\n".join(
            json.dumps({"image": n, "prefix": "caption en", "suffix": t})
            for n, texts in CAPTIONS.items()
            for t in texts
        ),
    ),
    "table: AI Challenger": (
        "x.json",
        json.dumps([{"url": "http://x", "image_id": n, "caption": list(texts)} for n, texts in CAPTIONS.items()]),
    ),
    "coco: STAIR": (
        "x.json",
        json.dumps(
            {
                "images": [{"id": i, "file_name": name, "license": 1} for i, (name, _) in ALL],
                "annotations": [
                    {"id": 10 * i + n, "image_id": i, "caption": text, "tokenized_caption": text}
                    for i, (_, texts) in ALL
                    for n, text in enumerate(texts)
                ],
            }
        ),
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_captions_and_images_are_found(tmp_path, kind):
    for number, name in enumerate(CAPTIONS):
        draw(tmp_path / name, number)
    name, content = FILES[kind]
    (tmp_path / name).write_text(content)
    assert detect_format(tmp_path / name).name == kind.partition(":")[0]
    examples, problems = read_examples(tmp_path / name, tmp_path)
    assert problems == []
    assert {example.path.name: example.captions for example in examples} == CAPTIONS
    assert sorted(map(tuple, read_references(tmp_path / name, tmp_path).captions.values())) == sorted(CAPTIONS.values())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.xml", "<annotations><image", ["broken XML"]),
        ("x.xml", "<annotations/>", ["no <image>"]),
        ("x.xml", "<annotations><image id='0'/></annotations>", ["image 0: 'name' is missing"]),
        ("x.json", json.dumps([{"data": {}, "annotations": []}]), ["task 0", "no file name"]),
        ("x.json", json.dumps([studio("a.png", ("a",), 1), 5]), ["task 1", "the number 5"]),
    ],
)
def test_broken_exports_are_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    refused(read_examples, tmp_path / name, tmp_path, says=[name, *says])


def test_entities_do_not_grow(tmp_path):
    """The parser of Python refuses a billion laughs."""
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    (tmp_path / "x.xml").write_text(
        f'<!DOCTYPE a [<!ENTITY l0 "lol">{laughs}]><annotations><image name="&l9;"/></annotations>'
    )
    refused(read_examples, tmp_path / "x.xml", tmp_path, says=["x.xml", "broken XML"])
