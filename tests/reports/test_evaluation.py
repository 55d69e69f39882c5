"""The page of an evaluation: the scores, every image, in any order, in a real browser."""

import base64
import html
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from browser import open_browser
from helpers import captions_of, is_one_line, make_captioner, write_set
from html_page import Page, caption

from captioner.data.annotations import Example
from captioner.errors import UserError
from captioner.metrics.scoring import Comparison, ScoreOptions, score_images
from captioner.reports.evaluation import LARGE, MAX_BARS, MAX_LARGE, SMALL, EvaluationPage, histogram, ticks
from captioner.reports.page import render

HOSTILE = "</script><!-- <script> & \"quotes' {{summary}} \u202edrow\udcff אבג"
SHOWN = HOSTILE.replace("\u202e", "?").replace("\udcff", "?")


def cards_of(page: Page, text: str) -> list[Page]:
    """The cards that lie on the page as text."""
    assert len(page.all("script", "image")) == len(page.all("script")) - 2 > 0
    return [Page(card) for card in re.findall(r'<script type="text/html" class="image">(.*?)</script>', text, re.S)]


def data_of(text: str) -> list[dict]:
    return json.loads(re.search(r'id="images">(.*?)</script>', text, re.S)[1])


def write(tmp_path, images, names=("mine",), references="a red square", text="a red square", **more):
    """A page of `images`, the n-th with n % 3 more right words."""
    captions = {i: f"{text} on blue"[: len(text) + 3 * (i % 3)] for i in range(len(images))}
    file = tmp_path / "new" / "report.html"
    comparison = Comparison("theirs", dict.fromkeys(captions, "a green square")) if len(names) > 1 else None
    wanted = {i: [references, "a square on blue"] for i in captions}
    with EvaluationPage(file, "about <b>", len(images), True, names) as page:
        for i, path in enumerate(images):
            second = None if comparison is None else [caption("a green square")] if i else "a green square"
            example = Example(i, path, tuple(wanted[i]), f"{i} {HOSTILE}")
            page.add(example, [caption(captions[i], 3), caption("a dog")], second)
        assert not file.exists()
        scored = score_images(wanted, captions, replace(ScoreOptions(), **more), comparison=comparison)
        page.finish(scored)
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=\"(?!data:)|<link|@import|url\(", text)
    return text, scored


def test_the_page_has_what_was_scored(tmp_path, images):
    text, scored = write(tmp_path, images)
    page = Page(text)
    assert "about <b>" in page.text
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"):
        low, high = scored.scores["intervals"][name].values()
        assert re.search(rf"{name}\s*{scored.scores[name]:.2f}\s*\[{low:.2f}, {high:.2f}\]", page.text)
    assert scored.scores["signature"] in page.text
    words = {values["data-word"]: values["title"] for values in page.all("button", "find-word")}
    assert words["square"] == "5 in the captions, 10 in the references"
    data = data_of(text)
    assert [each["scores"][0]["CIDEr"] for each in data] == [round(100 * x, 2) for x in scored.per_image[0].cider]
    assert data[0]["references"] == ["a red square", "a square on blue"]
    assert data[0]["doubt"] == round(caption("a red square").perplexity, 3)


def test_cards(tmp_path, images):
    text, _ = write(tmp_path, images)
    page = Page(text)
    cards = cards_of(page, text)
    assert [len(card.images()) for card in cards] == [1] * 5
    first = cards[0]
    assert len(first.all("button", "word")) == 4  # of the best caption, with END
    assert len(first.all("span", "word")) == 3
    (words,) = [values for values in first.all("div", "words") if "data-maps" in values]
    assert len(base64.b64decode(words["data-maps"])) == 4 * 9
    assert "-2.00" in first.text
    assert "-1.50" in first.text


