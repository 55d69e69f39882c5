"""A folder of parts: whole or absent, completed by any number of runs, and never mixed with another run's."""

import contextlib
import json
import os
import pathlib

import pytest
from helpers import is_one_line

from captioner.errors import UserError
from captioner.inference.parts import PartFolder

ITEMS = [f"image {n}.png" for n in range(10)]
SETTINGS = {"beam": 5, "checkpoint": "abc", "must": ""}


def records_of(items):
    for item in items:
        yield {"image": item, "caption": f"ein Mädchen, {item}"}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def make(folder, caption=records_of, size=3, items=ITEMS, **settings):
    parts = PartFolder(folder, items, size, {**SETTINGS, **settings})
    with parts.open():
        parts.write_each(parts.missing(), caption)
    return parts


@pytest.fixture
def whole(tmp_path):
    make(tmp_path / "whole")
    return contents(tmp_path / "whole")


@pytest.mark.parametrize("size", [1, 3, 5, 10, 11])
def test_records_come_in_order(tmp_path, size):
    parts = make(tmp_path / "new" / "parts", size=size)
    assert list(parts.records()) == list(records_of(ITEMS))
    assert len(parts) == len(list((tmp_path / "new" / "parts").glob("part-*.jsonl"))) == -(-10 // size)
    assert parts.missing() == []


def test_nothing_to_do(tmp_path):
    parts = make(tmp_path / "parts", items=[])
    assert (len(parts), parts.missing(), list(parts.records())) == (0, [], [])


@pytest.mark.parametrize("after", range(10))
def test_a_run_killed_at_any_image_is_completed(tmp_path, whole, after):
    def caption(items):
        for n, record in enumerate(records_of(items)):
            if n == after:
                raise KeyboardInterrupt
            yield record

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", caption)
    left = PartFolder(tmp_path / "parts", ITEMS, 3, SETTINGS).missing()
    assert left == list(range(after // 3, 4))
    seen = []
    make(tmp_path / "parts", lambda items: seen.extend(items) or records_of(items))
    assert seen == ITEMS[after // 3 * 3 :]  # what was done is not done again
    assert contents(tmp_path / "parts") == whole


@pytest.mark.parametrize("deleted", range(7))
def test_a_run_killed_while_it_deletes_its_parts_is_completed(tmp_path, whole, monkeypatch, deleted):
    """A process that ends after any deletion leaves a folder of this run, or none."""
    parts, unlink, count = make(tmp_path / "parts"), os.unlink, iter(range(100))

    def killed(path, **more):
        if next(count) == deleted:
            raise KeyboardInterrupt
        return unlink(path, **more)

    monkeypatch.setattr(os, "unlink", killed)
    monkeypatch.setattr(pathlib.Path, "unlink", lambda path, missing_ok=False: killed(path))
    with contextlib.suppress(KeyboardInterrupt):
        parts.remove()
    monkeypatch.undo()
    make(tmp_path / "parts")
    assert contents(tmp_path / "parts") == whole
    parts.remove()
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("write", range(5))
def test_a_run_killed_while_it_writes_is_completed(tmp_path, whole, monkeypatch, write):
    """The manifest and the four parts: killed with the text written and the name not yet given."""
    calls, replace = [], os.replace

    def killed(source, target):
        calls.append(target)
        if len(calls) == write + 1:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts")
    monkeypatch.undo()
    assert contents(tmp_path / "parts").items() < whole.items()
    make(tmp_path / "parts")
    assert contents(tmp_path / "parts") == whole


def test_killed_again_and_again(tmp_path, whole):
    def one(items):
        yield from list(records_of(items))[:3]
        raise KeyboardInterrupt

    for n in range(3):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "parts", one)
        assert PartFolder(tmp_path / "parts", ITEMS, 3, SETTINGS).missing() == list(range(n + 1, 4))
    make(tmp_path / "parts")
    assert contents(tmp_path / "parts") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam": 3}, "beam 5 there, 3 here"),
        ({"checkpoint": "def"}, "checkpoint 'abc' there, 'def' here"),
        ({"more": 1}, "more None there, 1 here"),
        ({"size": 4}, "part_size 3 there, 4 here"),
        ({"items": ITEMS[1:]}, "images 10 there, 9 here"),
        ({"items": ITEMS[::-1]}, "their names"),
    ],
    ids=str,
)
def test_parts_of_another_run_are_refused_by_name(tmp_path, whole, change, message):
    with pytest.raises(UserError) as error:
        make(tmp_path / "whole", **change)
    assert is_one_line(str(error.value), str(tmp_path / "whole"), message, "delete it")
    assert contents(tmp_path / "whole") == whole


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear")
    with pytest.raises(UserError, match=r"letter\.txt"):
        make(tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_text("[1")
    with pytest.raises(UserError, match="not a manifest"):
        make(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written"):
        make(tmp_path / "mine" / "letter.txt" / "parts")
    assert len(contents(tmp_path / "mine")) == 2


def test_two_runs_at_once_are_refused(tmp_path):
    parts = PartFolder(tmp_path / "parts", ITEMS, 3, SETTINGS)
    with parts.open(), pytest.raises(UserError, match="another run"):
        make(tmp_path / "parts")
    make(tmp_path / "parts")


@pytest.mark.parametrize("damage", [lambda text: text[:-5], lambda text: "", lambda text: text + "{}\n"])
def test_a_damaged_part_is_named(tmp_path, damage):
    parts = make(tmp_path / "parts")
    file = tmp_path / "parts" / "part-000001.jsonl"
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=r"part-000001\.jsonl is damaged"):
        list(parts.records())
    file.unlink()
    make(tmp_path / "parts")
    assert list(parts.records()) == list(records_of(ITEMS))


def test_odd_names(tmp_path):
    items = ["line\nbreak.png", os.fsdecode(b"latin-\xe9.png"), "\u2028.png"]
    parts = make(tmp_path / "parts", items=items, size=2)
    assert [record["image"] for record in parts.records()] == items
    assert json.loads((tmp_path / "parts" / "manifest.json").read_text())["images"] == 3
