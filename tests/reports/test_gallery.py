"""The page of captioned images is complete in one file, with the attention map of every word."""

import base64
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch
from browser import open_browser
from helpers import is_one_line, make_captioner
from html_page import Page, caption
from PIL import Image

from captioner.data.images import ImageError
from captioner.errors import UserError
from captioner.models.base import Caption
from captioner.reports.gallery import IMAGE_SIDE, MAX_LARGE, SMALL_SIDE, GalleryPage, doubt, map_bytes
from captioner.reports.page import origin, short_path, short_paths, without_folders


def page(tmp_path, *cards, **options) -> Page:
    file = tmp_path / "new" / "page.html"
    with GalleryPage(file, "two <b> images", [path for path, _ in cards], **options) as gallery:
        for path, found in cards:
            gallery.add(path, found)
        assert not file.exists()
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]
    html = file.read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=\"(?!data:)|<link|@import|url\(|\{\{", html)
    return Page(html)


@pytest.fixture
def wide(tmp_path):
    """An image of 1000 × 500 whose name is no HTML and no Unicode."""
    path = tmp_path / 'a <i>&"\udcff.png'
    Image.new("RGB", (1000, 500), "red").save(path)
    return path


def test_a_card(tmp_path, wide):
    found = page(tmp_path, (wide, [caption('a <script> & "quotes" \'n', 3), caption("a dog", 3, ended=False)]))
    (image,) = found.images()
    assert (image.format, image.size) == ("JPEG", (IMAGE_SIDE, IMAGE_SIDE // 2))
    assert found.all("img")[0]["alt"] == 'a <script> & "quotes" \'n'
    assert len(found.all("script")) == 1
    assert "two <b> images" in found.text
    assert 'a <i>&"?.png' in found.text
    first, second = found.all("div", "words")
    for words, count in ((first, 6), (second, 2)):
        assert words["data-grid"] == "3"
        assert len(base64.b64decode(words["data-maps"])) == count * 9
    buttons = found.all("button", "word")
    assert [button["title"].split(":")[0] for button in buttons[:4]] == ["a", "<script>", "&", '"quotes"']
    assert all("61%" in button["title"] for button in buttons)
    assert len(buttons) == 8
    assert [button["tabindex"] for button in buttons] == ["0", *["-1"] * 5, "0", "-1"]
    assert len(found.all("button", "end")) == 1
    assert "…" in found.text
    assert re.findall(r"-\d\.\d\d", found.text) == ["-3.00", "-1.00"]


def test_without_attention_there_are_no_maps(tmp_path, images):
    found = page(tmp_path, *[(path, [caption("a red square")]) for path in images])
    assert len(found.images()) == 5
    assert found.all("body", "no-maps")
    assert len(found.all("article")) == 5
    assert len(found.all("span", "word")) == 3 + 5 * 4  # the legend, too
    assert not found.all("button", "word")
    assert not found.all("details")
    assert not any("data-maps" in values for _, values in found.found)
    assert not found.all("span", "score")  # one caption each


def test_the_concepts_of_an_image_are_shown(tmp_path, images):
    seen = replace(caption("a dog"), concepts=(("<b>", 0.956), ("tabby", 0.06)))
    found = page(tmp_path, (images[0], [seen]), (images[1], [caption("a cat")]))
    assert "<b> 96 % · tabby 6 %" in found.text
    assert len(found.all("p", "concepts")) == 1


def test_unreadable_images_are_listed(tmp_path, images):
    cards = [("x", ImageError("x <y>: damaged")), (images[0], [caption("a")]), ("gone.png", [caption("a")])]
    found = page(tmp_path, *cards)
    assert len(found.images()) == 1
    assert "x <y>: damaged" in found.text
    assert "gone.png: no such file" in found.text
    assert "Images without a caption" in found.text
    assert "Images without a caption" not in page(tmp_path / "whole", (images[0], [caption("a")])).text


def test_an_album_is_shown_by_its_middle_frame(tmp_path, images):
    album = tmp_path / "album"
    album.mkdir()
    Image.new("RGB", (40, 20), "red").save(album / "1.png")
    found = page(tmp_path, (album, [caption("a red square")]))
    assert [image.size for image in found.images()] == [(40, 20)]
    assert "Images without a caption" not in found.text


def test_the_attention_on_the_image_is_shown(tmp_path, images):
    one = caption("a dog", 2)
    half = Caption(one.text, one.log_prob, one.score, True, one.word_log_probs, one.attention / 2)
    titles = [button["title"] for button in page(tmp_path, (images[0], [half])).all("button", "word")]
    assert titles[1] == "dog: 61%, 50% of the attention on the image"


def test_characters(tmp_path, images):
    """A model that writes characters gives a probability for each of them."""
    found = Caption("a dog", -3.0, -3.0, True, (-0.5,) * 6)
    words = page(tmp_path, (images[0], [found])).all("span", "word")[3:]  # after the legend
    assert [word["title"].split(":")[0] for word in words] == [*"a dog", "end"]


def test_map_bytes():
    weights = torch.zeros(7, 7)
    weights[0, 1], weights[6, 6] = 0.75, 0.25
    found = map_bytes(weights)
    assert (len(found), found[1], found[48], found[0]) == (49, 255, 85, 0)
    even = map_bytes(torch.full((7, 7), 1 / 49))
    assert set(even) == {64}  # a flat map is no bright one
    assert max(map_bytes(torch.tensor([[1.0]]))) == 64


def test_a_page_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), GalleryPage(tmp_path / "page.html", ""):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError) as caught, GalleryPage(tmp_path / "file" / "page.html", ""):
        pass
    assert is_one_line(str(caught.value), "page.html", "cannot be written")