def test_hostile_text_stays_text(tmp_path, images):
    text, _ = write(tmp_path, images, (HOSTILE, HOSTILE), references=HOSTILE, text=HOSTILE)
    page = Page(text)
    data = data_of(text)
    assert [each["name"] for each in data] == [f"{i} {SHOWN}" for i in range(5)]
    assert data[0]["references"][0] == SHOWN
    cards = cards_of(page, text)
    assert len(cards) == len(data) == 5
    assert all(f"{i} {SHOWN}" in card.text for i, card in enumerate(cards))
    assert cards[0].all("img")[0]["alt"] == SHOWN


def test_two_systems(tmp_path, images):
    text, scored = write(tmp_path, images, ("mine", "theirs"))
    page = Page(text)
    row = scored.scores["compare"]["CIDEr"]
    said = html.unescape(re.sub(r"\s+", " ", page.text))
    assert f"{row['second']:.2f}" in said
    assert "0.00 [0.00, 0.00]" in said
    assert f"{row['p']:.4f}" in said
    assert [len(each["scores"]) for each in data_of(text)] == [2] * 5
    cards = cards_of(page, text)
    assert [len(card.all("section", "system")) for card in cards] == [2] * 5
    assert "a green square" in cards[0].text  # only its text is known
    assert len(cards[0].all("span", "word")) == 3
    assert len(cards[1].all("span", "word")) == 3 + 4


def test_images_without_a_score_or_a_file(tmp_path, images):
    file = tmp_path / "report.html"
    with EvaluationPage(file, "", 2, False, ["mine", "theirs"]) as page:
        page.add(Example(7, images[0], ("a dog",), "a"), [caption("a dog")], "a")
        page.add(Example("x", tmp_path / "gone.png", ("a cat",), "b"), [caption("a cat")], "a")
        page.finish(score_images({"x": ["a cat"]}, {"x": "a cat"}, comparison=Comparison("theirs", {"x": "a"})))
    text = file.read_text(encoding="utf-8")
    assert ["scores" in each for each in data_of(text)] == [False, True]
    first, second = cards_of(Page(text), text)
    assert len(first.images()) == 1
    assert "gone.png: no such file" in second.text


def test_many_images_are_small(tmp_path):
    from PIL import Image

    Image.new("RGB", (640, 320)).save(tmp_path / "wide.png")
    for count, (side, _) in ((MAX_LARGE, LARGE), (MAX_LARGE + 1, SMALL)):
        with EvaluationPage(tmp_path / "page.html", "", count, False, ["mine"]) as page:
            page.add(Example(1, tmp_path / "wide.png", ("a",), "a"), [caption("a")])
            page.finish(score_images({1: ["a"]}, {1: "a"}))
        text = (tmp_path / "page.html").read_text()
        assert cards_of(Page(text), text)[0].images()[0].size == (side, side // 2)


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (0.32, [0, 10, 20, 30, 40]),
        (1, [0, 20, 40, 60, 80, 100]),
        (0.06, [0, 2, 4, 6]),
        (0.0004, [0, 0.01, 0.02, 0.03, 0.04]),
    ],
)
def test_ticks(highest, expected):
    found = ticks([("0", [0.0]), ("1", [highest, 0.0])])
    assert [round(100 * tick, 6) for tick in found] == expected
    assert found[-1] >= highest


def test_a_page_names_no_folder_of_this_machine(evaluate, fresh, tmp_path, models):
    (tmp_path / "second").mkdir()
    copied = shutil.copy(models / "plain.safetensors", tmp_path / "second" / "plain.safetensors")
    (fresh.images("val") / "013.png").write_bytes(b"damaged")
    options = ("--skip_bad_images", "--compare_checkpoint", copied, "--report", tmp_path / "page.html")
    assert evaluate(fresh, *options)[0] == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert str(fresh.folder) not in text
    assert str(models) not in text
    page = Page(text)
    assert "013.png: " in page.text
    assert "captioner evaluate" in page.text
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d · captioner \d", page.text)


