"""The demo page: its results, and in a browser the way from an image to its captions."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from html import unescape

import pytest
from helpers import ROOT, SHIPPED, draw, is_one_line, make_captioner
from html_page import Page

from captioner.config import SearchConfig
from captioner.data.images import MAX_PIXELS
from captioner.deploy.demo import LABELS, PHOTOS, RANGES, ModelCache, option_help, results_html, search_config
from captioner.deploy.model_card import read_facts
from captioner.errors import UserError
from captioner.models.captioner import Captioner
from captioner.models.confidence import Calibration
from captioner.reports.page import render

BROWSER = "/usr/bin/chromium"
DEFAULTS = asdict(SearchConfig())


@pytest.fixture(scope="module")
def checkpoints(weights, tmp_path_factory):
    """Two models: the second one has attention."""
    folder = tmp_path_factory.mktemp("models")
    paths = [str(folder / "plain.safetensors"), str(folder / "grid.safetensors")]
    for path, options in zip(paths, ({}, {"grid": 2, "attention": "soft"}), strict=True):
        make_captioner(**options).save(path)
    return paths


@pytest.fixture(scope="module")
def models(checkpoints):
    return ModelCache(checkpoints, "cpu")


def values(**changed):
    return {**DEFAULTS, **changed}


# ---- behind the page


def test_an_unsure_caption_says_so(models, checkpoints, images, monkeypatch):
    model = models.get(checkpoints[0])
    search = asdict(SearchConfig().for_model(model.max_length))
    for intercept, unsure in ((-50.0, True), (50.0, False)):
        monkeypatch.setattr(model, "calibration", Calibration(intercept, 1.0, 40.0, 500, search), raising=False)
        best, details = results_html(models, checkpoints[0], str(images[0]), values())
        assert ("Unsure: about 0% of such" in best) == ("unsure, 0 %" in details) == unsure
        assert ("100 %</span>" in details) != unsure


def test_results_are_those_of_the_model(models, checkpoints, images):
    wanted = Captioner.load(checkpoints[0]).caption(images[0], beam=4, n_best=3)
    said, details = results_html(models, checkpoints[0], str(images[0]), values(beam=4, n_best=3))
    assert Page(said).text == wanted[0].text
    page = Page(details)
    assert "plain.safetensors, " in page.text
    assert os.path.dirname(checkpoints[0]) not in details
    rows = re.findall("<tr>" + r"<td[^>]*>(.*?)</td>" * 4 + "</tr>", details)
    for (text, *numbers), caption in zip(rows, wanted, strict=True):
        assert unescape(text).removesuffix(" …") == caption.text
        assert numbers == [f"{number:.2f}" for number in (caption.log_prob, caption.score, caption.perplexity)]
    assert [image["alt"] for image in page.all("img")] == [wanted[0].text]
    assert not page.all("details")  # no maps, so none are promised
    assert "attention map" not in page.text


def test_attention_maps_are_shown(models, checkpoints, images):
    page = Page(results_html(models, checkpoints[1], str(images[0]), DEFAULTS)[1])
    (words,) = page.all("div", "words")
    assert words["data-grid"] == "2"
    assert len(page.all("button", "word")) > 0
    assert "attention map" in page.text
    assert "open" in page.all("details")[0]


def test_a_model_is_loaded_on_first_use_and_kept(checkpoints):
    models = ModelCache(checkpoints, "cpu")
    assert list(models.loaded) == checkpoints[:1]
    assert models.get(checkpoints[1]) is models.get(checkpoints[1])
    with pytest.raises(UserError, match="not served here"):
        models.get(str(SHIPPED))
    with pytest.raises(UserError, match="no checkpoint missing"):
        ModelCache([checkpoints[0], "missing"], "cpu")


def test_a_model_without_facts_and_one_with_its_own(checkpoints, tmp_path):
    model = shutil.copy(checkpoints[0], tmp_path)
    about = ModelCache([model, str(SHIPPED)], "cpu").about
    assert about[model] == ""
    assert about[str(SHIPPED)] == read_facts(None).summary != ""
    (tmp_path / "plain.yaml").write_text("summary: It knows <circles>.")
    assert ModelCache([model], "cpu").about == {model: "It knows <circles>."}
    (tmp_path / "plain.yaml").write_text("summery: It knows circles.")
    with pytest.raises(UserError, match="did you mean summary"):
        ModelCache([model], "cpu")


def test_a_hint_without_an_image(models, checkpoints):
    said, details = results_html(models, checkpoints[0], None, {})
    assert "Drop an image" in said
    assert details == ""


def bomb(path):
    """The header of an image of too many pixels."""
    side = int(MAX_PIXELS**0.5) + 1
    path.write_bytes(f"P6 {side} {side} 255\n".encode())


@pytest.mark.parametrize(
    ("name", "write", "why"),
    [
        ("text.jpg", lambda path: path.write_text("<b>no image</b>"), "not an image"),
        ("empty.png", lambda path: path.write_bytes(b""), "empty"),
        ("bomb.ppm", bomb, "pixels"),
        ("cut.jpg", lambda path: path.write_bytes((PHOTOS / "cat.jpg").read_bytes()[:9000]), "cut short"),
        ("<img src=x>.jpg", lambda path: path.write_text("no"), "not an image"),
    ],
)
def test_a_bad_upload_is_one_line_without_its_folder(models, checkpoints, tmp_path, name, write, why):
    write(tmp_path / name)
    said, details = results_html(models, checkpoints[0], str(tmp_path / name), DEFAULTS)
    page = Page(said)
    assert page.all("p", "wrong")
    assert is_one_line(page.text, name, why)
    assert str(tmp_path) not in said
    assert not page.all("img")
    assert details == ""


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"n_best": 7}, ["“Captions to show” is 7", "beam width (5)"]),
        ({"beam": 10**6}, ["“Width of the search” is 1000000", "1 to 20"]),
        ({"groups": 2}, ["“Groups of different captions” is 2", "divisor"]),
        ({"must": "unicorn"}, ["unicorn"]),
        ({"sample": True, "temperature": 0}, ["“Daring of the draw” is 0"]),
        ({"sample": True, "seed": None}, ["“Number of the draw” is empty"]),
        ({"min_length": 30}, ["“Fewest words” is 30", "0 to 20"]),
        ({"max_length": float("nan")}, ["“Most words” is nan"]),
    ],
)
def test_a_wrong_value_is_one_line(models, checkpoints, images, changed, parts):
    said, _ = results_html(models, checkpoints[0], str(images[0]), values(**changed))
    assert 'class="wrong"' in said
    assert is_one_line(Page(said).text, *parts)


def test_controls_and_search_config_agree():
    assert search_config(DEFAULTS) == SearchConfig()
    assert list(option_help()) == list(LABELS) == [field.name for field in fields(SearchConfig)]
    assert len(set(LABELS.values())) == len(LABELS)
    assert all(option_help().values())
    assert all(low <= DEFAULTS[name] <= high for name, (low, high, _) in RANGES.items())
    assert search_config(values(temperature=0.5, seed=3)) == SearchConfig()  # not sampled: they do not count
    sampled = search_config(values(sample=True, temperature=1, seed=3.0))
    assert sampled == SearchConfig(sample=True, seed=3)
    assert isinstance(sampled.seed, int)
    assert isinstance(sampled.temperature, float)


def test_the_head_has_the_styles_and_scripts_of_the_cards():
    html = render("deploy/demo_head.html")
    assert "{{" not in html
    assert "function draw(" in html
    assert ".word {" in html
    assert not re.search(r"https?://|src=|@import|url\(", html)


def test_errors_of_the_command(cli, monkeypatch):
    assert cli("demo", "--port", "0")[0] == 2
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = cli("demo")
    assert code == 2
    assert is_one_line(err, "pip install -e '.[demo]'")


# ---- the page


@pytest.mark.slow
def test_every_option_has_a_control_with_its_default(models):
    pytest.importorskip("gradio", reason="the page is made with gradio")
    from captioner.deploy.demo import make_control

    for name, about in option_help().items():
        made = make_control(name, about)
        assert made.value == DEFAULTS[name]
        assert made.label == LABELS[name]
        assert made.info.lower() == about.lower()


@pytest.fixture(scope="module")
def address(checkpoints):
    """Where a ``captioner demo`` of the shipped model, and of another one, is served."""
    pytest.importorskip("gradio", reason="the page is made with gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "captioner", "demo", "--checkpoint", str(SHIPPED), "--checkpoint", checkpoints[0]]
    with subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            line = process.stdout.readline().decode()
            assert f"http://127.0.0.1:{port} " in line, process.stderr.read().decode()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            _, err = process.communicate(timeout=20)
    raised = re.findall(r"^[\w.]+(?:Error|Exception).*", err.decode(), re.MULTILINE)
    assert [line for line in raised if "was not uploaded by a user" not in line] == []  # those of the forged uploads


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    if not os.path.exists(BROWSER):
        pytest.skip(f"there is no {BROWSER}")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(address, browser):
    """``visit()`` → the page, opened by a new visitor; in the end no request has left this machine."""
    asked, mistakes, visitors = [], [], []

    def call(**options):
        visitors.append(browser.new_context(**options))
        page = visitors[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#caption[role=status] .hint")
        return page

    yield call
    for visitor in visitors:
        visitor.close()
    assert asked
    assert {url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))} == set()
    assert mistakes == []


def said(page, kind="best") -> str:
    return page.locator(f"#caption .{kind}").inner_text(timeout=30_000)


def predicted(cli, photo, *options) -> str:
    code, out, _ = cli("predict", PHOTOS / photo, "--device", "cpu", *options)
    assert code == 0
    return out.strip().split("\t")[1]


@pytest.mark.slow
def test_upload_and_caption_by_keyboard(visit, cli):
    wide, narrow = predicted(cli, "cat.jpg"), predicted(cli, "cat.jpg", "--beam", "1")
    assert wide != narrow
    page = visit()
    page.set_input_files("input[type=file]", PHOTOS / "cat.jpg")
    assert said(page) == wide
    number = page.get_by_label("number input for Width of the search")
    number.fill("1")
    number.press("Shift+Tab")
    for _ in range(10):  # back to the button
        if page.evaluate("document.activeElement.innerText") == "Caption":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.locator("#caption .best", has_text=narrow).wait_for(timeout=30_000)
    assert said(page) == narrow
    page.get_by_label("number input for Captions to show").fill("3")
    page.get_by_role("button", name="Caption", exact=True).click()
    assert "“Captions to show” is 3: expected 1 to the beam width (1)" in said(page, "wrong")


@pytest.mark.slow
def test_an_example_and_its_attention_maps(visit, cli):
    page = visit()
    thumbnails = page.locator("#examples img")
    assert [image.get_attribute("alt") for image in thumbnails.all()] == [
        photo.stem.capitalize() for photo in sorted(PHOTOS.glob("*.jpg"))
    ]
    assert all(image.evaluate("image => image.naturalWidth > 0") for image in thumbnails.all())
    assert page.locator("#about").inner_text() == read_facts(None).summary
    page.get_by_role("button", name="Rocket").press("Enter")
    caption = said(page)
    assert caption == predicted(cli, "rocket.jpg")
    names = [*caption.split(), "end"]
    strip = page.locator(".word-maps figure")
    strip.nth(len(names) - 1).wait_for()
    assert strip.count() == len(names)
    alts = [image.get_attribute("alt") for image in strip.locator("img").all()]
    assert alts == [f"attention map of {name}" for name in names]
    words = page.get_by_role("toolbar", name="Words of the caption").get_by_role("button")
    words.first.focus()
    maps = [page.evaluate("document.querySelector('.card > .image-box canvas').toDataURL()")]
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.innerText") == "end"
    maps.append(page.evaluate("document.querySelector('.card > .image-box canvas').toDataURL()"))
    assert maps[0] != maps[1]
    assert page.get_by_role("table", name="Captions and their scores").get_by_role("row").count() == 2
    page.get_by_role("button", name="Cat", exact=True).click()  # the next image has its own maps
    page.wait_for_function("before => document.querySelector('#caption .best').innerText !== before", arg=caption)
    names = [*said(page).split(), "end"]
    page.locator(".word-maps figure", has_text="cat").wait_for()
    assert strip.all_inner_texts() == names
    words.first.focus()
    contents = "canvases => canvases.map(canvas => canvas.toDataURL())"
    drawn = page.locator(".word-maps canvas").evaluate_all(contents)
    assert page.locator(".card > .image-box canvas").evaluate_all(contents) == drawn[:1]
    alone = visit()
    alone.get_by_role("button", name="Cat", exact=True).click()
    alone.locator(".word-maps figure", has_text="cat").wait_for()
    assert alone.locator(".word-maps canvas").evaluate_all(contents) == drawn


@pytest.mark.slow
def test_everything_that_can_be_operated_has_a_name(visit):
    page = visit()
    page.get_by_role("button", name="Cat", exact=True).click()
    said(page)
    page.get_by_label(LABELS["sample"], exact=True).check()
    page.get_by_role("button", name="More options").click()
    page.get_by_label(LABELS["diversity"]).wait_for()
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "textbox",
        "slider",
        "spinbutton",
        "checkbox",
        "radio",
        "combobox",
        "listbox",
        "table",
        "toolbar",
    }
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in roles
    ]
    assert [role for role, name in found if not name.strip()] == []
    assert {"button", "textbox", "slider", "spinbutton", "checkbox", "radio", "table"} <= {role for role, _ in found}
    names = " | ".join(name.lower() for _, name in found)
    missing = [name for name in DEFAULTS if name != "length_norm" and LABELS[name].lower() not in names]
    assert missing == []


@pytest.mark.slow
def test_other_checkpoints_and_bad_images(visit, checkpoints, tmp_path):
    page = visit(viewport={"width": 390, "height": 844})
    (tmp_path / "no.jpg").write_text("no image")
    page.set_input_files("input[type=file]", tmp_path / "no.jpg")
    assert said(page, "wrong").startswith("no.jpg: not an image")
    draw(tmp_path / "square.png", 3)
    page.get_by_role("button", name="Remove Image").click()
    page.locator("#caption .hint").wait_for()
    page.set_input_files("input[type=file]", tmp_path / "square.png")
    said(page)
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="plain.safetensors").click()
    page.wait_for_function("document.getElementById('about').innerText.trim() === ''")  # nothing is known about it
    page.get_by_role("button", name="Caption", exact=True).click()
    wanted = Captioner.load(checkpoints[0]).caption(tmp_path / "square.png")
    page.locator("#caption .best", has_text=re.compile(f"^{re.escape(wanted)}$")).wait_for(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    row = page.get_by_role("table", name="Captions and their scores").get_by_role("row").last
    caption, score = row.get_by_role("cell").first.bounding_box(), row.get_by_role("cell").nth(2).bounding_box()
    assert caption["y"] + caption["height"] <= score["y"]  # above its numbers, as wide as the page
    assert caption["width"] > 300


@pytest.mark.slow
def test_several_visitors_at_once(visit, cli):
    pages = {name: visit() for name in ("astronaut", "cameraman", "cat", "rocket")}
    for name, page in pages.items():
        page.set_input_files("input[type=file]", PHOTOS / f"{name}.jpg")
    assert {name: said(page) for name, page in pages.items()} == {n: predicted(cli, f"{n}.jpg") for n in pages}


@pytest.mark.slow
def test_no_file_of_the_server_can_be_named(address, tmp_path):
    """A forged upload: the path of an image that nobody has uploaded."""
    draw(tmp_path / "private.png", 1)

    def call(path):
        image = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        data = json.dumps({"data": [str(SHIPPED), image, *DEFAULTS.values()]}).encode()
        request = urllib.request.Request(
            f"{address}/gradio_api/call/respond", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            event = json.load(reply)["event_id"]
        with urllib.request.urlopen(f"{address}/gradio_api/call/respond/{event}", timeout=30) as reply:
            return reply.read().decode()

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(call, [tmp_path / "private.png", "/etc/passwd"]))
    assert all("event: error" in text and "best" not in text and "wrong" not in text for text in answers)
