"""Planted problems are reported with their file names; a clean data set has no findings."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from browser import open_browser
from coco_split import scene, write_split
from helpers import is_one_line
from html_page import Page
from PIL import Image

from captioner.data.images import open_image
from captioner.reports import dataset_report

KINDS = {"overlap", "duplicates", "unreadable", "wrong_size", "small", "stretched", "skipped", "same_name"}


@pytest.fixture
def clean(tmp_path):
    """Train of eight images and val of four, all different."""
    train = write_split(tmp_path, "train", {f"t{i}.jpg": scene(i) for i in range(8)}, 1)
    val = write_split(tmp_path, "val", {f"v{i}.jpg": scene(100 + i) for i in range(4)}, 101)
    return SimpleNamespace(folder=tmp_path, train=train, val=val)


def inspect(cli, data, *options):
    """What `captioner data inspect` prints, and the findings of its JSON as {kind: lines}."""
    file = data.folder / "found.json"
    named = (data.train[0], "--images", data.train[1], "--val", data.val[0], "--val_images", data.val[1])
    code, out, err = cli("data", "inspect", *named, "--workers", 0, "--json", file, *options)
    assert (code, err) == (0, "")
    found: dict[str, list[str]] = {}
    report = json.loads(file.read_text())
    for finding in report["findings"]:
        found.setdefault(finding["kind"], []).extend(finding["lines"])
    return out, found, report


def change(file, act):
    data = json.loads(file.read_text())
    act(data)
    file.write_text(json.dumps(data))


def test_a_clean_set_has_no_findings(cli, clean):
    out, found, report = inspect(cli, clean)
    assert out.startswith("no problem found\n")
    assert not KINDS & found.keys()
    train, val = report["splits"]
    assert (train["images"], train["captions"], train["captions_per_image"]) == (8, 16, {"2": 8})
    assert train["tokens"] == 8 * 5 + 8 * 3
    assert train["caption_words"]["histogram"] == {"3": 8, "5": 8}
    assert train["caption_words"]["mean"] == 4
    rows = {row["min_count"]: row for row in train["vocabulary"]}
    assert (rows[1]["words"], rows[1]["coverage"]) == (14, 1.0)  # image of a dog, one more, 1 … 8
    assert (rows[2]["words"], rows[2]["coverage"]) == (6, (64 - 8) / 64)
    assert rows[9]["words"] == 1  # dog
    assert val["vocabulary"][0]["coverage_by_first"] == (32 - 4) / 32
    assert val["captions_also_in_first"] == 4
    assert train["sizes"]["commonest"] == [[120, 90, 8]]
    assert max(map(len, out.splitlines())) <= 80


def test_planted_problems_are_reported(cli, clean):
    train, val = clean.train[1], clean.val[1]
    scene(0).save(train / "t7.jpg", quality=60)  # t0, re-encoded
    scene(101).resize((240, 180)).save(train / "t6.jpg", quality=80)  # v1, larger
    (train / "t5.jpg").write_bytes((train / "t5.jpg").read_bytes()[:300])
    scene(200, 160, 90).save(train / "t4.jpg")
    scene(201, 600, 100).save(val / "v2.jpg")
    scene(202, 40, 40).save(val / "v3.jpg")
    (train / "t3.jpg").unlink()
    out, found, _ = inspect(cli, clean, "--report", clean.folder / "new" / "page.html")
    assert found["duplicates"] == ["train/t0.jpg = train/t7.jpg (near duplicate)"]
    assert found["overlap"] == ["train/t6.jpg = val/v1.jpg (near duplicate)"]
    assert len(found["unreadable"]) == len(found["skipped"]) == 1
    assert "t5.jpg" in found["unreadable"][0]
    assert "t3.jpg" in found["skipped"][0]
    sizes = {line.split(":")[0] for line in found["wrong_size"]}
    assert sizes == {"t6.jpg", "t4.jpg", "v2.jpg", "v3.jpg"}
    assert "t4.jpg: 120 × 90 in the annotations, 160 × 90 in the file" in found["wrong_size"]
    assert found["stretched"] == ["v2.jpg: 600 × 100"]
    assert found["small"] == ["v3.jpg: 40 × 40"]
    top = out.split("\n\n")[0]
    assert all(name in top for name in ("! images in several splits: 1", "t7.jpg", "v1.jpg", "t5.jpg", "t3.jpg"))
    html = (clean.folder / "new" / "page.html").read_text(encoding="utf-8")
    assert "{{" not in html
    assert not re.search(r"https?://|src=\"(?!data:)|<link|@import|url\(", html)
    page = Page(html)
    shown = [values["src"] for values in page.all("img")]
    assert len(set(shown)) <= 12
    groups = re.findall(r'<div class="group">(.*?)</div>', html, re.S)
    assert [group.count("<img") for group in groups] == [2, 2]  # side by side, also across splits
    odd = html[html.index("val: Odd sizes") :]
    assert "elongated, 600 × 100" in odd
    assert "small, 40 × 40" in odd
    assert "cannot be read</p>" in html[html.index("train: Random samples") : html.index("train: Longest")]
    assert str(clean.folder) not in html
    assert all(name in page.text for name in ("t5.jpg", "train/t6.jpg", "val/v1.jpg", "t3.jpg"))
    assert [path.name for path in (clean.folder / "new").iterdir()] == ["page.html"]


def test_the_page_shows_samples_and_extremes(cli, clean, monkeypatch):
    opened = []
    monkeypatch.setattr(
        dataset_report, "open_image", lambda path, **size: opened.append(path) or open_image(path, **size)
    )

    def act(data):
        data["annotations"][0]["caption"] = "a dog and a <b>quagga</b> and a tapir in a very long line"
        data["annotations"][2]["caption"] = "ok"
        data["annotations"][4]["caption"] = "كلب يركض"

    change(clean.train[0], act)
    pages = []
    for options in ((), ("--seed", 1), ("--seed", 1), ("--samples", 0)):
        file = clean.folder / "page.html"
        inspect(cli, clean, "--report", file, "--samples", 3, *options)
        pages.append(file.read_text(encoding="utf-8"))
        assert len(opened) == len(set(opened)) <= 12  # each once
        opened.clear()
    samples = [re.findall(r">(t\d.jpg)<", html[: html.index("train: Longest")]) for html in pages]
    assert [len(names) for names in samples] == [3, 3, 3, 0]
    assert samples[0] != samples[1] == samples[2]
    page = Page(pages[0])
    assert "train: Random samples" in page.text
    assert "<b>quagga</b>" in page.text
    assert not page.all("b")
    assert all(f'id="{link["href"][1:]}"' in pages[0] for link in page.all("a"))
    rare = pages[0][pages[0].index("train: Captions with the most words") : pages[0].index("val: Random")]
    assert rare.index("tapir") < rare.index("كلب")
    assert "<mark>tapir</mark>" in rare
    long = pages[0][pages[0].index("train: Longest") : pages[0].index("train: Shortest")]
    assert re.search(r"(\d+) words", long)[1] == "15"
    short = pages[0][pages[0].index("train: Shortest") : pages[0].index("train: Captions with")]
    assert re.search(r"(\d+) words?", short)[0] == "1 word"
    assert "Odd sizes" not in page.text  # all are of one size


def test_without_images_the_page_shows_captions(cli, clean):
    inspect(cli, clean, "--no_read_images", "--report", clean.folder / "page.html")
    page = Page((clean.folder / "page.html").read_text(encoding="utf-8"))
    assert not page.all("img")
    assert "cannot be read" not in page.text
    assert "val: Longest captions" in page.text


def test_long_lists_are_shown_and_hidden(cli, tmp_path):
    data = write_split(tmp_path, "train", {f"t{i}.jpg": scene(i % 8) for i in range(30)}, 1)
    change(data[0], lambda found: [each.update(caption="?!") for each in found["annotations"][:50]])
    code, _, _ = cli("data", "inspect", data[0], "--no_read_images", "--report", tmp_path / "page.html")
    assert code == 0
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        summary = page.locator("details.warning details.more > summary")
        assert summary.inner_text() == "Show 30 more"
        assert page.locator("details.warning li:visible").count() == 20
        summary.click()
        assert page.locator("details.warning li:visible").count() == 50
        assert summary.inner_text() == "Hide these"


def test_the_same_bytes_and_the_same_names(cli, clean):
    (clean.train[1] / "t2.jpg").write_bytes((clean.val[1] / "v0.jpg").read_bytes())
    (clean.val[1] / "v3.jpg").rename(clean.val[1] / "t1.jpg")
    change(clean.val[0], lambda data: data["images"][3].update(file_name="t1.jpg"))
    _, found, report = inspect(cli, clean)
    assert found["overlap"] == ["train/t2.jpg = val/v0.jpg (same file)"]
    assert found["same_name"] == ["t1.jpg: train, val"]
    assert not any(finding["serious"] for finding in report["findings"] if finding["kind"] == "same_name")
    _, found, report = inspect(cli, clean, "--no_read_images")
    assert "overlap" not in found
    assert any(finding["serious"] for finding in report["findings"] if finding["kind"] == "same_name")


def test_an_image_turned_by_exif_may_have_either_size(cli, clean):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(0).save(clean.train[1] / "t0.jpg", exif=exif)
    for size in ((120, 90), (90, 120)):
        change(clean.train[0], lambda data, size=size: data["images"][0].update(width=size[0], height=size[1]))
        assert "wrong_size" not in inspect(cli, clean)[1]


def test_captions(cli, clean):
    def act(data):
        for i, text in ((0, "dog, dog!"), (1, "Dog dog"), (2, "?!"), (4, "so " * 31)):
            data["annotations"][i]["caption"] = text

    change(clean.train[0], act)
    _, found, _ = inspect(cli, clean, "--no_read_images")
    assert found["repeated_captions"] == ["t0.jpg"]
    assert found["no_words"] == ["t1.jpg: '?!'"]
    assert found["long_captions"] == ["t2.jpg: 31 words"]


def test_captions_alone_need_no_folder(cli, clean):
    code, out, _ = cli("data", "inspect", clean.train[0], "--no_read_images")
    assert code == 0
    assert "captions per image: 8 × 2" in out
    assert out.startswith("no problem found in the captions; the images were not read\n")


def test_workers_find_the_same(cli, clean, monkeypatch):
    monkeypatch.setattr("captioner.datasets.inspect.BATCH", 3)
    scene(0).save(clean.train[1] / "t7.jpg", quality=60)
    assert inspect(cli, clean, "--workers", 2)[1] == inspect(cli, clean)[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--report", "page.html", "--samples", "201"], "--samples is 201: expected 0 to 200"),
        (["--distance", "17"], "--distance is 17: expected 0 to 16"),
        (["--test_split", "x"], "--test_split has no effect without --test"),
        (["--val", "no.json"], "no.json: no such file"),
    ],
)
def test_bad_options_are_one_line(cli, clean, options, said):
    code, _, err = cli("data", "inspect", clean.train[0], "--images", clean.train[1], *options)
    assert code == 2
    assert is_one_line(err, said)


def test_without_imagehash_the_line_says_what_to_install(cli, clean, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    code, out, err = cli("data", "inspect", clean.train[0], "--images", clean.train[1])
    assert (code, out) == (2, "")
    assert is_one_line(err, "pip install -e '.[inspect]'")
