"""Scores of captions that are plain strings."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, refused

import captioner
from captioner import metrics
from captioner.metrics import strings

CAPTIONS = ["a dog runs", "two men sit on grass", ""]
REFERENCES = [["A dog runs on grass.", "The dog is running."], ["Two men sit outside."], ["A cat, asleep."]]


def test_strings_score_as_their_tokens():
    refs = [[metrics.ptb_tokenize(text) for text in each] for each in REFERENCES]
    expected = metrics.score_tokens(refs, [metrics.ptb_tokenize(text) for text in CAPTIONS], "ptb")
    assert metrics.score(CAPTIONS, REFERENCES) == expected
    assert set(metrics.NAMES) < set(expected)
    assert expected["CIDEr"] > 50


def test_the_example_of_the_docstring():
    assert doctest.testmod(strings).failed == 0


def test_a_perfect_caption():
    found = metrics.score(["a dog runs fast", "a cat sleeps here"], [["A dog runs fast."], ["a cat sleeps here"]])
    assert [round(found[name]) for name in metrics.NAMES] == [100] * 5 + [1000]


def test_dictionaries_are_matched_by_id_in_any_order():
    ids = ["b.jpg", 7, "a.jpg"]
    by_id = dict(zip(ids, REFERENCES, strict=True))
    found = metrics.score(dict(zip(ids, CAPTIONS, strict=True)), {image: by_id[image] for image in reversed(ids)})
    assert found == metrics.score(CAPTIONS, REFERENCES)


def test_other_sequences_and_tokenizers():
    expected = metrics.score(CAPTIONS, REFERENCES)
    assert metrics.score(np.array(CAPTIONS), tuple(map(tuple, REFERENCES))) == expected
    assert metrics.score(iter(CAPTIONS), (iter(each) for each in REFERENCES)) == expected
    characters = metrics.score(["两只狗", "猫"], [["两只狗。"], ["一只猫"]], tokenizer="char")
    assert characters["BLEU-1"] > 60
    assert "tokenizer:char" in characters["signature"]


WRONG = {
    "fewer references": (CAPTIONS, REFERENCES[:2], ["3 captions", "2 images"]),
    "no references": (["a dog"], [[]], ["image 0", "no reference"]),
    "nothing": ([], [], ["no captions"]),
    "a bare string": ("a dog", REFERENCES, ["captions are a str", "'a dog'", "list"]),
    "bare references": (CAPTIONS, "a dog", ["references are a str"]),
    "a bare reference": (["a dog"], ["a dog runs"], ["references of image 0", "'a dog runs'", "list of captions"]),
    "words instead of strings": ([["a", "dog"]], [["a dog"]], ["caption of image 0", "list", "string"]),
    "the other order": (REFERENCES, CAPTIONS, ["captions come first"]),
    "numbers": ([1], [["a"]], ["int (1)"]),
    "words as references": (["a dog"], [[["a", "dog"]]], ["reference of image 0", "list", "string"]),
    "None": (None, REFERENCES, ["captions are a NoneType"]),
    "a set": ({"a dog", "a cat"}, REFERENCES[:2], ["captions are a set", "list"]),
    "one dictionary": ({"a": "a dog"}, [["a dog"]], ["only the captions are by id"]),
    "missing references": ({"a": "x", "b": "y"}, {"a": ["x"]}, ["no reference for 1 image (", "'b'"]),
    "missing captions": ({"a": "x"}, {key: ["x"] for key in "abcdef"}, ["no caption for 5 images (", "'d' …"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_shapes_are_refused_in_one_line(case):
    captions, references, says = WRONG[case]
    refused(metrics.score, captions, references, says=says)


def test_an_unknown_tokenizer():
    for name in ("PTB", None, ["ptb"]):
        refused(metrics.score, CAPTIONS, REFERENCES, name, says=[repr(name), "ptb, words, char, none"])


def test_importing_captioner_is_enough_and_torch_is_not_loaded():
    assert captioner.metrics is metrics
    code = 'import captioner, sys; captioner.metrics.score(["a"], [["a"]]); sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