def test_histogram():
    assert histogram([[3, 3, 4], [5]], True) == [("3", [2 / 3, 0]), ("4", [1 / 3, 0]), ("5", [0, 1])]
    assert histogram([[2]], True) == [("2", [1])]
    assert histogram([[0.0, 0.0]], False)[0] == ("0", [1])
    found = histogram([[*range(100), 5000.0]], False)
    assert len(found) <= MAX_BARS + 1
    assert found[-1][0].endswith("+")
    assert sum(share for _, (share,) in found) == pytest.approx(1)
    wide = histogram([list(range(1, 60))], True)
    assert wide[0][0] == "0–4"


@pytest.mark.parametrize("where", ["here.html/page.html", "."])
def test_a_place_that_cannot_be_written(tmp_path, where):
    (tmp_path / "here.html").write_text("mine")
    with pytest.raises(UserError) as caught, EvaluationPage(tmp_path / where, "", 1, False, ["mine"]):
        pass
    assert is_one_line(str(caught.value), "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["here.html"]


# ---- captioner evaluate


@pytest.fixture(scope="module")
def models(tmp_path_factory, weights):
    """A model that looks and one that does not."""
    folder = tmp_path_factory.mktemp("models")
    make_captioner(attention="soft", grid=2).save(folder / "looks.safetensors", half=False)
    make_captioner().save(folder / "plain.safetensors", half=False)
    return folder


@pytest.fixture
def evaluate(cli, models):
    def call(coco, *options, model="looks"):
        files = ("--annotations", coco.annotations("val"), "--images", coco.images("val"), "--workers", 0)
        return cli("evaluate", *files, "--checkpoint", models / f"{model}.safetensors", "--device", "cpu", *options)

    return call


def test_evaluate_report(evaluate, tiny, tmp_path, models):
    code, out, _ = evaluate(tiny, "--output", tmp_path / "without.json")
    options = ("--output", tmp_path / "with.json", "--report", tmp_path / "page.html")
    assert evaluate(tiny, *options)[:2] == (code, out) == (0, out)
    results = json.loads((tmp_path / "with.json").read_text())
    assert results == json.loads((tmp_path / "without.json").read_text())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = data_of(text)
    assert [each["captions"] for each in data] == [[row["caption"]] for row in results]
    assert [each["references"] for each in data] == [captions_of(n, n % 5 + 1) for n in range(12, 18)]
    cards = cards_of(Page(text), text)
    assert [len(card.all("ol")) for card in cards] == [1] * 6
    assert all(2 <= len(card.all("li")) <= 3 for card in cards)  # n-best, though nobody asked
    assert all(len(card.all("button", "word")) for card in cards)
    page = Page(text)
    for line in out.splitlines()[:6]:
        assert line.split()[1] in page.text


def test_evaluate_report_of_two(evaluate, tiny, tmp_path, models):
    """The same, whether the other captions come from a file or from the checkpoint that wrote it."""
    evaluate(tiny, "--output", tmp_path / "plain.json", model="plain")
    plain = [row["caption"] for row in json.loads((tmp_path / "plain.json").read_text())]
    metrics, cards = [], []
    for option, file in (
        ("--compare", tmp_path / "plain.json"),
        ("--compare-checkpoint", models / "plain.safetensors"),
    ):
        options = (option, file, "--json", tmp_path / "metrics.json", "--report", tmp_path / "page.html")
        assert evaluate(tiny, *options)[0] == 0
        metrics.append(json.loads((tmp_path / "metrics.json").read_text()))
        assert metrics[-1]["compare"].pop("second") == str(file)
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert [each["captions"][1] for each in data_of(text)] == plain
        cards.append(cards_of(Page(text), text))
    assert metrics[0] == metrics[1]
    for of_file, of_model, said in zip(*cards, plain, strict=True):
        assert said in re.sub(r"\s+", " ", of_file.text)
        shaded = [len(card.all("span", "word")) for card in (of_file, of_model)]
        assert shaded[1] > shaded[0]  # the checkpoint knows how sure its words are, a file does not


def test_wrong_options_are_reported_before_anything_is_captioned(evaluate, tiny, tmp_path, models, monkeypatch):
    def caption_files(*arguments):
        raise AssertionError("captioned")

    monkeypatch.setattr("captioner.models.base.CaptionModel.search", caption_files)
    (tmp_path / "file").write_text("{")
    (tmp_path / "others.json").write_text('{"1": "a dog"}')
    inside, folder = tmp_path / "file" / "x.json", tmp_path / "folder"
    folder.mkdir()
    for option, value, said in (
        ("--report", inside, "cannot be written"),
        ("--report", folder, "it is a folder"),
        ("--output", inside, "cannot be written"),
        ("--output", folder, "it is a folder"),
        ("--json", inside, "cannot be written"),
        ("--per_image", inside, "cannot be written"),
        ("--compare", tmp_path / "none.json", "no such file"),
        ("--compare", tmp_path / "file", "broken JSON"),
        ("--compare", tmp_path / "others.json", "none of its 1 image "),
        ("--training", tmp_path / "none.json", "no such file"),
        ("--compare-checkpoint", tmp_path / "none.ckpt", "no checkpoint"),
    ):
        code, out, err = evaluate(tiny, option, value)
        assert (code, out) == (2, ""), option
        assert is_one_line(err, said), (option, err)
    code, _, err = evaluate(tiny, "--compare", tmp_path / "file", "--compare-checkpoint", tmp_path / "file")
    assert code == 2
    assert is_one_line(err, "--compare", "leave one out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "others.json"]
    assert not list(folder.iterdir())


def test_bad_images(evaluate, fresh, tmp_path):
    (fresh.images("val") / "013.png").write_bytes(b"no image")
    assert evaluate(fresh, "--report", tmp_path / "page.html")[0] == 2
    assert not (tmp_path / "page.html").exists()
    skip = ("--skip_bad_images",)
    assert evaluate(fresh, *skip, "--output", tmp_path / "a.json")[0] == 0
    code, _, err = evaluate(fresh, *skip, "--compare", tmp_path / "a.json", "--report", tmp_path / "page.html")
    assert code == 0  # the results lack the image that is skipped
    assert "1 image skipped" in err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(data_of(text)) == 5
    assert "013.png" in Page(text).text
    assert "Images without a caption" in Page(text).text


def test_an_ensemble_has_probabilities_but_no_maps(evaluate, tiny, tmp_path, models):
    other = ("--checkpoint", models / "plain.safetensors")
    assert evaluate(tiny, *other, "--report", tmp_path / "page.html")[0] == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    cards = cards_of(Page(text), text)
    assert all(card.all("span", "word") and not card.all("button", "word") for card in cards)


def test_a_report_does_not_change_sampled_captions(evaluate, tiny, tmp_path):
    sample = ("--sample", "--output", tmp_path / "a.json")
    evaluate(tiny, *sample)
    first = (tmp_path / "a.json").read_text()
    assert evaluate(tiny, *sample, "--report", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "a.json").read_text() == first


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory, weights):
    """A page of 60 images with scores that differ, of two systems."""
    folder = tmp_path_factory.mktemp("report")
    coco = write_set(folder / "set", train=0, val=60, captions=lambda n: captions_of(n, 2))
    captions = {100 + n: " ".join(captions_of(n, 1)[0].split()[: 2 + n % 4]) for n in range(60)}
    second = {100 + n: " ".join(captions_of(n, 1)[0].split()[: 2 + n % 3]) for n in range(60)}
    file = folder / "report.html"
    with EvaluationPage(file, "sixty", 60, True, ["mine", "theirs"]) as page:
        for n in range(60):
            path = coco.images("val") / f"{n:03}.png"
            found = [caption(captions[100 + n], 3), caption("a dog")]
            page.add(Example(100 + n, path, (HOSTILE, *captions_of(n, 2)), f"{n:03} {HOSTILE}"), found, second[100 + n])
        references = {100 + n: captions_of(n, 2) for n in range(60)}
        scored = score_images(references, captions, comparison=Comparison("theirs", second))
        page.finish(scored)
    return file, scored


@pytest.fixture
def open_page(browser, report):
    """Opens it; afterwards nothing was said on the console, and nothing was asked of any network."""
    said, asked, contexts = [], [], []

    def open_it(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report[0].as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {report[0].as_uri()}


def shown(page, part: str = ".name") -> list[str]:
    return page.locator(f"article.card {part}").all_inner_texts()


def numbers(page) -> list[int]:
    return [int(name.split()[0]) for name in shown(page)]


def test_sorting(open_page, report):
    page, scored = open_page(), report[1]
    first, second = (images.cider.round(4) for images in scored.per_image)
    keys = {
        "worst": first,
        "best": -first,
        "behind": first - second,
        "ahead": second - first,
        "file": 0 * first,
    }
    orders = set()
    for name, key in keys.items():
        page.select_option("#order", name)
        found = numbers(page)
        expected = sorted(range(60), key=lambda n: (round(float(key[n]), 4), n))[:24]
        assert [round(float(key[n]), 4) for n in found] == [round(float(key[n]), 4) for n in expected], name
        orders.add(tuple(found))
    assert len(orders) == 5
    page.select_option("#order", "doubt")
    assert len(shown(page)) == 24
    assert shown(page, ".by-first .scores")[0].startswith("CIDEr")


def test_paging_by_keyboard(open_page):
    page = open_page()
    page.select_option("#order", "file")
    assert page.is_disabled("#previous")
    seen = numbers(page)
    for _ in range(2):
        page.focus("#next")
        page.keyboard.press("Enter")
        seen += numbers(page)
    assert seen == list(range(60))
    assert page.inner_text("#position") == "49–60 of 60"
    assert page.is_disabled("#next")
    page.focus("#previous")
    page.keyboard.press("Space")
    assert numbers(page)[0] == 24


def test_finding(open_page):
    page = open_page()
    page.fill("#find", "yellow black")
    assert 0 < len(shown(page)) < 24
    assert all("yellow" in text and "black" in text for text in page.locator("article.card").all_text_contents())
    page.fill("#find", "</script")
    assert page.inner_text("#position").endswith("of 60")
    page.fill("#find", "((nothing")
    assert page.inner_text("#position") == "no images"
    page.fill("#find", "")
    page.click(".find-word >> nth=0")
    assert page.input_value("#find")


def test_filters(open_page, report):
    page, scored = open_page(), report[1]
    gains = [round(float(x - y), 4) for x, y in zip(*(images.cider for images in scored.per_image), strict=True)]
    page.select_option("#order", "file")
    for name, expected in (
        ("first", sum(g > 0 for g in gains)),
        ("second", sum(g < 0 for g in gains)),
        ("doubtful", 15),
    ):
        page.select_option("#filter", name)
        assert expected > 0
        assert page.inner_text("#position").endswith(f" of {expected}")
    page.select_option("#filter", "differ")
    first, second = (page.locator(f".by-{n} li:first-child").all_text_contents() for n in ("first", "second"))
    assert first
    assert all(a.split("end")[0].split() != b.split() for a, b in zip(first, second, strict=True))
    page.select_option("#filter", "all")
    assert page.inner_text("#position") == "1–24 of 60"


def test_details_are_shown_and_hidden(open_page):
    page = open_page()
    references = page.locator("article.card .references").first
    assert not references.is_visible()
    for where in (".more", ".image-box"):
        page.click(f"article.card {where} >> nth=0")
        assert references.is_visible()
        assert page.inner_text(".more >> nth=0") == "Less"
        page.click(f"article.card {where} >> nth=0")
        assert not references.is_visible()
        assert page.get_attribute(".more >> nth=0", "aria-expanded") == "false"
    page.click("#view")
    assert page.inner_text("#view") == "Show thumbnails"
    assert page.locator("article.card .references").last.is_visible()
    page.click("#view")
    assert page.inner_text("#view") == "Show details"
    assert not references.is_visible()
    summary = page.locator("#statistics summary").first
    assert summary.inner_text() == "Show as a table"
    summary.click()
    assert summary.inner_text() == "Hide the table"


def test_print(open_page):
    page = open_page()
    page.emulate_media(media="print")
    style = "getComputedStyle(document.querySelector('article.card .word')).printColorAdjust"
    assert page.evaluate(style) == "exact"
    assert page.evaluate("getComputedStyle(document.querySelector('article.card')).breakInside") == "avoid"
    assert not page.is_visible("#find")
    assert page.is_visible("#position")


def test_hostile_text_in_the_browser(open_page):
    page = open_page()
    assert all(name.endswith(SHOWN[-3:]) and "</script><!--" in name for name in shown(page))
    assert page.locator(".references li", has_text="</script><!--").count() == 24
    assert page.locator("article.card script").count() == 0
    assert page.locator('.references li[dir="auto"]').count() == 24 * 3


def test_attention_maps_by_keyboard(open_page):
    page = open_page()
    card = page.locator("article.card").first
    card.locator("button.word").first.focus()
    assert card.locator(".image-box canvas").count() == 1
    assert "61%" in card.locator(".word-label").inner_text()
    page.keyboard.press("ArrowRight")
    assert card.locator("button.word:focus").inner_text() == card.locator("button.word").nth(1).inner_text()
    card.locator(".more").click()
    card.locator(".word-maps summary").click()
    figures = card.locator(".word-maps figure")
    figures.first.wait_for()
    assert figures.count() == card.locator("button.word").count()


def test_dark_and_light(open_page):
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.body).color"
    light, dark = (open_page(color_scheme=scheme) for scheme in ("light", "dark"))

    def sum_of(page, what):
        return sum(map(int, re.findall(r"\d+", page.evaluate(what))))

    assert sum_of(light, ground) > 600 > 150 > sum_of(light, ink)
    assert sum_of(dark, ground) < 150 < 600 < sum_of(dark, ink)


def test_no_scrolling_sideways_on_a_phone(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every((e) => e.scrollWidth <= e.clientWidth)")
    card, image = (page.locator(part).first.bounding_box() for part in ("article.card", "article.card .image-box"))
    assert card["x"] >= 0
    assert card["x"] + card["width"] <= 390
    assert 150 < image["width"] < 195  # two in a row
    page.click("article.card .more >> nth=0")
    assert page.locator("article.card .image-box").first.bounding_box()["width"] > 250
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_page_tells_chance_from_significance(tmp_path, images):
    text, scored = write(tmp_path, images, ("mine", "theirs"))
    assert scored.scores["compare"]["CIDEr"]["p"] == 1
    assert "may be chance" in Page(text).text
    assert not Page(text).all("span", "better")


@pytest.mark.parametrize(("p", "stars"), [(0.0004, "***"), (0.004, "**"), (0.049, "*"), (0.051, "")])
@pytest.mark.parametrize(("sign", "word"), [(1, "better"), (-1, "worse")])
def test_significant_differences_have_stars(p, stars, sign, word):
    row = {"second": 2.0, "difference": 1.5 * sign, "low": 0, "high": 0, "p": p}
    scores = {"CIDEr": 3.5, "compare": {"CIDEr": row}}
    summary = {"scores": scores, "metrics": ["CIDEr"], "series": [("first", "mine"), ("second", "theirs")]}
    page = Page(render("reports/evaluation_tiles.html", page=SimpleNamespace(summary=summary)))
    marked = page.all("span", word)
    assert len(marked) == bool(stars)
    assert f"{row['difference']:+.2f}" + f"\xa0{stars}second" * bool(stars) in page.text
    assert (f"mine is {word} than theirs, by 1.50 CIDEr" in page.text) == bool(stars)
    assert ("may be chance" in page.text) != bool(stars)
