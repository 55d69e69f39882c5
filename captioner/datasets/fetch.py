"""Known data sets from their hosts: downloaded, checked, unpacked, cut into splits."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from captioner.data.addresses import is_http
from captioner.datasets.download import RETRIES, TIMEOUT, check_free_space, download, partial_size, verify
from captioner.errors import UserError
from captioner.files import read_json, write_json

JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")  # what archivers of other systems leave in zips
BOMB = 100  # times its size that a zip may unpack to; the annotations of COCO: 4, of Karpathy: 5 or so
COCO = (
    "the annotations of COCO are CC BY 4.0; its photographs belong to users of Flickr, whose terms apply: "
    "https://cocodataset.org/#termsofuse"
)
FLICKR = "Flickr8k (Hodosh, Young and Hockenmaier 2013) is for non-commercial research and education only"


@dataclass(frozen=True)
class Archive:
    """A zip. size: bytes, unpacked: about so many bytes; holds: what the name of some member ends in or begins with.

    sha256: None where nobody has published one; the size is then not checked either.
    """

    url: str
    size: int
    unpacked: int
    sha256: str | None
    holds: str
    images: bool = False

    @property
    def name(self) -> str:
        """The file name of the zip."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class DataSet:
    """A set: what is fetched, under which licence, and where training and validation lie, below the set's folder.

    splits: makes the annotations files where the set has none in COCO's layout.
    """

    archives: tuple[Archive, ...]
    licence: str
    train: tuple[str, str]  # annotations, folder of images
    val: tuple[str, str]
    splits: Callable[[Path], None] | None = None


def fetch(
    name: str,
    out: Path,
    mirror: Sequence[str] = (),
    download_images: bool = True,
    keep_archives: bool = False,
    check_sums: bool = True,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> str:
    """Fetch a set into a folder; what is there and whole is left as it is, what was begun is gone on with.

    Args:
        name: one of SETS.
        out: the folder; several sets may share one.
        mirror: addresses of folders with the zips, tried in this order instead of the known addresses.
        download_images: without, the captions alone.
        keep_archives: keep the zips after unpacking.
        check_sums: refuse a zip of another size or SHA-256 than is known, where one is known.
        timeout: seconds without a byte after which a connection counts as cut.
        retries: of a file in a row without progress.

    Returns:
        The ``captioner train`` command for the set.

    Raises:
        UserError: a file cannot be had, is not whole, or would not fit; another process fetches into the folder.
    """
    from filelock import FileLock, Timeout

    for url in mirror:
        if not is_http(url):
            raise UserError(f"--mirror is {url!r}: expected the address of a folder, such as https://host/coco")
    known = SETS[name]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".fetch.lock", timeout=0):
            wanted = [archive for archive in known.archives if download_images or not archive.images]
            _fetch_all(wanted, out, mirror, keep_archives, check_sums, timeout, retries)
            if known.splits:
                try:
                    known.splits(out)
                except (OSError, LookupError, TypeError, ValueError) as error:
                    raise UserError(
                        f"{out}: its annotations are not those of {name} ({error!r}): another zip"
                    ) from None
    except Timeout:
        raise UserError(
            f"{out}: another process is fetching into it; wait for it, or choose another --output"
        ) from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}; choose another --output") from None
    words = ["captioner", "train"]
    for split, (captions, images) in (("train", known.train), ("val", known.val)):
        words += [f"--data.{split}", str(out / captions), f"--data.{split}_images", str(out / images)]
    return shlex.join([*words, "--output", f"runs/{name}"])


def _fetch_all(
    wanted: Sequence[Archive],
    out: Path,
    mirror: Sequence[str],
    keep_archives: bool,
    check_sums: bool,
    timeout: float,
    retries: int,
) -> None:
    """Download and unpack what is not there."""
    missing = []
    for archive in wanted:
        absent = _absent(archive, out)
        if absent == 0:
            print(f"{archive.name}: unpacked in {out} already", file=sys.stderr)
            continue
        if absent:
            print(f"{archive.name}: {absent:,} of its files are gone or changed; once more", file=sys.stderr)
        missing.append(archive)
    sizes = [0 if (out / a.name).exists() else max(a.size - partial_size(out / a.name), 0) for a in missing]
    zips = sum(sizes) if keep_archives else max(sizes, default=0)  # without, one at a time
    check_free_space(
        out, zips + sum(archive.unpacked for archive in missing), "the download and what is unpacked from it"
    )
    for archive in missing:
        path = out / archive.name
        urls = [f"{base.rstrip('/')}/{archive.name}" for base in mirror] or [archive.url]
        size, sha256 = (archive.size, archive.sha256) if archive.sha256 and check_sums else (None, None)
        fetched = not path.exists()
        if fetched:
            try:
                download(urls, path, size, sha256, timeout, retries)
            except KeyboardInterrupt:
                have = f"{partial_size(path):,} bytes are kept, and the same command goes on from there"
                print(f"{path.name}: {have}", file=sys.stderr)
                raise
        else:
            print(f"{path}: there already", file=sys.stderr)
            try:
                verify(path, size, sha256)
            except UserError as error:
                raise UserError(f"{error}; remove it and fetch again") from None
        try:
            files = unpack(path, out, archive.holds)
        except BrokenZip as error:
            if fetched:
                path.unlink()
            raise UserError(f"{error}; {'it was removed: ' if fetched else 'remove it and '}fetch again") from None
        write_json(_list(archive, out), files)
        if not keep_archives:
            path.unlink()


