"""Images at addresses, in Parquet files and on lists: found and opened."""

import pickle
import sys

import pytest
from helpers import is_one_line

from captioner.data.addresses import RemoteImage
from captioner.data.dataset import read_images
from captioner.data.images import ImageError, open_image
from captioner.data.inputs import find_inputs
from captioner.data.parquet import BATCH
from captioner.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def pixels(items):
    return [batch.tolist() for batch, errors in read_images(items, 32, 2)]


@pytest.fixture
def folder(images):
    return images[0].parent


def table(path, values, name="image", **options):
    pq.write_table(pa.table({"id": list(range(len(values))), name: values}), path, **options)
    return str(path)


def test_files_as_before(images, folder):
    assert find_inputs([str(folder), str(images[0]), "missing.png"]) == [*images, type(folder)("missing.png")]


def test_lists(images, folder, tmp_path):
    (tmp_path / "list.txt").write_text(f"{images[3]}\n\n{folder}\n")
    assert find_inputs([f"@{tmp_path}/list.txt"]) == [images[3], *images[:3], images[4]]
    with pytest.raises(UserError, match=r"@.*gone\.txt"):
        find_inputs([f"@{tmp_path}/gone.txt"])


def test_addresses(images, folder):
    """Of a folder, a pattern and a file, by the file system that needs no server."""
    expected = [RemoteImage(f"file://{path}") for path in images]
    assert find_inputs([f"file://{folder}"]) == expected
    assert find_inputs([f"file://{folder}/*.png"]) == expected
    assert find_inputs([f"file://{images[1]}", f"file://{folder}"]) == [expected[1], expected[0], *expected[2:]]
    assert pixels(expected) == pixels(images)
    assert pixels(pickle.loads(pickle.dumps(expected))) == pixels(images)


@pytest.mark.parametrize(
    ("name", "says"), [("file:///nowhere/at/all/*.png", "no image"), ("abacus://a/*.png", "abacus")]
)
def test_addresses_without_images(name, says):
    with pytest.raises(UserError) as error:
        find_inputs([name])
    assert is_one_line(str(error.value), says)


def test_a_missing_remote_image_is_an_error_when_it_is_opened():
    (item,) = find_inputs(["file:///nowhere/cat.png"])
    with pytest.raises(ImageError, match=r"file:///nowhere/cat\.png: no such file"):
        open_image(item)


def test_s3_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[s3\]'"):
        find_inputs(["s3://bucket/folder/"])


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.struct({"bytes": pa.binary(), "path": pa.string()})]
)
def test_parquet_of_bytes(images, tmp_path, kind):
    values = [path.read_bytes() for path in images]
    if pa.types.is_struct(kind):
        values = [{"bytes": value, "path": "a.png"} for value in values]
    file = table(tmp_path / "a.parquet", pa.array(values, kind), row_group_size=2)
    items = find_inputs([file])
    assert [str(item) for item in items] == [f"{file}#{n}" for n in range(5)]
    assert pixels(items) == pixels(images)
    assert pixels(items[::-1]) == pixels(images[::-1])  # slow, but right
    assert find_inputs([f"file://{file}", f"{tmp_path}/*.parquet"])[5:] == items
    assert pixels(find_inputs([f"file://{file}"])) == pixels(images)


def test_any_row_in_any_order(tmp_path):
    count = 3 * BATCH + 5
    file = table(tmp_path / "a.parquet", [str(n).encode() for n in range(count)], row_group_size=2 * BATCH)
    items = find_inputs([file])
    mixed = [count - 1, 0, 5, 5, 4, BATCH, 2 * BATCH, BATCH - 1, 2 * BATCH - 1]
    for order in (range(count), range(0, count, 7), mixed):
        assert [items[n].open().read() for n in order] == [str(n).encode() for n in order]
    table(tmp_path / "a.parquet", [b"0"])  # another file in its place
    with pytest.raises(UserError, match=f"#{count - 1}: cannot be read"):
        items[-1].open()


def test_parquet_of_paths(images, tmp_path):
    file = table(tmp_path / "a.parquet", [str(images[0]), f"file://{images[1]}", None], "path")
    assert [str(item) for item in find_inputs([file], column="path")] == [
        str(images[0]),
        f"file://{images[1]}",
        f"{file}#null",
    ]


def test_bad_images_of_a_parquet_file(tmp_path):
    items = find_inputs([table(tmp_path / "a.parquet", pa.array([b"no image", None, b""], pa.binary()))])
    ((_, errors),) = read_images(items, 32, 4)
    assert all(f"a.parquet#{n}: " in str(error) for n, error in enumerate(errors))
    assert len(errors) == 3


@pytest.mark.parametrize(
    ("column", "says"),
    [("photo", ["no column 'photo'", "--column", "id, image"]), ("id", ["column id holds int64"])],
)
def test_columns_without_images(tmp_path, column, says):
    file = table(tmp_path / "a.parquet", [b"x"])
    with pytest.raises(UserError) as error:
        find_inputs([file], column=column)
    assert is_one_line(str(error.value), file, *says)


def test_invalid_and_missing_parquet_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"letter")
    for name in ("a.parquet", "gone.parquet"):
        with pytest.raises(UserError) as error:
            find_inputs([str(tmp_path / name)])
        assert is_one_line(str(error.value), name)


def test_clips_are_files(tmp_path):
    file = table(tmp_path / "a.parquet", [b"x"])
    with pytest.raises(UserError, match=r"model\.frames"):
        find_inputs([file], clips=True)
