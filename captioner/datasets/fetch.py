"""Known data sets: downloaded, checked, unpacked, and their splits written as COCO captions."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from captioner.data.formats import Entry, read_flickr, read_karpathy
from captioner.datasets.download import RETRIES, TIMEOUT, check_free_space, download, partial_size, verify
from captioner.errors import UserError
from captioner.files import read_json, read_text, write_json
from captioner.progress import Bar

JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")  # files that archivers of other systems add to zips
MAX_RATIO = 100  # of the unpacked size to the size of a zip; the annotations of COCO have 4, Karpathy's about 5
COCO = (
    "the annotations of COCO are CC BY 4.0; its photographs belong to users of Flickr, whose terms apply: "
    "https://cocodataset.org/#termsofuse"
)


@dataclass(frozen=True)
class Archive:
    """A zip of a data set."""

    url: str
    size: int  # bytes
    unpacked: int  # bytes of its files, rounded up
    contains: str  # the beginning or end of some member's name
    images: bool = False  # whether it has images rather than captions

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class DataSet:
    """The archives of a data set, its licence, and the places of its splits below the folder of the set."""

    archives: tuple[Archive, ...]
    licence: str
    train: tuple[str, str]  # the annotations file and the folder of images
    val: tuple[str, str]
    # Reads the name and the entries of each split, where the annotations of the set are not COCO captions
    splits: Callable[[Path], Iterator[tuple[str, list[Entry]]]] | None = None


def fetch(
    name: Literal["coco2014", "coco2017", "karpathy", "flickr8k"],
    output: str | Path | None = None,
    mirror: list[str] | None = None,
    download_images: bool = True,
    keep_archives: bool = False,
    check_sums: bool = True,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> None:
    """Fetch one of SETS, and print its licence and the command that trains on it.

    Complete files in the folder stay; partial downloads are continued.

    Args:
        name: which data set; karpathy is COCO 2014 in the splits that papers use
        output: folder of the data set (default: data/NAME); karpathy and coco2014 may share one
        mirror: addresses of folders with the zips, tried in turn instead of the original hosts
        download_images: download the images, not only the captions
        keep_archives: keep the zips after unpacking
        check_sums: refuse a zip whose size or SHA-256 differs from the known one
        timeout: seconds without a byte after which a connection counts as lost
        retries: attempts at a file in a row without progress
    """
    from filelock import FileLock, Timeout

    if not 0 < timeout <= 86_400:
        raise UserError(f"--timeout is {timeout}: expected seconds, more than 0, up to 86400")
    if not 0 <= retries <= 1000:
        raise UserError(f"--retries is {retries}: expected 0 to 1000")
    for url in mirror or ():
        if not re.match("https?://[^/]", url, re.IGNORECASE):
            raise UserError(f"--mirror is {url!r}: expected the address of a folder, such as https://host/coco")
    known, out = SETS[name], Path(output or Path("data", name))
    print(f"{name}: {known.licence}", file=sys.stderr)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".fetch.lock", timeout=0):
            wanted = [archive for archive in known.archives if download_images or not archive.images]
            missing = [archive for archive in wanted if not _is_unpacked(archive, out)]
            _check_space_for(missing, out, keep_archives)
            for archive in missing:
                urls = [f"{base.rstrip('/')}/{archive.name}" for base in mirror or ()] or [archive.url]
                _fetch_archive(archive, out, urls, check_sums, timeout, retries)
                if not keep_archives:
                    (out / archive.name).unlink()
            write_splits(name, out)
    except Timeout:
        raise UserError(f"{out}: another process is fetching into it; wait, or choose another --output") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}; choose another --output") from None
    if not download_images:
        print(f"{out}: the captions; for the images: captioner data fetch {name} --output {out}")
        return
    words = ["captioner", "train"]
    for split, (captions, images) in (("train", known.train), ("val", known.val)):
        words += [f"--data.{split}", str(out / captions), f"--data.{split}_images", str(out / images)]
    print(shlex.join([*words, "--output", f"runs/{name}"]))


def _file_list(archive: Archive, out: Path) -> Path:
    """The sizes by name of the files of an archive, written when all are unpacked."""
    return out / f".{archive.name}.json"


def _is_unpacked(archive: Archive, out: Path) -> bool:
    """Whether all files of an archive exist with their sizes; prints a line if any do."""
    if not _file_list(archive, out).exists():
        return False
    sizes = read_json(_file_list(archive, out))
    absent = sum(not ((out / name).is_file() and (out / name).stat().st_size == size) for name, size in sizes.items())
    again = f"{absent:,} of its files are missing or changed; fetching it again"
    print(f"{archive.name}: {again if absent else f'already unpacked in {out}'}", file=sys.stderr)
    return not absent


def _check_space_for(archives: Sequence[Archive], out: Path, keep_archives: bool) -> None:
    sizes = [0 if (out / one.name).exists() else max(one.size - partial_size(out / one.name), 0) for one in archives]
    zips = sum(sizes) if keep_archives else max(sizes, default=0)  # otherwise one zip at a time
    unpacked = sum(archive.unpacked for archive in archives)
    check_free_space(out, zips + unpacked, "the download and its unpacked files")


def _fetch_archive(
    archive: Archive, out: Path, urls: Sequence[str], check_sums: bool, timeout: float, retries: int
) -> None:
    """Download an archive unless the zip exists, check and unpack it."""
    path = out / archive.name
    sha256 = SHA256.get(archive.name) if check_sums else None
    size = archive.size if sha256 else None
    by_hand = path.exists()
    if by_hand:
        print(f"{path}: already there", file=sys.stderr)
        try:
            verify(path, size, sha256)
        except UserError as error:
            raise UserError(f"{error}; remove it and fetch again") from None
    else:
        try:
            download(urls, path, size, sha256, timeout, retries)
        except KeyboardInterrupt:
            kept = f"{partial_size(path):,} bytes are kept, and the same command continues from there"
            print(f"{path.name}: {kept}", file=sys.stderr)
            raise
    try:
        files = unpack(path, out, archive.contains)
    except BrokenZip as error:
        if not by_hand:
            path.unlink()
        raise UserError(f"{error}; {'remove it and' if by_hand else 'it was removed:'} fetch again") from None
    write_json(_file_list(archive, out), files)


class BrokenZip(Exception):
    """A zip that is damaged, or that would write outside of its folder. One line."""


def unpack(path: Path, out: Path, contains: str = "") -> dict[str, int]:
    """Unpack a zip: to a temporary folder, where every checksum is tested, then file by file to `out`.

    Folders in `out` are merged, files replaced. `contains` is the beginning or end of some member's name.

    Returns:
        The size in bytes of every file, by its path below `out`.

    Raises:
        BrokenZip: damaged, encrypted, without `contains`, a member leaves the folder or is a link, or it unpacks to
            more than MAX_RATIO times its size. Nothing was unpacked.
        UserError: the disk is full.
    """
    temporary = out / f".{path.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        with zipfile.ZipFile(path) as zipped:
            members = [one for one in zipped.infolist() if not any(part in JUNK for part in one.filename.split("/"))]
            _check_members(path, members, contains)
            check_free_space(out, sum(member.file_size for member in members), f"unpacking {path.name}")
            temporary.mkdir()
            for member in Bar(members, f"unpacking {path.name}", unit="files"):
                zipped.extract(member, temporary)
        shutil.copytree(temporary, out, dirs_exist_ok=True, copy_function=os.replace)
    except (UserError, BrokenZip):
        raise
    except shutil.Error as error:  # of copytree: a list of (source, target, reason)
        raise UserError(f"{path}: cannot be unpacked: {error.args[0][0][2]}") from None
    except OSError as error:
        if error.errno is None or error.strerror == "Invalid argument":  # a position outside of the file
            raise BrokenZip(f"{path}: damaged: {error}") from None
        raise UserError(f"{path}: cannot be unpacked: {error.strerror}: {error.filename or out}") from None
    except Exception as error:  # zipfile and the decompressors raise nearly anything for a damaged zip
        raise BrokenZip(f"{path}: not a whole zip: {error or type(error).__name__}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {member.filename: member.file_size for member in members if not member.is_dir()}


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo], contains: str) -> None:
    """Raise BrokenZip if the zip must not be unpacked."""
    for member in members:
        parts = member.filename.removesuffix("/").split("/")
        if "\\" in member.filename or ":" in parts[0] or any(part in ("", "..") for part in parts):
            raise BrokenZip(f"{path}: the member {member.filename!r} leaves the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BrokenZip(f"{path}: the member {member.filename!r} is a link")
    if not any(member.filename.startswith(contains) or member.filename.endswith(contains) for member in members):
        raise BrokenZip(f"{path}: has no {contains}: another zip")
    total, size = sum(member.file_size for member in members), path.stat().st_size
    if total > MAX_RATIO * size:
        raise BrokenZip(f"{path}: would unpack to {total:,} bytes, {total // size:,} times its size")


def write_splits(name: str, out: Path) -> None:
    """Write captions_train.json, captions_val.json and captions_test.json of a set that has its own format."""
    splits = SETS[name].splits
    try:
        for split, entries in splits(out) if splits else ():
            pairs = [(entry.image_id, caption) for entry in entries for caption in entry.captions]
            images = [{"id": entry.image_id, "file_name": entry.names[0]} for entry in entries]
            rows = [{"id": n, "image_id": image, "caption": caption} for n, (image, caption) in enumerate(pairs)]
            write_json(out / f"captions_{split}.json", {"images": images, "annotations": rows})
    except (UserError, OSError, LookupError, TypeError, ValueError) as error:
        reason = error if isinstance(error, UserError) else repr(error)
        raise UserError(f"{out}: its annotations are not those of {name} ({reason}): another zip") from None


def _karpathy(out: Path) -> Iterator[tuple[str, list[Entry]]]:
    """The splits of Karpathy; train is train and restval, as in papers."""
    path = out / "dataset_coco.json"
    data = read_json(path)
    for split in ("train", "val", "test"):
        yield split, read_karpathy(path, data, split).entries


def _flickr8k(out: Path) -> Iterator[tuple[str, list[Entry]]]:
    """The splits of Flickr8k, each in the order of its list of names."""
    tokens = min(out.rglob("Flickr8k.token.txt"))
    entries = {entry.names[0]: entry for entry in read_flickr(tokens).entries}
    for split, listed in (("train", "train"), ("val", "dev"), ("test", "test")):
        names = read_text(tokens.with_name(f"Flickr_8k.{listed}Images.txt"), "text").split()
        yield split, [replace(entries[name], image_id=number) for number, name in enumerate(names)]


# Sizes and digests are those that TensorFlow Datasets publishes (url_checksums/coco.txt, coco_captions.txt); the hosts
# publish none. For Flickr8k's zips none are published: their sizes are rounded, and they have no digests.
SHA256 = {
    "annotations_trainval2014.zip": "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    "annotations_trainval2017.zip": "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    "train2014.zip": "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    "val2014.zip": "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    "train2017.zip": "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    "val2017.zip": "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    "caption_datasets.zip": "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
}
_COCO = "http://images.cocodataset.org"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent"
_FLICKR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"


def _coco_images(folder: str, size: int, unpacked: int) -> Archive:
    return Archive(f"{_COCO}/zips/{folder}.zip", size, unpacked, f"{folder}/", images=True)


def _coco(year: int, size: int, images: tuple[Archive, ...]) -> DataSet:
    """COCO's own splits; `size` is that of the zip of the annotations."""
    train, val = f"annotations/captions_train{year}.json", f"annotations/captions_val{year}.json"
    annotations = Archive(f"{_COCO}/annotations/annotations_trainval{year}.zip", size, 1_000_000_000, train)
    return DataSet((annotations, *images), COCO, (train, f"train{year}"), (val, f"val{year}"))


