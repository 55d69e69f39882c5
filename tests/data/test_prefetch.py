"""Batches read ahead: the same ones, in a thread beside the caller, never more than a few; errors reach the caller."""

import threading
import time

import numpy as np
import pytest
import torch
from helpers import refused

from captioner.data.features import read_rows
from captioner.data.prefetch import DEPTH, read_ahead
from captioner.errors import UserError

CPU = torch.device("cpu")


def test_the_same_batches_in_order():
    assert list(read_ahead(iter(range(1, 20)), CPU)) == list(range(1, 20))
    assert list(read_ahead(iter([]), CPU)) == []


def test_the_next_batches_are_read_while_one_is_used():
    read = []

    def batches():
        for number in range(1, 10):
            read.append((number, threading.current_thread()))
            yield number

    for number in read_ahead(batches(), CPU):
        until = time.monotonic() + 5
        while len(read) < min(9, number + DEPTH) and time.monotonic() < until:
            time.sleep(0.001)
        assert len(read) == min(9, number + DEPTH)
    assert threading.current_thread() not in {thread for _, thread in read}


def test_an_error_of_a_batch_reaches_the_caller_after_the_batches_before_it():
    def batches():
        yield 1
        raise UserError("broken")

    ahead = read_ahead(batches(), CPU)
    assert next(ahead) == 1
    with pytest.raises(UserError, match="broken"):
        next(ahead)


def test_no_thread_is_left_when_the_caller_stops():
    before = threading.active_count()
    ahead = read_ahead(iter(range(1, 100)), CPU)
    next(ahead)
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("shape", [(50, 8), (50, 4, 8)])
@pytest.mark.parametrize("rows", [[3], [], [7, 7, 0, 49, 12, 3]])
def test_rows_of_a_file(tmp_path, shape, rows):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    np.save(tmp_path / "features.npy", values)
    table = np.load(tmp_path / "features.npy", mmap_mode="r")
    found = read_rows(table, np.array(rows, dtype=np.int64))
    assert torch.equal(found, torch.from_numpy(values[rows]))


def test_a_file_cut_short_while_it_is_read(tmp_path):
    file = tmp_path / "features.npy"
    np.save(file, np.ones((50, 512), dtype=np.float16))
    table = np.load(file, mmap_mode="r")
    with open(file, "r+b") as opened:
        opened.truncate(1000)
    refused(
        lambda: read_rows(table, np.array([49])), says=[str(file), "the file is too short", "run the command again"]
    )


def test_a_row_of_zeros_is_refused(tmp_path):
    values = np.ones((50, 4, 8), dtype=np.float16)
    values[7] = 0
    np.save(tmp_path / "features.npy", values)
    table = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert read_rows(table, np.array([6, 8])).all()
    refused(lambda: read_rows(table, np.array([6, 7, 8])), says=["features.npy", "row 7", "zero", "delete"])
