"""``captioner score`` on other people's files: what it reads, prints and refuses."""

import json
import sys

import pytest
from helpers import captions_of, is_one_line

ROWS = [
    (112 + n, f"{12 + n:03}.png", f"a square {'on' if n % 2 else 'of'} {captions_of(12 + n, 1)[0]}") for n in range(6)
]
FORMATS = {
    "coco.json": [{"image_id": image, "caption": text} for image, _, text in ROWS],
    "strings.json": [{"id": str(image), "prediction": text} for image, _, text in ROWS],
    "mapping.json": {image: text for image, _, text in ROWS},
    "lists.json": {image: [text, "another"] for image, _, text in ROWS},
    "files.json": {"predictions": [{"file_name": name, "generated": text} for _, name, text in ROWS]},
    "lines.jsonl": [{"image": f"some/folder/{name}", "caption": text, "log_prob": -1} for _, name, text in ROWS[::-1]],
}


@pytest.fixture
def score(cli, tiny, tmp_path):
    """``score(results, option, …)`` → exit code, output, errors; `results` is written as JSON, or as text."""

    def call(results, *options, annotations=None):
        file = tmp_path / "mine.json"
        file.write_text(results if isinstance(results, str) else json.dumps(results))
        return cli("score", "--annotations", annotations or tiny.annotations("val"), "--results", file, *options)

    return call


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_same_scores(score, tmp_path, name):
    expected = score(FORMATS["coco.json"])
    assert expected[0] == 0
    assert expected[2] == ""
    data = "\n".join(map(json.dumps, FORMATS[name])) if name.endswith("l") else FORMATS[name]
    assert score(data) == expected


def test_references_as_a_mapping(score, tiny, tmp_path):
    data = json.loads(tiny.annotations("val").read_text())
    names = {image["id"]: image["file_name"] for image in data["images"]}
    for key in (str, names.get):
        references: dict = {}
        for row in data["annotations"]:
            references.setdefault(key(row["image_id"]), []).append(row["caption"])
        (tmp_path / "references.json").write_text(json.dumps(references))
        results = FORMATS["coco.json"] if key is str else FORMATS["files.json"]
        assert score(results, annotations=tmp_path / "references.json") == score(FORMATS["coco.json"])


def test_the_first_reference_is_a_perfect_caption(score):
    code, out, err = score([{"image_id": image, "caption": captions_of(image - 100, 1)[0]} for image, _, _ in ROWS])
    assert (code, err) == (0, "")
    assert "BLEU-4      100.00" in out


def test_missing_and_extra_images(score, tmp_path):
    rows = [*FORMATS["coco.json"][2:], {"image_id": 5, "caption": "a"}]
    parts = ["mine.json", "2 without a caption (e.g. [112, 113])", "1 without references (e.g. [5])"]
    code, out, err = score(rows)
    assert (code, out) == (2, "")
    assert is_one_line(err, *parts, "--partial")
    code, out, err = score(rows, "--partial", "--json", tmp_path / "metrics.json")
    assert code == 0
    assert "of 4 captions" in out
    assert is_one_line(err, *parts)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["images"], metrics["missing"], metrics["extra"]) == (4, 2, 1)
    code, out, err = score([{"image_id": 5, "caption": "a"}], "--partial")
    assert (code, out) == (2, "")
    assert is_one_line(err, "[5]", "[112, 113,")


def test_compare_per_image_and_training(score, tiny, tmp_path):
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, FORMATS["lines.jsonl"])))
    files = ["--compare", tmp_path / "other.jsonl", "--per_image", tmp_path / "images.csv"]
    files += ["--training", tiny.annotations("train"), "--json", tmp_path / "metrics.json"]
    code, out, err = score(FORMATS["coco.json"], *files, "--nltk")
    assert (code, err) == (0, "")
    assert "other.jsonl, on the same images" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["compare"]["CIDEr"] == pytest.approx(
        {"first": metrics["CIDEr"], "second": metrics["CIDEr"], "difference": 0, "low": 0, "high": 0, "p": 1}
    )
    assert metrics["seen_in_training"] == 0
    assert len((tmp_path / "images.csv").read_text().splitlines()) == 7
    assert set(metrics["nltk"]) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"}


@pytest.mark.parametrize(
    ("results", "options", "parts"),
    [
        ("coco.json", ["--tokenizer", "spacy"], ["tokenizer", "spacy"]),
        ("coco.json", ["--per_image", "a.txt"], ["--per_image", "a.txt"]),
        ("coco.json", ["--per_image", "/dev/null/a.csv"], ["/dev/null/a.csv", "cannot be written"]),
        ("coco.json", ["--json", "/dev/null/a.json"], ["/dev/null/a.json", "cannot be written"]),
        ("coco.json", ["--compare", "missing.json"], ["missing.json: no such file"]),
        ("coco.json", ["--training", "missing.json"], ["missing.json: no such file"]),
        ("coco.json", ["--clip_score", "a/clip"], ["--images", "--clip_score"]),
        ("coco.json", ["--clip_score", "a/clip", "--images", "nowhere"], ["--images is 'nowhere'"]),
        ([{"image_id": 112, "caption": "a"}, {"image_id": "112", "caption": "b"}], [], ["image 112 comes twice"]),
        ({"rows": [{"image_id": 1, "caption": "a"}]}, [], ["mine.json"]),
        ('{"image": "a.png", "caption": "a"}\n{"image"', [], ["mine.json", "line 2"]),
    ],
    ids=str,
)
def test_mistakes_are_one_line(score, results, options, parts):
    code, out, err = score(FORMATS.get(results, results) if isinstance(results, str) else results, *options)
    assert (code, out) == (2, "")
    assert is_one_line(err, "captioner score: error: ", *parts), err


def test_what_cannot_be_had_is_skipped(score, tiny, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    expected = score(FORMATS["coco.json"])[1]
    asked = ["--meteor", "--spice", "--clip_score", tmp_path, "--images", tiny.images("val")]
    code, out, err = score(FORMATS["coco.json"], *asked)
    assert (code, out) == (0, expected)
    lines = err.splitlines()
    assert [line.split(" is skipped: ")[0] for line in lines] == ["METEOR", "SPICE", "CLIPScore"]


def test_no_image_outside_the_folder_is_read(score, tiny, tmp_path):
    data = json.loads(tiny.annotations("val").read_text())
    data["images"][0]["file_name"] = "../train/000.png"
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    files = ["--clip_score", tmp_path, "--images", tiny.images("val")]
    code, _, err = score(FORMATS["coco.json"], *files, annotations=tmp_path / "annotations.json")
    assert code == 0
    assert is_one_line(err, "CLIPScore is skipped: 1 image without a file name within the folder (e.g. [112])")


@pytest.mark.slow
def test_clip_score(score, tiny, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (the extra clip)")
    from tiny_clip import write_clip

    write_clip(tmp_path / "clip")
    files = ["--clip_score", tmp_path / "clip", "--images", tiny.images("val"), "--json", tmp_path / "metrics.json"]
    code, out, err = score(FORMATS["coco.json"], *files)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "metrics.json").read_text())["CLIPScore"]
    assert 0 < found < 250
    assert f"CLIPScore {found:8.2f}" in out
