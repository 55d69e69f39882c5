"""The exports of labelling tools, and of data for instruction tuning, as entries of captioned images."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from captioner.data.entries import CAPTION_KEYS, FILE_KEYS, Entries, Entry, Problem, caption_list, first_key
from captioner.data.images import is_image_name
from captioner.errors import UserError
from captioner.files import json_type, read_text


def is_label_studio(first: Any) -> bool:
    """Whether the first entry of a JSON list is a task of Label Studio's JSON; its JSON_MIN is a table."""
    return (
        isinstance(first, dict) and isinstance(first.get("data"), dict) and isinstance(first.get("annotations"), list)
    )


def read_label_studio(path: Path, data: list[Any]) -> Entries:
    """Label Studio's JSON (https://labelstud.io/guide/export): the texts of all text areas of a task are captions.

    {"id": 1, "data": {"image": "/data/upload/1/0f3a-dog.jpg"},
     "annotations": [{"result": [{"type": "textarea", "value": {"text": ["a dog"]}}]}]}
    """
    entries = []
    for position, task in enumerate(data):
        where = f"{path}: task {position}"
        if not is_label_studio(task):
            raise UserError(f"{where}: expected an object with 'data' and 'annotations', found {json_type(task)}")
        given = task["data"]
        key = first_key(FILE_KEYS, given) or next((k for k, v in given.items() if is_image_name(str(v))), None)
        if key is None or not isinstance(given[key], str):
            raise UserError(f"{where}: its 'data' has no file name of an image among {', '.join(map(repr, given))}")
        results = [
            result
            for note in task["annotations"]
            if isinstance(note, dict) and not note.get("was_cancelled") and isinstance(note.get("result"), list)
            for result in note["result"]
        ]
        texts = [
            caption_list(f"{where}: 'text'", result["value"]["text"])
            for result in results
            if isinstance(result, dict) and isinstance(result.get("value"), dict) and "text" in result["value"]
        ]
        entries.append(Entry(None, where, (given[key],), tuple(itertools.chain.from_iterable(texts))))
    return Entries(entries, [])


def is_llava(first: Any) -> bool:
    """Whether the first entry of a JSON list is a conversation about an image, as LLaVA is trained on."""
    return (
        isinstance(first, dict) and isinstance(first.get("conversations"), list) and bool(first_key(FILE_KEYS, first))
    )


def read_llava(path: Path, data: list[Any]) -> Entries:
    """Conversations of LLaVA (https://github.com/haotian-liu/LLaVA): the first answer about an image is its caption.

    {"id": "1", "image": "dog.jpg", "conversations": [{"from": "human", "value": "<image>\\nDescribe it."},
                                                      {"from": "gpt", "value": "a dog"}]}
    """
    entries, problems = [], []
    for position, each in enumerate(data):
        where = f"{path}: conversation {position}"
        key = first_key(FILE_KEYS, each) if isinstance(each, dict) else None
        if key is None or not isinstance(each[key], str) or not isinstance(each.get("conversations"), list):
            problems.append(Problem("conversation without an image", f"{where} has no image"))
            continue
        turns = [
            turn
            for turn in each["conversations"]
            if isinstance(turn, dict) and turn.get("from") in ("gpt", "assistant")
        ]
        answers = [turn["value"] for turn in turns[:1] if isinstance(turn.get("value"), str)]
        entries.append(Entry(None, where, (each[key],), tuple(answers)))
    return Entries(entries, problems)


def read_cvat(path: Path) -> Entries:
    """CVAT for images 1.1 (https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/), an XML.

    The captions of an image are the attributes of its tags that have a usual name, such as caption, or else all
    attributes of tags with such a label::

        <image id="0" name="dog.jpg"><tag label="image"><attribute name="caption">a dog</attribute></tag></image>
    """
    try:
        root = ElementTree.fromstring(read_text(path, "XML"))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: broken XML: {error}; the file may be cut short") from None
    entries = []
    for position, image in enumerate(root.iter("image")):
        name = image.get("name")
        if name is None:
            raise UserError(f"{path}: image {position}: 'name' is missing, expected a file name")
        named = [
            (str(tag.get("label")), str(one.get("name")), (one.text or "").strip())
            for tag in image.iter("tag")
            for one in tag.iter("attribute")
        ]
        captions = [text for _, key, text in named if key.lower() in CAPTION_KEYS]
        captions = captions or [text for label, _, text in named if label.lower() in CAPTION_KEYS]
        entries.append(Entry(None, f"{path}: image {position}", (name,), tuple(captions)))
    if not entries:
        raise UserError(f"{path}: has no <image>: expected CVAT for images 1.1")
    return Entries(entries, [])