def _list(archive: Archive, out: Path) -> Path:
    """The list of what an archive was unpacked to, written when all of it is there."""
    return out / f".{archive.name}.json"


def _absent(archive: Archive, out: Path) -> int | None:
    """Files of an archive that are gone or have another size; None where it was never unpacked."""
    if not _list(archive, out).exists():
        return None
    files = read_json(_list(archive, out))
    return sum(not ((out / name).is_file() and (out / name).stat().st_size == size) for name, size in files.items())


class BrokenZip(Exception):
    """A zip that is damaged, or of which something would come to lie where it should not. One line."""


def unpack(path: Path, out: Path, holds: str = "") -> dict[str, int]:
    """Unpack a zip into a folder: aside first, where every checksum is tested, then moved to its place file by file.

    Args:
        path: the zip.
        out: the folder, on the same disk as it will stay; folders that are there are merged, files replaced.
        holds: what the name of some member must begin with or end in.

    Returns:
        The size in bytes of every file, by its path below `out`.

    Raises:
        BrokenZip: damaged, encrypted, without `holds`, a member leaves the folder or is a link, or it unpacks to more
            than BOMB times its size. Nothing was unpacked.
        UserError: the disk has no room.
    """
    aside = out / f".{path.name}.unpacking"
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    try:
        with zipfile.ZipFile(path) as zipped:
            members = [member for member in zipped.infolist() if not _is_junk(member)]
            _check_members(path, members, holds)
            check_free_space(out, sum(member.file_size for member in members), f"unpacking {path.name}")
            aside.mkdir()
            for member in tqdm(members, desc=f"unpacking {path.name}", unit="file", disable=None):
                zipped.extract(member, aside)
        _move(aside, out)
    except (UserError, BrokenZip):
        raise
    except OSError as error:
        if error.errno is None or error.strerror == "Invalid argument":  # a position that is none
            raise BrokenZip(f"{path}: damaged: {error}") from None
        raise UserError(f"{path}: cannot be unpacked: {error.strerror}: {error.filename or out}") from None
    except Exception as error:  # a damaged zip makes zipfile and the decompressors raise nearly anything
        raise BrokenZip(f"{path}: not a whole zip: {error or type(error).__name__}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {member.filename: member.file_size for member in members if not member.is_dir()}


def _is_junk(member: zipfile.ZipInfo) -> bool:
    return any(part in JUNK for part in member.filename.split("/"))


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo], holds: str) -> None:
    """Raise BrokenZip for what must not be unpacked."""
    for member in members:
        parts = member.filename.removesuffix("/").split("/")
        if "\\" in member.filename or ":" in parts[0] or any(part in ("", "..") for part in parts):
            raise BrokenZip(f"{path}: the member {member.filename!r} leaves the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BrokenZip(f"{path}: the member {member.filename!r} is a link")
    if not any(member.filename.startswith(holds) or member.filename.endswith(holds) for member in members):
        raise BrokenZip(f"{path}: has no {holds}: another zip")
    total = sum(member.file_size for member in members)
    if total > BOMB * path.stat().st_size:
        raise BrokenZip(f"{path}: would unpack to {total:,} bytes, {total // path.stat().st_size:,} times its size")


def _move(source: Path, target: Path) -> None:
    """Move what is in one folder into another on the same disk; folders are merged, files replaced."""
    for entry in list(os.scandir(source)):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move(Path(entry.path), place)
        else:
            os.replace(entry.path, place)


def _karpathy(out: Path) -> None:
    """captions_train.json (with restval, as papers train), captions_val.json and captions_test.json of Karpathy's."""
    rows = read_json(out / "dataset_coco.json")["images"]
    for split in ("train", "val", "test"):
        images = [row for row in rows if row["split"] == split or (split, row["split"]) == ("train", "restval")]
        _write_captions(
            out / f"captions_{split}.json",
            [(row["cocoid"], f"{row['filepath']}/{row['filename']}") for row in images],
            {row["cocoid"]: [sentence["raw"] for sentence in row["sentences"]] for row in images},
        )


def _flickr8k(out: Path) -> None:
    """captions_train.json, captions_val.json and captions_test.json of the token file and the lists of names."""
    tokens = min(out.rglob("Flickr8k.token.txt"))
    captions: dict[str, list[str]] = {}
    for line in tokens.read_text(encoding="utf-8").split("\n"):
        name, _, caption = line.partition("\t")
        captions.setdefault(name.partition("#")[0], []).append(caption)
    for split, listed in (("train", "train"), ("val", "dev"), ("test", "test")):
        names = tokens.with_name(f"Flickr_8k.{listed}Images.txt").read_text(encoding="utf-8").split()
        images = list(enumerate(names))
        _write_captions(out / f"captions_{split}.json", images, {number: captions[name] for number, name in images})


def _write_captions(path: Path, images: Sequence[tuple[int, str]], captions: dict[int, list[str]]) -> None:
    """A captions file in COCO's layout, of (id, file name) and captions by id."""
    pairs = [(image, caption) for image, _ in images for caption in captions[image]]
    listed = [{"id": image, "file_name": name} for image, name in images]
    rows = [{"id": n, "image_id": image, "caption": caption} for n, (image, caption) in enumerate(pairs)]
    write_json(path, {"images": listed, "annotations": rows})


# Sizes and digests are those that TensorFlow Datasets publishes (url_checksums/coco.txt, coco_captions.txt); the hosts
# publish none. Those of Flickr8k are sizes only, rounded: nobody vouches for its zips.
_ZIPS = "http://images.cocodataset.org/zips/"
_ANNOTATIONS = "http://images.cocodataset.org/annotations/"
_TRAIN2014 = Archive(
    f"{_ZIPS}train2014.zip",
    13_510_573_713,
    13_600_000_000,
    "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    "train2014/",
    images=True,
)
_VAL2014 = Archive(
    f"{_ZIPS}val2014.zip",
    6_645_013_297,
    6_700_000_000,
    "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    "val2014/",
    images=True,
)
SETS = {
    "coco2014": DataSet(
        (
            Archive(
                f"{_ANNOTATIONS}annotations_trainval2014.zip",
                252_872_794,
                1_000_000_000,
                "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
                "annotations/captions_train2014.json",
            ),
            _VAL2014,
            _TRAIN2014,
        ),
        COCO,
        ("annotations/captions_train2014.json", "train2014"),
        ("annotations/captions_val2014.json", "val2014"),
    ),
    "coco2017": DataSet(
        (
            Archive(
                f"{_ANNOTATIONS}annotations_trainval2017.zip",
                252_907_541,
                1_000_000_000,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                "annotations/captions_train2017.json",
            ),
            Archive(
                f"{_ZIPS}val2017.zip",
                815_585_330,
                820_000_000,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                "val2017/",
                images=True,
            ),
            Archive(
                f"{_ZIPS}train2017.zip",
                19_336_861_798,
                19_400_000_000,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                "train2017/",
                images=True,
            ),
        ),
        COCO,
        ("annotations/captions_train2017.json", "train2017"),
        ("annotations/captions_val2017.json", "val2017"),
    ),
    "karpathy": DataSet(
        (
            Archive(
                "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
                36_745_453,
                250_000_000,
                "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
                "dataset_coco.json",
            ),
            _VAL2014,
            _TRAIN2014,
        ),
        f"Karpathy's splits of COCO 2014: {COCO}",
        ("captions_train.json", "."),
        ("captions_val.json", "."),
        _karpathy,
    ),
    "flickr8k": DataSet(
        (
            Archive(
                "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/Flickr8k_text.zip",
                2_400_000,
                10_000_000,
                None,
                "Flickr8k.token.txt",
            ),
            Archive(
                "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/Flickr8k_Dataset.zip",
                1_120_000_000,
                1_120_000_000,
                None,
                "Flicker8k_Dataset/",  # so it is spelt
                images=True,
            ),
        ),
        FLICKR,
        ("captions_train.json", "Flicker8k_Dataset"),
        ("captions_val.json", "Flicker8k_Dataset"),
        _flickr8k,
    ),
}
