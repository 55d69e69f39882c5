"""Scores by image id: computed, compared, printed and written."""

import csv
import json

import pytest
from helpers import is_one_line

from captioner import metrics
from captioner.data.vocabulary import tokenize
from captioner.errors import UserError, counted
from captioner.metrics import external
from captioner.metrics.ptb_tokenizer import ptb_tokenize
from captioner.metrics.scoring import ScoreOptions, score_images, show_scores
from captioner.metrics.tokenizers import characters

REFERENCES = {
    7: ["A dog's ball.", "the dog is running fast"],
    3: ["a cat sits on a mat"],
    5: ["two men talk", "Two men"],
}
CAPTIONS = {3: "a cat sits on a mat .", 5: "two men talk", 7: "a dog's ball"}
TOKENIZERS = {"ptb": ptb_tokenize, "words": tokenize, "char": characters, "none": str.split}


def score_captions(*arguments, **options):
    return score_images(*arguments, **options).scores


@pytest.mark.parametrize("tokenizer", [None, *TOKENIZERS])
def test_scores_are_those_of_metrics_in_the_order_of_the_ids(tokenizer):
    words, ids = TOKENIZERS[tokenizer or "ptb"], [7, 3, 5]
    references, captions = [[words(text) for text in REFERENCES[i]] for i in ids], [words(CAPTIONS[i]) for i in ids]
    scores = score_captions(REFERENCES, CAPTIONS, ScoreOptions(tokenizer=tokenizer) if tokenizer else ScoreOptions())
    expected = metrics.score_tokens(references, captions, tokenizer or "ptb")
    assert {name: scores.pop(name) for name in expected} == expected
    assert f"tokenizer:{tokenizer or 'ptb'} " in expected["signature"]
    assert scores.pop("intervals") == metrics.intervals(metrics.per_image(references, captions))
    assert list(scores) == ["CIDEr-shuffled"]


def test_the_tokenizers_differ_where_they_should():
    found = {name: score_captions(REFERENCES, CAPTIONS, ScoreOptions(tokenizer=name)) for name in TOKENIZERS}
    assert {name: round(3 * scores["mean_length"]) for name, scores in found.items()} == {
        "ptb": 6 + 3 + 4,  # a dog 's ball
        "words": 6 + 3 + 3,
        "char": 9 + 14 + 10,
        "none": 7 + 3 + 3,
    }


def test_the_order_of_the_images_does_not_count():
    a, b = (score_captions(dict(sorted(REFERENCES.items(), reverse=r)), CAPTIONS) for r in (False, True))
    assert {k: a[k] for k in ("CIDEr", "BLEU-4")} == pytest.approx({k: b[k] for k in ("CIDEr", "BLEU-4")})


def test_shuffling_lowers_only_captions_that_depend_on_their_image():
    references = {i: [f"w{i} x{i} y{i} z{i}"] for i in range(20)}
    true = score_captions(references, {i: f"w{i} x{i} y{i} z{i}" for i in range(20)})
    assert true["CIDEr"] > 900
    assert true["CIDEr-shuffled"] == pytest.approx(0)
    same = score_captions(references, dict.fromkeys(range(20), "w1 x2 y3 z4"))
    assert same["CIDEr-shuffled"] == pytest.approx(same["CIDEr"])


# ---- images that are not the same


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        ({3: "a", 5: "b"}, ["1 without a caption (e.g. [7])", "0 without references"]),
        ({**CAPTIONS, 99: "more"}, ["0 without a caption", "1 without references (e.g. [99])"]),
        ({"3": "a", "x": "b"}, ["2 without a caption (e.g. [7, 5])", "1 without references (e.g. ['x'])"]),
    ],
)
def test_other_images_are_an_error_or_left_out(captions, says, capsys):
    with pytest.raises(UserError) as caught:
        score_captions(REFERENCES, captions, where="mine.json")
    assert is_one_line(str(caught.value), "mine.json: ", *says, "--partial")
    scores = score_captions(REFERENCES, captions, ScoreOptions(partial=True), where="mine.json")
    out, err = capsys.readouterr()
    assert out == ""
    assert is_one_line(err, "mine.json: ", *says, f"left out; {counted(scores['images'], 'image')} in both")
    both = {image: text for image, text in CAPTIONS.items() if image in captions or str(image) in captions}
    assert scores["images"] == len(both)
    assert scores["missing"] == 3 - len(both)
    assert scores["extra"] == len(captions) - len(both)
    alone = score_captions({i: REFERENCES[i] for i in both}, {i: captions.get(i, captions.get(str(i))) for i in both})
    assert {name: scores[name] for name in metrics.NAMES} == {name: alone[name] for name in metrics.NAMES}