_IMAGES2014 = (
    _coco_images("val2014", 6_645_013_297, 6_700_000_000),
    _coco_images("train2014", 13_510_573_713, 13_600_000_000),
)
_IMAGES2017 = (
    _coco_images("val2017", 815_585_330, 820_000_000),
    _coco_images("train2017", 19_336_861_798, 19_400_000_000),
)
SETS = {
    "coco2014": _coco(2014, 252_872_794, _IMAGES2014),
    "coco2017": _coco(2017, 252_907_541, _IMAGES2017),
    "karpathy": DataSet(
        (Archive(f"{_KARPATHY}/caption_datasets.zip", 36_745_453, 250_000_000, "dataset_coco.json"), *_IMAGES2014),
        f"Karpathy's splits of COCO 2014: {COCO}",
        ("captions_train.json", "."),
        ("captions_val.json", "."),
        _karpathy,
    ),
    "flickr8k": DataSet(
        (
            Archive(f"{_FLICKR}/Flickr8k_text.zip", 2_400_000, 10_000_000, "Flickr8k.token.txt"),
            Archive(f"{_FLICKR}/Flickr8k_Dataset.zip", 1_120_000_000, 1_120_000_000, "Flicker8k_Dataset/", images=True),
        ),
        "Flickr8k (Hodosh, Young and Hockenmaier 2013) is for non-commercial research and education only",
        ("captions_train.json", "Flicker8k_Dataset"),  # spelt so in the zip
        ("captions_val.json", "Flicker8k_Dataset"),
        _flickr8k,
    ),
}
