"""Scores by image id, as people read them."""

import json

import pytest
from conftest import is_one_line

from captioner import metrics
from captioner.errors import UserError
from captioner.results import score_captions, show_scores
from captioner.vocabulary import tokenize

REFERENCES = {7: ["A dog runs.", "the dog is running fast"], 3: ["a cat sits on a mat"], 5: ["two men talk", "Two men"]}
CAPTIONS = {3: "a cat sits on a mat", 5: "two men talk", 7: "a dog runs"}


def test_scores_are_those_of_metrics_in_the_order_of_the_ids():
    ids = [7, 3, 5]
    expected = metrics.score(
        [[tokenize(text) for text in REFERENCES[i]] for i in ids], [tokenize(CAPTIONS[i]) for i in ids], "x"
    )
    scores = score_captions(REFERENCES, CAPTIONS)
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "distinct", "mean_length", "images"):
        assert scores[name] == pytest.approx(expected[name]), name


def test_the_order_of_the_images_does_not_count():
    a, b = (score_captions(dict(sorted(REFERENCES.items(), reverse=r)), CAPTIONS) for r in (False, True))
    assert {k: a[k] for k in ("CIDEr", "BLEU-4")} == pytest.approx({k: b[k] for k in ("CIDEr", "BLEU-4")})


def test_shuffled_captions_tell_captions_of_the_picture_from_captions_of_any_picture():
    references = {i: [f"w{i} x{i} y{i} z{i}"] for i in range(20)}
    true = score_captions(references, {i: f"w{i} x{i} y{i} z{i}" for i in range(20)})
    assert true["CIDEr"] > 900
    assert true["CIDEr-shuffled"] == pytest.approx(0)
    same = score_captions(references, dict.fromkeys(range(20), "w1 x2 y3 z4"))
    assert same["CIDEr-shuffled"] == pytest.approx(same["CIDEr"])


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        ({3: "a", 5: "b"}, ["1 without a caption (e.g. [7])", "0 without references"]),
        ({**CAPTIONS, 99: "more"}, ["0 without a caption", "1 without references (e.g. [99])"]),
        ({"3": "a"}, ["3 without a caption", "(e.g. ['3'])"]),
    ],
)
def test_other_images_are_refused_by_name(captions, says):
    with pytest.raises(UserError) as caught:
        score_captions(REFERENCES, captions)
    assert is_one_line(str(caught.value), *says)


def test_ids_of_both_kinds():
    """COCO ids are numbers, other sets' are strings; a file may have both."""
    with pytest.raises(UserError, match="2 without a caption"):
        score_captions({3: ["a"], "x": ["b"], "y": ["c"]}, {3: "a"})
    with pytest.raises(UserError, match="2 without a caption"):
        score_captions({3: ["a"], "x": ["b"], 4: ["c"]}, {3: "a"})


def test_one_image():
    assert score_captions({1: ["a dog"]}, {1: "a dog"})["images"] == 1


def test_shown_and_written(tmp_path, capsys):
    scores = score_captions(REFERENCES, CAPTIONS)
    show_scores(scores, str(tmp_path / "new" / "metrics.json"))
    out = capsys.readouterr().out
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr"):
        assert f"{scores[name]:.2f}" in next(line for line in out.splitlines() if line.startswith(name))
    assert scores["signature"] in out
    assert "of 3 captions" in out
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == scores
