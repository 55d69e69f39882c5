"""What is an address, and what is not."""

from pathlib import Path

import pytest

from captioner.data.addresses import is_address, is_http


@pytest.mark.parametrize(
    ("text", "address", "http"),
    [
        ("https://host/a.tar", True, True),
        ("http://host:80/train-{000..009}.tar", True, True),
        ("HTTP://host/a.tar", True, True),
        ("s3://bucket/cat.jpg", True, False),
        ("file:///photos/cat.jpg", True, False),
        ("simplecache::https://host/a.tar", True, False),
        ("http://", True, False),
        ("C:/photos/cat.jpg", False, False),
        ("C://photos", False, False),
        ("photos/a://b.jpg", False, False),
        ("cat.jpg", False, False),
        ("", False, False),
    ],
)
def test_addresses(text, address, http):
    assert (is_address(text), is_http(text)) == (address, http)


def test_a_path_is_no_address():
    assert not is_address(Path("s3://bucket/cat.jpg"))  # which pathlib makes s3:/bucket/cat.jpg
