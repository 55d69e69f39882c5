"""What is an address, and what is not."""

from pathlib import Path

import pytest

from captioner.data.addresses import is_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/a.tar", True),
        ("http://host:80/train-{000..009}.tar", True),
        ("HTTP://host/a.tar", True),
        ("s3://bucket/cat.jpg", True),
        ("file:///photos/cat.jpg", True),
        ("simplecache::https://host/a.tar", True),
        ("http://", True),
        ("C:/photos/cat.jpg", False),
        ("C://photos", False),
        ("photos/a://b.jpg", False),
        ("cat.jpg", False),
        ("", False),
    ],
)
def test_addresses(text, expected):
    assert is_address(text) == expected


def test_a_path_is_no_address():
    assert not is_address(Path("s3://bucket/cat.jpg"))  # which pathlib makes s3:/bucket/cat.jpg