@pytest.mark.parametrize("options", [{"attention": "soft", "grid": 2}, {"attention": "adaptive", "grid": 2}, {}])
def test_predict_report(cli, tmp_path, images, options):
    make_captioner(**options).save(tmp_path / "model.safetensors", half=False)
    (tmp_path / "bad.png").write_bytes(b"no image")
    arguments = ("predict", *images, tmp_path / "bad.png", "--checkpoint", tmp_path / "model.safetensors")
    _, expected, _ = cli(*arguments, "--n-best", 2)
    code, out, err = cli(*arguments, "--n-best", 2, "--report", tmp_path / "page.html")
    assert (code, out) == (1, expected)
    assert "1 of 6" in err
    found = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(found.images()) == 5
    assert [values["alt"] for values in found.all("img")] == [line.split("\t")[1] for line in out.splitlines()[::2]]
    assert "bad.png" in found.text
    assert "6 images" in found.text
    maps = [values for values in found.all("div", "words") if "data-maps" in values]
    assert len(maps) == (10 if options else 0)
    assert sum(len(base64.b64decode(m["data-maps"])) for m in maps) == 4 * len(found.all("button", "word"))


@pytest.mark.parametrize("given", ["images", "folder", "relative", "list"])
def test_names_are_relative_to_the_folder(cli, tmp_path, images, monkeypatch, given):
    make_captioner().save(tmp_path / "model.safetensors")
    folder = tmp_path / "some images"
    shutil.copytree(images[0].parent, folder)
    images = [folder / path.name for path in images]
    (folder / "bad 'x.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("\n".join(map(str, images)))
    arguments = {
        "images": images,
        "folder": [folder],
        "relative": [os.path.relpath(folder)],
        "list": [f"@{tmp_path}/list.txt"],
    }
    page = tmp_path / "page.html"
    cli("predict", *arguments[given], "--checkpoint", tmp_path / "model.safetensors", "--report", page)
    text = page.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert str(folder) not in text
    found = Page(text)
    assert [values["data-text"].split("\n")[0] for values in found.all("article")] == [path.name for path in images]
    assert "…/model.safetensors" in found.text
    assert "captioner predict" in found.text
    if given in ("folder", "relative"):
        assert "bad 'x.png: " in found.text
        assert f"{folder.name}/bad" not in found.text


def test_short_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(f"{tmp_path}/a/b.json") == "a/b.json"
    assert short_path("/home/ada/b.json") == "…/b.json"
    assert short_path("../home/b.json") == "…/b.json"
    assert short_path(f"../{tmp_path.name}/b.json") == "b.json"
    assert short_paths(["/home/ada/one/m.ckpt", "/home/ada/two/m.ckpt"]) == ["…/one/m.ckpt", "…/two/m.ckpt"]
    assert short_paths([]) == []
    line = ["captioner", "x", "--a=/home/ada/b c.json", "@/home/ada/l.txt", "@../l.txt", "and/or", "s3://b/c", "it's"]
    assert origin(line)["command"] == "captioner x '--a=…/b c.json' @…/l.txt @…/l.txt and/or s3://b/c 'it'\"'\"'s'"


def test_without_folders():
    assert without_folders("/a/b/c.png: no; /a/b/d.png", ["/a/b", ""]) == "c.png: no; d.png"
    assert without_folders("x/a/b/c.png", ["a/b"]) == "x/a/b/c.png"


def test_many_images_are_small(tmp_path, wide):
    with GalleryPage(tmp_path / "page.html", "", [wide] * (MAX_LARGE + 1)) as gallery:
        gallery.add(wide, [caption("a")])
    (image,) = Page((tmp_path / "page.html").read_text(encoding="utf-8")).images()
    assert image.width == SMALL_SIDE


def test_a_report_that_cannot_be_written(cli, tmp_path, images):
    make_captioner().save(tmp_path / "model.safetensors")
    page = tmp_path / "model.safetensors" / "page.html"
    code, out, err = cli("predict", *images, "--checkpoint", tmp_path / "model.safetensors", "--report", page)
    assert (code, out) == (2, "")  # before any image is captioned
    assert is_one_line(err, "page.html", "cannot be written")


# ---- in a browser

TEXTS = ("a dog runs", "一只 狗 在 草地 上 跑", "كلب يركض على العشب", "a <script> cat", "two cats")


@pytest.fixture(scope="module")
def opened(tmp_path_factory, images):
    """The page of five images with captions of several scripts, open in a browser."""
    folder = tmp_path_factory.mktemp("gallery")
    names = ["b 10.png", "b 9.png", "c'\"<script>.png", "a.png", "d.png"]
    paths = [shutil.copy(path, folder / name) for path, name in zip(images, names, strict=True)]
    with GalleryPage(folder / "page.html", "five", paths, True) as gallery:
        for i, (path, text) in enumerate(zip(paths, TEXTS, strict=True)):
            found = caption(text, 3)
            terms = tuple((i * 2 % 5 + 1) * term for term in found.word_log_probs)
            gallery.add(path, [replace(found, log_prob=sum(terms), word_log_probs=terms)])
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        mistakes = []
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.goto((folder / "page.html").as_uri())
        yield page
        assert mistakes == []


def names(page) -> list[str]:
    return [card.inner_text() for card in page.locator("article.card:not([hidden]) .name").all()]


def test_sort_filter_and_find(opened):
    given = names(opened)
    opened.select_option("#order", "doubt")
    doubts = [float(card.get_attribute("data-doubt")) for card in opened.locator("article.card").all()]
    assert doubts == sorted(doubts, reverse=True)
    assert len(set(doubts)) == 5
    most = names(opened)
    opened.select_option("#filter", "doubtful")
    assert names(opened) == most[:2]
    assert opened.inner_text("#position") == "2 of 5 images"
    opened.select_option("#filter", "all")
    opened.select_option("#order", "sure")
    assert names(opened) == most[::-1]
    opened.select_option("#order", "name")
    assert names(opened) == ["a.png", "b 9.png", "b 10.png", "c'\"<script>.png", "d.png"]
    opened.select_option("#order", "given")
    assert names(opened) == given
    for typed, count in (
        ("cat", 2),
        ("狗", 1),
        ("地", 1),
        ("كلب", 1),
        ("<script", 2),
        ("og", 0),
        ("nothing", 0),
        ("", 5),
    ):
        opened.fill("#find", typed)
        assert len(names(opened)) == count, typed
        assert opened.is_visible("#empty") == (count == 0)


def test_show_all_maps_and_hide_them(opened):
    button = opened.locator("#all")
    assert button.inner_text() == "Show all maps"
    button.click()
    opened.locator(".word-maps[open] figure").first.wait_for()
    assert button.inner_text() == "Hide all maps"
    button.click()
    assert opened.locator(".word-maps[open]").count() == 0
    assert button.inner_text() == "Show all maps"


def test_right_to_left_and_no_scrolling_sideways(opened):
    assert opened.evaluate("document.documentElement.scrollWidth") == 390
    card = opened.locator("article.card", has_text="كلب")
    first, last = (card.locator("button.word").nth(n).bounding_box() for n in (0, 1))
    assert first["x"] > last["x"]


def test_print_keeps_shades_and_cards_whole(opened):
    opened.emulate_media(media="print")
    card = "getComputedStyle(document.querySelector('article.card'))"
    assert opened.evaluate(f"[{card}.breakInside, {card}.contentVisibility]") == ["avoid", "visible"]
    assert opened.evaluate("getComputedStyle(document.querySelector('.word')).printColorAdjust") == "exact"
    assert not opened.is_visible("#find")
    opened.emulate_media(media="screen")


def test_doubt_is_higher_where_the_model_is_less_sure():
    sure, unsure = caption("a dog"), Caption("a dog", -6.0, -6.0, True, (-2.0, -2.0, -2.0))
    assert doubt(unsure) > doubt(sure)
