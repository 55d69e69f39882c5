"""Download a known data set, resumably, check it and unpack it.

Example: captioner data fetch coco2017 --output data/coco2017

The licence is printed without a prompt. After Ctrl-C, a lost connection or a kill the same command continues the
download. docs/fetch.md lists the sizes.
"""

from __future__ import annotations

from typing import Any


def configure(parser: Any) -> None:
    """Declare the options: the parameters of :func:`captioner.datasets.fetch.fetch`."""
    from captioner.datasets.fetch import fetch

    parser.add_function_arguments(fetch, as_group=False, as_positional=True, skip={"mirror"})
    about = "addresses of folders with the zips, tried in turn instead of the original hosts"
    parser.add_argument("--mirror", nargs="+", type=str, help=about)


def run(options: Any) -> None:
    """Download."""
    from captioner.datasets.fetch import fetch

    fetch(**options.as_dict())
