"""captioner calibrate, and the confidences that the other commands then show."""

import csv
import json
from dataclasses import asdict

import pytest
from helpers import captions_of, draw, is_one_line, write_set
from safetensors import safe_open

from captioner.config import SearchConfig
from captioner.models.captioner import Captioner
from captioner.models.confidence import UNSURE

SEARCH = ["--beam", "2", "--max_length", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def coco(checkpoint, tmp_path_factory):
    """120 images, whose references the model matches where its perplexity is low, with exceptions."""
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(30):
        draw(folder / f"{number:02}.png", number)
    model = Captioner.load(checkpoint)
    found = [one[0] for one in model.caption_files(sorted(folder.iterdir()), SearchConfig(beam=2, max_length=5))]
    limit = sorted(one.perplexity for one in found)[15]

    def captions(number):
        caption = found[number % 30]
        matches = (caption.perplexity < limit) != (number % 7 == 0)
        return [caption.text, *captions_of(number, 2)] if matches else captions_of(number, 3)

    return write_set(folder / "set", train=1, val=120, captions=captions)


@pytest.fixture(scope="module")
def calibrated(checkpoint, coco):
    from captioner.__main__ import main

    target = checkpoint.parent / "calibrated.safetensors"
    named = ["--annotations", coco.annotations("val"), "--images", coco.images("val")]
    options = ["--checkpoint", checkpoint, *named, "--output", target, "--plot", target.parent / "curve.png", *SEARCH]
    assert main(["calibrate", *map(str, options)]) == 0
    return target


def content(file):
    """Metadata, and the names, types and bytes of the tensors."""
    with safe_open(file, framework="np") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return opened.metadata(), {name: (value.dtype, value.tobytes()) for name, value in tensors.items()}


def test_only_the_header_changes(checkpoint, calibrated):
    (before, tensors), (after, same) = content(checkpoint), content(calibrated)
    assert tensors == same
    old, new = json.loads(before["captioner"]), json.loads(after["captioner"])
    found = new.pop("calibration")
    assert old == new
    assert (found["cider"], found["images"]) == (40, 120)
    assert found["search"] == asdict(SearchConfig(beam=2, max_length=5))
    assert (calibrated.parent / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_in_place_again_and_of_two_sets(cli, calibrated, coco, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(calibrated.read_bytes())
    named = ["--annotations", coco.annotations("val"), "--images", coco.images("val")]
    code, out, err = cli("calibrate", "--checkpoint", file, *named, *named, *SEARCH)
    assert (code, err) == (0, "")
    assert "240 captions" in out
    assert "expected calibration error" in out
    assert content(file)[1] == content(calibrated)[1]
    assert json.loads(content(file)[0]["captioner"])["calibration"]["images"] == 240
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_is_refused(cli, checkpoint, coco, tiny, run, tmp_path):
    before = checkpoint.read_bytes()
    own = ["--annotations", coco.annotations("val"), "--images", coco.images("val"), *SEARCH]
    few = ["--annotations", tiny.annotations("val"), "--images", tiny.images("val"), *SEARCH]
    for options, *says in (
        (["--checkpoint", checkpoint, *few], "6 images to calibrate on: too few", "100"),
        (["--checkpoint", checkpoint, *own, "--cider", "5000"], "no caption", "--cider"),
        (
            ["--checkpoint", checkpoint, *own, "--images", tmp_path, "--images", tmp_path],
            "3 --images",
            "1 --annotations",
        ),
        (own, "shipped", "--output"),
        (["--checkpoint", run / "best.ckpt", *own], "captioner.safetensors"),
        (["--checkpoint", checkpoint, *own, "--output", tmp_path / "x.ckpt"], ".safetensors"),
        (["--checkpoint", checkpoint, *few, "--plot", tmp_path / "curve.xyz"], "--plot", ".png, .svg, .pdf"),
        (["--checkpoint", checkpoint, *few, "--plot", checkpoint / "curve.png"], "curve.png"),
    ):
        code, _, err = cli("calibrate", *options)
        assert code == 2, options
        assert is_one_line(err, *says), err
    assert checkpoint.read_bytes() == before
    assert not [*tmp_path.iterdir()]


def test_predict_says_it(cli, checkpoint, calibrated, coco, tmp_path):
    photos = [coco.images("val") / f"{number:03}.png" for number in range(1, 31)]
    _, rows, _ = cli("predict", *photos, "--checkpoint", calibrated, *SEARCH, "--format", "jsonl")
    records = [json.loads(row) for row in rows.splitlines()]
    confidences = [record["confidence"] for record in records]
    assert min(confidences) < UNSURE < max(confidences)

    _, plain, _ = cli("predict", *photos, "--checkpoint", checkpoint, *SEARCH)
    _, marked, _ = cli("predict", *photos, "--checkpoint", calibrated, *SEARCH)
    for line, before, confidence in zip(marked.splitlines(), plain.splitlines(), confidences, strict=True):
        assert line == before + (f"\tunsure ({confidence:.0%})" if confidence < UNSURE else "")

    _, table, _ = cli("predict", *photos, "--checkpoint", calibrated, *SEARCH, "--format", "csv", "--n_best", "2")
    cells = list(csv.DictReader(table.splitlines()))
    assert [float(cell["confidence"]) for cell in cells[::2]] == pytest.approx(confidences, abs=6e-4)
    assert {cell["confidence"] for cell in cells[1::2]} == {""}
    _, table, _ = cli("predict", photos[0], "--checkpoint", checkpoint, *SEARCH, "--format", "csv")
    assert table.splitlines()[0] == "image,caption"

    page = tmp_path / "page.html"
    cli("predict", *photos, "--checkpoint", calibrated, *SEARCH, "--report", page)
    assert page.read_text().count('class="confidence unsure"') == sum(each < UNSURE for each in confidences)


def test_evaluate_says_how_good_it_is(cli, calibrated, coco, tmp_path):
    named = ["--annotations", coco.annotations("val"), "--images", coco.images("val"), "--no_intervals"]
    scores, page = tmp_path / "scores.json", tmp_path / "page.html"
    code, out, err = cli("evaluate", "--checkpoint", calibrated, *named, *SEARCH, "--json", scores, "--report", page)
    assert (code, err) == (0, "")
    found = json.loads(scores.read_text())["calibration"]
    assert 0 <= found["ece"] < 0.2
    assert f"expected calibration error {found['ece']:.3f} of 120 captions" in out
    assert 'class="reliability"' in page.read_text()
    code, out, err = cli("evaluate", "--checkpoint", calibrated, *named, "--beam", "3", "--device", "cpu")
    assert code == 0
    assert "calibration error" not in out
    assert is_one_line(err, "no confidences", "beam is 2 there and 3 here", "max_length")


def test_an_average_is_not_calibrated(cli, calibrated, tmp_path):
    target = tmp_path / "average.safetensors"
    assert cli("average", calibrated, calibrated, "--output", target)[0] == 0
    assert Captioner.load(target).calibration is None
    assert Captioner.load(calibrated).calibration is not None
