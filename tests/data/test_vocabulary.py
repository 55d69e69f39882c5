"""Words to ids and back."""

import doctest
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import captioner.data.vocabulary
from captioner.data.vocabulary import END, LEVELS, PAD, SPECIAL, START, UNK, Vocabulary, is_word, tokenize, tokenize_all


def test_examples_of_the_docstrings():
    found = doctest.testmod(captioner.data.vocabulary)
    assert found.attempted >= 1
    assert not found.failed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" ... !", []),
        ("Two dogs,running.", ["two", "dogs", "running"]),
        ("a black-and-white cat's toy", ["a", "black-and-white", "cat's", "toy"]),
        ("'quoted' -dash- dogs'", ["quoted", "dash", "dogs"]),
        ("at 10:30 for 1,000.50", ["at", "10:30", "for", "1,000.50"]),
        ("ein Mädchen läuft\nüber 草", ["ein", "mädchen", "läuft", "über", "草"]),
    ],
)
def test_tokenize(text, words):
    assert tokenize(text) == words


@given(st.text())
def test_tokens_are_lower_case_words_that_stay_as_they_are(text):
    for word in tokenize(text):
        assert word
        assert not any(letter.isspace() for letter in word)
        assert word == word.lower()


@given(st.lists(st.text(alphabet="abcdeé 'ABC.-"), max_size=20))
def test_decode_inverts_encode(captions):
    vocabulary = Vocabulary.build(captions)
    for caption in captions:
        ids = vocabulary.encode(tokenize(caption))
        assert all(i > UNK for i in ids)
        assert vocabulary.decode(ids) == " ".join(tokenize(caption))


@given(st.lists(st.text(max_size=20), max_size=10))
def test_decode_inverts_encode_of_characters(captions):
    vocabulary = Vocabulary.build(captions, level="char")
    for caption in captions:
        composed = unicodedata.normalize("NFC", caption)
        assert vocabulary.split(caption) == list(composed)
        ids = vocabulary.encode(vocabulary.split(caption))
        assert vocabulary.decode(ids) == "".join(c if is_word(c, "char") else "<unk>" for c in composed)
    assert Vocabulary(vocabulary.words[4:], "char").words == vocabulary.words


letters = st.one_of(st.characters(), st.sampled_from("aBΣ.,'’-:/5 \n\t\x1c\u2028\xa0\0"))


@given(st.lists(st.text(letters, max_size=20), max_size=10), st.sampled_from(sorted(LEVELS)), st.integers(1, 5))
def test_tokenize_all_agrees_with_tokenize(captions, level, most):
    split = [LEVELS[level](caption) for caption in captions]
    found = tokenize_all(captions, level)
    assert found.lengths.tolist() == [len(words) for words in split]
    assert [found.words[i] for i in found.flat] == [word for words in split for word in words]
    assert len(set(found.words)) == len(found.words)
    vocabulary = Vocabulary.from_tokenized(found, 2, level)
    flat, lengths, cut = vocabulary.encode_all(found, most)
    assert lengths.tolist() == [len(words[:most]) for words in split]
    assert cut.tolist() == [len(words) > most for words in split]
    assert flat.tolist() == [i for words in split for i in vocabulary.encode(words)[:most]]


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="'letter'"):
        Vocabulary(["a"], "letter")


def test_special_ids_come_first():
    vocabulary = Vocabulary.build(["a dog", "a cat"])
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)
    assert vocabulary.words[:4] == SPECIAL
    assert len(vocabulary) == 7


def test_special_words_cannot_be_written():
    vocabulary = Vocabulary.build(["<unk> <pad> a <start> b <end>"])
    assert not set(SPECIAL) & set(vocabulary.words[4:])
    assert vocabulary.encode(tokenize("<end>")) == [vocabulary.ids["end"]]


@pytest.mark.parametrize(("min_count", "kept"), [(1, "a b c"), (2, "a b"), (3, "a"), (4, "")])
def test_min_count(min_count, kept):
    vocabulary = Vocabulary.build(["a b c", "A b!", "a"], min_count)
    assert list(vocabulary.words[4:]) == kept.split()
    assert vocabulary.encode(["a", "z"]) == [4 if kept else UNK, UNK]


def test_order_is_the_commonest_first_and_does_not_depend_on_the_order_of_the_captions():
    captions = ["b a c", "a c d", "a e"]
    words = Vocabulary.build(captions).words
    assert words[4:] == ("a", "c", "b", "d", "e")  # a 3, c 2, then by letter
    for seed in range(5):
        random.Random(seed).shuffle(captions)
        assert Vocabulary.build(captions).words == words


@pytest.mark.parametrize("words", [["a", "b", "a"], ["<pad>"], ["a", "<unk>"]])
def test_a_repeated_word_is_refused(words):
    with pytest.raises(ValueError, match="twice"):
        Vocabulary(words)
