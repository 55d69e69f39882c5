"""The feature file: complete or absent, resumed after an interruption, never of another encoder."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import is_one_line

from captioner.data.features import FeatureFile, feature_folder, write_features
from captioner.errors import UserError

FINGERPRINT = {"encoder": "resnet18", "weights": "abc", "size": 32}
NAMES = [f"{i}.png" for i in range(10)]
VALUES = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float16)


def rows_from(first: int):
    """Blocks of three rows."""
    for i in range(first, 10, 3):
        yield VALUES[i : i + 3]


def never(first: int):
    pytest.fail(f"rows from {first} were computed again")


def stops_after(blocks: int):
    def rows(first: int):
        for n, block in enumerate(rows_from(first)):
            if n == blocks:
                raise KeyboardInterrupt
            yield block

    return rows


def part_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".part")


def interrupted(folder: Path, blocks: int = 2) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_features(folder, FINGERPRINT, NAMES, (4,), stops_after(blocks))
    assert not folder.exists()
    assert part_of(folder).exists()


def is_whole(folder: Path) -> bool:
    file = FeatureFile.open(folder, FINGERPRINT, (4,))
    assert isinstance(file.rows, np.memmap)
    assert file.rows.dtype == np.float16
    assert not part_of(folder).exists()
    assert sorted(path.name for path in folder.iterdir()) == ["features.npy", "index.json"]
    return file.names == NAMES and np.array_equal(file.rows, VALUES)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache" / "val-resnet18"


def test_written_once_and_read(folder):
    write_features(folder, FINGERPRINT, NAMES, (4,), rows_from)
    assert is_whole(folder)
    write_features(folder, FINGERPRINT, NAMES, (4,), never)


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_an_interrupted_run_is_resumed_where_it_stopped(folder, blocks):
    interrupted(folder, blocks)
    asked = []

    def rows(first):
        asked.append(first)
        return rows_from(first)

    write_features(folder, FINGERPRINT, NAMES, (4,), rows)
    assert asked == [3 * blocks]
    assert is_whole(folder)


def test_interrupted_again_and_again(folder):
    for _ in range(3):
        interrupted(folder, 1)
    write_features(folder, FINGERPRINT, NAMES, (4,), rows_from)
    assert is_whole(folder)


def test_stopped_before_the_renaming(folder, monkeypatch):
    """All rows are there, but the folder does not have its name yet."""
    replace = os.replace

    def stop(source, target):
        if Path(target) == folder:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("captioner.data.features.os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write_features(folder, FINGERPRINT, NAMES, (4,), rows_from)
    assert not folder.exists()
    write_features(
        folder, FINGERPRINT, NAMES, (4,), lambda first: rows_from(first) if first in (0, 10) else never(first)
    )
    assert is_whole(folder)


def test_a_killed_writer_is_resumed(folder):
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def rows(first):
        for n, block in enumerate(rows_from(first)):
            if n == 2:
                writer.send("two blocks")
                time.sleep(600)
            yield block

    process = context.Process(target=write_features, args=(folder, FINGERPRINT, NAMES, (4,), rows))
    process.start()
    assert reader.poll(60)
    process.kill()
    process.join()
    assert not folder.exists()
    write_features(folder, FINGERPRINT, NAMES, (4,), lambda first: rows_from(first) if first == 6 else never(first))
    assert is_whole(folder)


@pytest.mark.parametrize("names", [NAMES[:9], [*NAMES[:9], "other.png"]])
def test_the_part_of_other_images_is_not_resumed(folder, names):
    interrupted(folder)
    write_features(
        folder, FINGERPRINT, names, (4,), lambda first: [VALUES[: len(names)]] if first == 0 else never(first)
    )
    assert FeatureFile.open(folder, FINGERPRINT, (4,)).names == names


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


PART_DAMAGE = {
    "index broken": lambda part: (part / "index.json").write_text("{"),
    "index missing": lambda part: (part / "index.json").unlink(),
    "progress empty": lambda part: (part / "progress").write_text(""),
    "progress no number": lambda part: (part / "progress").write_text("many"),
    "progress too far": lambda part: (part / "progress").write_text("11"),
    "features missing": lambda part: (part / "features.npy").unlink(),
    "features empty": lambda part: (part / "features.npy").write_bytes(b""),
    "features no array": lambda part: (part / "features.npy").write_bytes(b"not an array"),
    "features cut short": lambda part: truncated(part / "features.npy"),
    "features of another shape": lambda part: np.save(part / "features.npy", VALUES[:, :2]),
}


@pytest.mark.parametrize("damage", PART_DAMAGE)
def test_a_damaged_part_is_replaced(folder, damage):
    interrupted(folder)
    PART_DAMAGE[damage](part_of(folder))
    write_features(folder, FINGERPRINT, NAMES, (4,), lambda first: rows_from(first) if first == 0 else never(first))
    assert is_whole(folder)


def test_an_unreadable_image_is_a_row_of_nan(folder):
    def rows(first):
        block = VALUES.copy()
        block[[2, 7]] = np.nan
        return [block]

    write_features(folder, FINGERPRINT, NAMES, (4,), rows)
    assert FeatureFile.open(folder, FINGERPRINT, (4,)).unreadable.nonzero()[0].tolist() == [2, 7]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"encoder": "resnet50"}, ["encoder resnet18 there, resnet50 here"]),
        ({"weights": "xyz", "size": 64}, ["weights abc there, xyz here", "size 32 there, 64 here"]),
        ({"dtype": "float16"}, ["dtype None there, float16 here"]),
    ],
)
def test_features_of_another_encoder_are_refused(folder, other, says):
    write_features(folder, FINGERPRINT, NAMES, (4,), rows_from)
    with pytest.raises(UserError) as caught:
        FeatureFile.open(folder, {**FINGERPRINT, **other}, (4,))
    assert is_one_line(str(caught.value), str(folder), *says)
    same = [key for key in FINGERPRINT if key not in other]
    assert not any(f"{key} {FINGERPRINT[key]} there" in str(caught.value) for key in same)


WHOLE_DAMAGE = {
    "index missing": lambda folder: (folder / "index.json").unlink(),
    "index no object": lambda folder: (folder / "index.json").write_text("[]"),
    "features missing": lambda folder: (folder / "features.npy").unlink(),
    "features empty": lambda folder: (folder / "features.npy").write_bytes(b""),
    "features cut short": lambda folder: truncated(folder / "features.npy"),
    "features of fewer images": lambda folder: np.save(folder / "features.npy", VALUES[:5]),
    "features pickled": lambda folder: np.save(folder / "features.npy", np.array([None] * 10), allow_pickle=True),
}


@pytest.mark.parametrize("damage", WHOLE_DAMAGE)
def test_a_damaged_file_is_refused(folder, damage):
    write_features(folder, FINGERPRINT, NAMES, (4,), rows_from)
    WHOLE_DAMAGE[damage](folder)
    with pytest.raises(UserError) as caught:
        FeatureFile.open(folder, FINGERPRINT, (4,))
    assert is_one_line(str(caught.value), str(folder), "delete it to have it made again")


def test_one_writes_and_the_others_wait(folder):
    begun, go_on = threading.Event(), threading.Event()

    def slow(first):
        begun.set()
        assert go_on.wait(60)
        return rows_from(first)

    writer = threading.Thread(target=write_features, args=(folder, FINGERPRINT, NAMES, (4,), slow))
    calls = []
    waiting = threading.Thread(
        target=write_features, args=(folder, FINGERPRINT, NAMES, (4,), lambda first: calls.append(first) or [])
    )
    writer.start()
    assert begun.wait(60)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert not folder.exists()
    go_on.set()
    writer.join(60)
    waiting.join(60)
    assert not writer.is_alive()
    assert not waiting.is_alive()
    assert not calls
    assert is_whole(folder)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("here already")
    with pytest.raises(UserError) as caught:
        write_features(tmp_path / "file" / "cache" / "val", FINGERPRINT, NAMES, (4,), rows_from)
    assert is_one_line(str(caught.value), str(tmp_path / "file" / "cache" / "val"), "--data.feature_cache")


def test_a_full_disk(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("captioner.data.features.np.lib.format.open_memmap", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_features(folder, FINGERPRINT, NAMES, (4,), rows_from)


def test_an_error_of_the_images_is_not_blamed_on_the_disk(folder):
    def broken(first):
        raise UserError("7.png is broken")
        yield

    with pytest.raises(UserError, match=r"^7.png is broken$"):
        write_features(folder, FINGERPRINT, NAMES, (4,), broken)


def test_the_name_of_the_folder_depends_on_the_whole_fingerprint(tmp_path):
    folders = {
        feature_folder(tmp_path, "val", {**FINGERPRINT, **other})
        for other in ({}, {"encoder": "resnet50"}, {"weights": "x"}, {"size": 64}, {"more": 1})
    }
    assert len(folders) == 5
    again = dict(reversed(list(FINGERPRINT.items())))
    assert feature_folder(tmp_path, "val", again) in folders
    assert all(folder.parent == tmp_path and folder.name.startswith("val-") for folder in folders)