def test_many_other_images_are_counted_and_some_are_named():
    with pytest.raises(UserError, match=r"40 without a caption \(e\.g\. \[1, 2, 3, 4, 5\]\)"):
        score_captions({i: ["a"] for i in range(41)}, {0: "a"})


@pytest.mark.parametrize("partial", [False, True])
def test_no_image_in_common_is_always_an_error(partial):
    with pytest.raises(UserError) as caught:
        score_captions(REFERENCES, {"a.jpg": "a", "b.jpg": "b"}, ScoreOptions(partial=partial), where="mine.json")
    assert is_one_line(str(caught.value), "none of its 2 images (['a.jpg', 'b.jpg']", "of the annotations ([7, 3, 5]")


def test_ids_of_both_kinds():
    """COCO ids are numbers, other sets' are strings; a file may have both."""
    with pytest.raises(UserError, match="2 without a caption"):
        score_captions({3: ["a"], "x": ["b"], "y": ["c"]}, {3: "a"})
    with pytest.raises(UserError, match="2 without a caption"):
        score_captions({3: ["a"], "x": ["b"], 4: ["c"]}, {3: "a"})


def test_one_image():
    assert score_captions({1: ["a dog"]}, {1: "a dog"})["images"] == 1


# ---- options


def test_compared(tmp_path, capsys):
    other = {3: "a dog", 5: "two men talk", 7: "the dog is running fast"}
    file = tmp_path / "other.json"
    file.write_text(json.dumps({str(image): text for image, text in other.items()}))
    scores = score_captions(REFERENCES, CAPTIONS, ScoreOptions(compare=str(file)), where="mine.json")
    compared, alone = scores["compare"], score_captions(REFERENCES, other)
    assert (compared["first"], compared["second"]) == ("mine.json", str(file))
    for name in metrics.NAMES:
        row = compared[name]
        assert row["first"] == scores[name]
        assert row["second"] == alone[name]
        assert row["difference"] == pytest.approx(scores[name] - alone[name])
        assert row["low"] <= row["high"]
        assert 0 < row["p"] <= 1
    show_scores(scores, None)
    lines = capsys.readouterr().out.splitlines()
    assert all(part in lines[-8] for part in ("mine.json", str(file), "same images", "bootstrap", "randomisation"))
    cider = compared["CIDEr"]
    numbers = [f"{cider['first']:.2f}", f"{cider['second']:.2f}", f"{cider['difference']:+.2f}"]
    assert cider["low"] == 0
    interval = ["[0.00,", f"{cider['high']:+.2f}]", f"{cider['p']:.4f}"]
    assert lines[-1].split() == ["CIDEr", *numbers, *interval]


def test_compared_on_the_images_of_both(tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"3": "a cat", "5": "two men", "x": "?"}))
    with pytest.raises(
        UserError, match=r"other\.json: .* annotations: 1 without a caption .*\[7\].*1 without references .*'x'"
    ):
        score_captions(REFERENCES, CAPTIONS, ScoreOptions(compare=str(file)))
    options = ScoreOptions(compare=str(file), partial=True)
    scores = score_captions(REFERENCES, {7: CAPTIONS[7], 3: CAPTIONS[3]}, options)
    assert scores["images"] == 1  # 3
    assert (scores["missing"], scores["extra"]) == (1, 0)
    assert (scores["compare"]["missing"], scores["compare"]["extra"]) == (1, 1)
    assert len(capsys.readouterr().err.splitlines()) == 2
    with pytest.raises(UserError, match="no image in common"):
        score_captions(REFERENCES, {7: "a dog"}, options)


def test_seen_in_training(tmp_path, capsys):
    file = tmp_path / "training.json"
    file.write_text(json.dumps({"1": ["Two men talk!", "a cat"], "2": ["a dog's balls"]}))
    scores = score_captions(REFERENCES, CAPTIONS, ScoreOptions(training=str(file)))
    assert scores["seen_in_training"] == pytest.approx(100 / 3)
    show_scores(scores, None)
    assert "33.33 % of the captions are in the training set, word for word" in capsys.readouterr().out


