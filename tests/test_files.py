"""JSON files: read with one-line errors, written whole or not at all."""

import os

import pytest
import yaml
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from captioner.files import check_yaml, read_json, write_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 1", "line 3: a occurs twice, first in line 1"),
        ("a: {b: 1}\nc: 1\na: {d: 1}", "line 3: a occurs twice"),
        ("a: {b: 1}\na.b: 2", "line 2: a.b occurs twice"),
        ('{"a": 1, "a": 2}', "line 1: a occurs twice"),
        ("a:\n- b: 1\n  c: 2\n  b: 3", "line 4: a.0.b occurs twice, first in line 2"),
        ("a: &x 1\nb: *x", r"line 2: \*x: write the value itself"),
        ("[" * 21 + "]" * 21, "nested more than 20 deep"),
        ("a: 1\n---\na: 2", "line 2: another document begins"),
    ],
)
def test_yaml_that_is_refused(text, says):
    with pytest.raises(yaml.YAMLError, match=says):
        check_yaml(text)


@pytest.mark.parametrize(
    "text", ["", "3", "a: {b: 1}\nc: {b: 2}", "- a: 1\n- a: 2", "a.b: 1\na.c: 2", "[" * 20 + "]" * 20]
)
def test_yaml_that_is_not(text):
    check_yaml(text)
