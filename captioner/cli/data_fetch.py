"""Download a known data set, resumably, check it and unpack it.

Example: captioner data fetch coco2017 --output data/coco2017

The licence is printed, without a question. After Ctrl-C, a cut connection or a kill the same command continues the
download. docs/fetch.md has the sizes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from captioner.datasets.download import RETRIES, TIMEOUT
from captioner.errors import UserError


def data_fetch(
    name: Literal["coco2014", "coco2017", "karpathy", "flickr8k"],
    output: Path | None = None,
    mirror: list[str] | None = None,
    download_images: bool = True,
    keep_archives: bool = False,
    check_sums: bool = True,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> None:
    """Print the licence, download, and print the command that trains on the data set.

    Args:
        name: which data set; karpathy is COCO 2014 in the splits that papers use
        output: folder of the data set (default: data/NAME); karpathy and coco2014 may share one
        mirror: addresses of folders with the zips, tried in turn instead of the original hosts
        download_images: download the images, not only the captions
        keep_archives: keep the zips after unpacking
        check_sums: refuse a zip whose size or SHA-256 is not the known one
        timeout: seconds without a byte after which a connection counts as cut
        retries: attempts at a file in a row that bring no progress
    """
    from captioner.datasets.fetch import SETS, fetch

    if not 0 < timeout <= 86_400:
        raise UserError(f"--timeout is {timeout}: expected seconds, more than 0, up to 86400")
    if not 0 <= retries <= 1000:
        raise UserError(f"--retries is {retries}: expected 0 to 1000")
    print(f"{name}: {SETS[name].licence}", file=sys.stderr)
    output = output or Path("data", name)
    command = fetch(name, output, mirror or (), download_images, keep_archives, check_sums, timeout, retries)
    if download_images:
        print(command)
    else:
        print(f"{output}: the captions; for the images: captioner data fetch {name} --output {output}")


def configure(parser: Any) -> None:
    """Declare the options: the parameters of :func:`data_fetch`."""
    parser.add_function_arguments(data_fetch, as_group=False, as_positional=True, skip={"mirror"})
    about = "addresses of folders with the zips, tried in turn instead of the original hosts"
    parser.add_argument("--mirror", nargs="+", type=str, help=about)


def run(options: Any) -> None:
    """Download."""
    data_fetch(**options.as_dict())
