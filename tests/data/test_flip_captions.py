"""Left and right change places, and nothing else does."""

import doctest

import pytest
from helpers import refused, write_set

from captioner.config import DataConfig, ModelConfig
from captioner.data import flip_captions
from captioner.data.flip_captions import flip_caption
from captioner.data.vocabulary import tokenize
from captioner.training.datamodule import CaptionData


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog on the left of a man.", "a dog on the right of a man"),
        ("he raises his right arm", "he raises his left arm"),
        ("the left-hand door is the leftmost one", "the right-hand door is the rightmost one"),
        ("a right-handed batter looks left", "a left-handed batter looks right"),
        ("a bike to his right in front of the wall", "a bike to his left in front of the wall"),
        ("cars left and right", None),
        ("cars to the left and right", "cars to the right and left"),
        ("making a left turn on the far right", "making a right turn on the far left"),
        ("the bottom-right corner", "the bottom-left corner"),
        ("a lefty at bat", "a righty at bat"),
        ("the man left the house", "the man left the house"),
        ("toys were left behind", "toys were left behind"),
        ("a plane has left", "a plane has left"),
        ("a cat right next to a bowl", "a cat right next to a bowl"),
        ("it is all right", "it is all right"),
        ("bright leftovers upright", "bright leftovers upright"),
        ("a man looking right at the camera", None),
        ("two horses are right alongside", None),
        ("", ""),
    ],
)
def test_captions(text, expected):
    found = flip_caption(tokenize(text))
    assert (None if found is None else " ".join(found)) == expected


def test_examples_of_the_docstrings():
    found = doctest.testmod(flip_captions)
    assert found.attempted >= 2
    assert not found.failed


@pytest.mark.parametrize("text", ["the rightmost of his left-handed friends to the right", "a red dog", "he left it"])
def test_flipping_twice_changes_nothing(text):
    words = tokenize(text)
    once = flip_caption(words)
    assert len(once) == len(words)
    assert flip_caption(once) == words


def test_pairs_of_words_of_another_language():
    pairs = DataConfig(flip_words="links:rechts, linke:rechte").flip_pairs
    assert flip_caption(["links", "ein", "hund", "rechte"], pairs) == ["rechts", "ein", "hund", "linke"]
    refused(lambda: DataConfig(flip_words="links"), says=["data.flip_words is 'links'", "links:rechts"])


def test_captions_in_another_language_are_refused_without_them(tmp_path):
    german = write_set(tmp_path, captions=lambda n: [f"zwei Hunde links, Nummer {n}"])
    options = {**german.data(), "min_count": 1, "horizontal_flip": True}
    model = ModelConfig("resnet18", image_size=32, second_size=0)
    refused(lambda: CaptionData(DataConfig(**options), model), says=["--data.horizontal_flip", "--data.flip_words"])
    data = CaptionData(DataConfig(**options, flip_words="links:rechts"), model)
    assert data.train_set.can_flip.all()