def test_per_image(tmp_path):
    scores = score_captions(REFERENCES, CAPTIONS, ScoreOptions(per_image=str(tmp_path / "new" / "images.json")))
    score_captions(REFERENCES, CAPTIONS, ScoreOptions(per_image=str(tmp_path / "images.csv")))
    rows = json.loads((tmp_path / "new" / "images.json").read_text())
    assert [(row["image_id"], row["caption"]) for row in rows] == [(i, CAPTIONS[i]) for i in (7, 3, 5)]
    for name in ("ROUGE-L", "CIDEr"):
        assert sum(row[name] for row in rows) / 3 == pytest.approx(scores[name])
    assert rows[1]["BLEU-4"] == pytest.approx(100)
    with open(tmp_path / "images.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in row.items()} for row in rows]
    with pytest.raises(UserError, match=r"--per_image is 'x\.txt'"):
        ScoreOptions(per_image="x.txt")


def test_external_scores_or_a_line_for_each(monkeypatch, capsys, tmp_path):
    asked = {}

    def score(references, captions, *more):
        asked[len(asked)] = (references, captions, *more)
        return 0.25

    def cannot(*inputs):
        raise UserError("no such thing: get it")

    options = ScoreOptions(meteor=True, spice=True, clip_score="a/clip")
    images = {image: tmp_path / f"{image}.jpg" for image in REFERENCES}
    for name in ("meteor", "spice", "clip_score"):
        monkeypatch.setattr(external, name, score)
    scores = score_captions(REFERENCES, CAPTIONS, options, paths=images, device="cuda:1")
    assert {name: scores[name] for name in ("METEOR", "SPICE", "CLIPScore")} == dict.fromkeys(
        ["METEOR", "SPICE", "CLIPScore"], 25
    )
    assert asked[0] == asked[1]
    assert asked[0][1] == [["a", "dog", "'s", "ball"], ["a", "cat", "sits", "on", "a", "mat"], ["two", "men", "talk"]]
    assert asked[0][0][2] == [["two", "men", "talk"], ["two", "men"]]
    assert asked[2] == ([images[i] for i in (7, 3, 5)], [CAPTIONS[i] for i in (7, 3, 5)], "a/clip", "cuda:1")
    assert scores["signature"].endswith("CLIPScore:a/clip")
    show_scores(scores, None)
    out, err = capsys.readouterr()
    assert err == ""
    assert all(f"{name:<10}   25.00\n" in out for name in ("METEOR", "SPICE", "CLIPScore"))

    for name in ("meteor", "spice", "clip_score"):
        monkeypatch.setattr(external, name, cannot)
    without = score_captions(REFERENCES, CAPTIONS, options, paths=images)
    assert without == score_captions(REFERENCES, CAPTIONS)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{name} is skipped: no such thing: get it" for name in ("METEOR", "SPICE", "CLIPScore")]
    score_captions(REFERENCES, CAPTIONS, ScoreOptions(clip_score="a/clip"), paths={7: tmp_path})
    assert is_one_line(
        capsys.readouterr().err, "CLIPScore is skipped: 2 images without a file name within the folder (e.g. [3, 5])"
    )


def test_shown_and_written(tmp_path, capsys):
    scores = score_captions(REFERENCES, CAPTIONS, ScoreOptions(nltk=True))
    show_scores(scores, str(tmp_path / "new" / "metrics.json"))
    out = capsys.readouterr().out
    for name in metrics.NAMES:
        line = next(line for line in out.splitlines() if line.startswith(name))
        assert f"{scores[name]:.2f}" in line
        assert "[{low:.2f}, {high:.2f}]".format(**scores["intervals"][name]) in line
    assert scores["signature"] in out
    assert "of 3 captions" in out
    assert " / ".join(f"{value:.2f}" for value in scores["nltk"].values()) in out
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == scores
    show_scores(score_captions(REFERENCES, CAPTIONS, ScoreOptions(intervals=False)), None)
    out = capsys.readouterr().out
    assert "[" not in out
    assert "nltk" not in out
