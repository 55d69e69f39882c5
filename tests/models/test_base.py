"""Captions from images, as Python calls for them."""

import math

import numpy as np
import pytest
import torch
from helpers import WORDS, is_one_line, make_captioner, refused
from PIL import Image

from captioner.config import SearchConfig
from captioner.data.dataset import load_batch
from captioner.data.images import ImageError
from captioner.data.vocabulary import END, START, Vocabulary
from captioner.errors import UserError
from captioner.models.base import Caption, search_ids
from captioner.models.captioner import Ensemble


def test_one_image_is_a_string_and_several_are_a_list(captioner, images):
    every = captioner.caption(images)
    assert len(set(every)) > 1  # they come from the image
    for path, text in zip(images, every, strict=True):
        with Image.open(path) as image:
            assert captioner.caption(path) == captioner.caption(str(path)) == captioner.caption(image) == text
    assert captioner.caption([]) == []
    assert captioner.caption(images[:1]) == every[:1]
    assert captioner.caption(tuple(images)) == every


def test_n_best(captioner, images):
    every = captioner.caption(images, n_best=3, beam=4, length_penalty=0.5)
    best = captioner.caption(images, beam=4, length_penalty=0.5)
    for found, text in zip(every, best, strict=True):
        assert found[0].text == text
        assert len({caption.text for caption in found}) == len(found) == 3
        assert all(isinstance(caption, Caption) and caption.log_prob <= 0 for caption in found)
    assert captioner.caption(images[0], n_best=1)[0].text == captioner.caption(images[0])


def test_scores_are_those_of_the_best_caption(captioner, images):
    for found, (best, *_) in zip(
        captioner.caption(images, scores=True), captioner.caption(images, n_best=3), strict=True
    ):
        assert found == best
    one = captioner.caption(images[0], scores=True)
    assert isinstance(one, Caption)
    assert math.prod(one.probabilities) == pytest.approx(math.exp(one.log_prob))
    assert len(one.probabilities) == len(one.text.split()) + one.ended


def test_arrays_tensors_and_iterables(captioner, images):
    expected = captioner.caption(images)
    arrays = [np.asarray(Image.open(path)) for path in images]
    assert captioner.caption(arrays[0]) == expected[0]
    for several in (arrays, np.stack(arrays), torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)):
        assert captioner.caption(several) == expected
    assert captioner.caption(path.read_bytes() for path in images) == expected


def test_an_iterable_is_read_a_batch_at_a_time(captioner, images, monkeypatch):
    read, known = [], []
    monkeypatch.setattr(type(captioner), "search", lambda self, x, *_: known.append(len(read)) or [[one]] * len(x))
    one = Caption("a", -1.0, -1.0, True, (-1.0,))
    assert captioner.caption((read.append(path) or path for path in images), batch_size=2) == ["a"] * 5
    assert known == [2, 4, 5]


UNKNOWN = {
    "beams": "did you mean beam?",
    "max_len": "did you mean max_length?",
    "score": "did you mean scores?",
    "allow_url": "did you mean allow_urls?",
    "zebra": "the options are beam, n_best, max_length",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_option_names_the_nearest(captioner, images, name):
    refused(lambda: captioner.caption(images[0], **{name: 3}), says=[f"there is no option {name}", UNKNOWN[name]])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", "5"),
        ("batch_size", 1.5),
        ("batch_size", 0),
        ("beam", "5"),
        ("beam", 2.5),
        ("beam", True),
        ("sample", 1),
        ("length_penalty", "1"),
        ("must", 3),
    ],
)
def test_an_option_of_another_type(captioner, images, option, value):
    refused(lambda: captioner.caption(images[0], **{option: value}), says=[f"{option} is {value!r}: expected"])


def test_what_is_no_image(captioner, images):
    refused(lambda: captioner.caption(7), says=["images are of type int", "a path, a PIL image"])
    refused(lambda: captioner.caption([images[0], {"path": images[1]}]), says=["image 1 is of type dict", "a path"])
    refused(lambda: captioner.caption(images[0], batch_size=0), says=["batch_size is 0"])
    assert captioner.caption(images[0], beam=np.int64(2)) == captioner.caption(images[0], beam=2)


def test_captions_have_words_only(captioner, images):
    for text in captioner.caption(images, max_length=4):
        assert set(text.split()) <= set(WORDS)
        assert len(text.split()) <= 4


def test_bad_search_options_and_images(captioner, images, tmp_path):
    with pytest.raises(UserError, match="beam is 0"):
        captioner.caption(images[0], beam=0)
    with pytest.raises(ImageError, match="no such file"):
        captioner.caption([images[0], tmp_path / "missing.png"])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_files_are_captioned_in_order_and_bad_ones_said(captioner, images, tmp_path, batch_size):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    config = SearchConfig(beam=3)
    found = list(captioner.caption_files([bad, *images[:3], bad, *images[3:]], config, batch_size))
    assert [isinstance(one, ImageError) for one in found] == [True, False, False, False, True, False, False]
    texts = [one[0].text for one in found if not isinstance(one, ImageError)]
    assert texts == [captioner.caption(path, beam=3) for path in images]


def test_a_model_in_training_captions_without_dropout(images):
    model = make_captioner(dropout=0.9, input_dropout=0.9)
    expected = model.caption(images, scores=True)
    modes = {part: part.training for part in model.train().modules()}
    assert model.caption(images, scores=True) == expected
    assert {part: part.training for part in model.modules()} == modes
    assert model.decoder.training
    assert not model.encoder.training


@torch.no_grad()
def test_images_and_their_features_give_the_same_captions(captioner, images):
    x = load_batch(images[:5], 32)[0]
    config = SearchConfig(beam=2)
    assert captioner.search(x, config) == captioner.search(captioner.features(x), config)
    assert captioner.search(x[:0], config) == []


def test_scores_of_a_caption(captioner, images):
    for found in captioner.caption(images, n_best=4, beam=4, max_length=3):
        for caption in found:
            assert len(caption.word_log_probs) == len(caption.text.split()) + caption.ended
            assert sum(caption.word_log_probs) == pytest.approx(caption.log_prob, abs=1e-4)
            mean = caption.log_prob / len(caption.word_log_probs)
            assert caption.perplexity == pytest.approx(math.exp(-mean))
            record = caption.as_dict()
            assert math.prod(record["probabilities"]) == pytest.approx(math.exp(caption.log_prob), rel=1e-3)
            assert (record["caption"], record["perplexity"]) == (caption.text, caption.perplexity)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_sampled_caption_depends_on_its_image_and_the_seed_alone(captioner, images, batch_size):
    config = SearchConfig(sample=True, seed=7, temperature=2.0)
    found = list(captioner.caption_files([*images, *images[::-1]], config, batch_size))
    texts = [each[0].text for each in found]
    assert texts[:5] == texts[:4:-1] == captioner.caption(images, sample=True, seed=7, temperature=2.0)
    assert texts[0] == captioner.caption(images[0], sample=True, seed=7, temperature=2.0)
    others = [captioner.caption(images, sample=True, seed=seed, temperature=2.0) for seed in range(5)]
    assert len({tuple(each) for each in others}) == 5


def test_constraints_reach_the_search(captioner, images):
    texts = captioner.caption(images, prefix="A red", must="circle blue", must_not="green ein", beam=6)
    for text in texts:
        words = text.split()
        assert words[:2] == ["a", "red"]
        assert {"circle", "blue"} <= set(words)
        assert not {"green", "ein"} & set(words)
    for found in captioner.caption(images, groups=3, beam=6, n_best=3, no_repeat_ngram=1, no_bad_ending=True):
        assert len(found) == 3
        for caption in found:
            assert len(set(caption.text.split())) == len(caption.text.split())
            assert caption.text.split()[-1:] != ["on"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"must": "a zeppelin"}, ["must", "'zeppelin'", "13 words"]),
        ({"prefix": "one red"}, ["prefix", "'one'"]),
        ({"must": "red", "must_not": "Red"}, ["must and must_not", "'red'"]),
        ({"prefix": "a red", "must_not": "red"}, ["prefix and must_not", "'red'"]),
        ({"must": "a red on", "beam": 3}, ["must names 3 words", "4 or more"]),
        ({"must": "a red", "beam": 6, "groups": 3}, ["must names 2 words", "3 or more"]),
        ({"prefix": "a red", "must": "on blue a", "max_length": 3}, ["need 4 words", "max_length is 3"]),
    ],
)
def test_words_that_cannot_be_are_refused_by_name(options, says):
    with pytest.raises(UserError) as caught:
        search_ids(Vocabulary(WORDS), SearchConfig(**options))
    assert is_one_line(str(caught.value), *says)


def test_words_that_the_model_does_not_have_are_avoided_easily(captioner, images):
    assert captioner.caption(images, must_not="zeppelin") == captioner.caption(images)
    ids = search_ids(captioner.vocabulary, SearchConfig(must="red Red, red"))
    assert len(ids.must) == 1


def test_an_image_without_a_caption_is_an_error(captioner, images):
    impossible = {"no_repeat_ngram": 1, "min_length": len(WORDS) + 1}
    with pytest.raises(UserError, match="image 0: no caption satisfies all constraints"):
        captioner.caption(images, **impossible)
    for path, found in zip(images, captioner.caption_files(images, SearchConfig(**impossible)), strict=True):
        assert isinstance(found, UserError)
        assert is_one_line(str(found), str(path), "no caption satisfies all constraints")


# ---- attention maps


def recorded(model, monkeypatch) -> list:
    """The weights of every step from now on."""
    weights, advance = [], model.decoder.advance

    def watched(*arguments):
        found = advance(*arguments)
        weights.append(found[2])
        return found

    monkeypatch.setattr(model.decoder, "advance", watched)
    return weights


@pytest.fixture(scope="module", params=["soft", "adaptive", "updown"])
def attentive(request, weights):
    """A model with each kind of attention, whose weights are far from uniform. Read only."""
    model = make_captioner(attention=request.param, grid=2, image_size=64)  # 2 × 2 is what a ResNet makes of it
    with torch.no_grad():
        model.decoder.score.weight *= 20
        model.decoder.output.bias[END] += {"soft": 3, "adaptive": 2, "updown": 1}[request.param]  # some captions end
    return model


def grids(weights) -> torch.Tensor:
    """(T, 4 or, with the sentinel, 5) → (T, 2, 2)."""
    return weights[:, :4].reshape(-1, 2, 2)


def test_the_maps_are_those_of_the_search(attentive, images, monkeypatch):
    weights = recorded(attentive, monkeypatch)
    for path in images:
        weights.clear()
        caption = attentive.caption(path, beam=1, attention=True)
        stepped = torch.cat(weights[: len(caption.word_log_probs)])  # without those of the maps
        assert torch.allclose(caption.attention, grids(stepped), atol=1e-6)


@torch.no_grad()
def test_the_maps_are_those_of_stepping_with_the_same_words(attentive, images, monkeypatch):
    model = attentive
    every = model.caption(images, beam=4, n_best=4, max_length=6, attention=True)
    assert {caption.ended for found in every for caption in found} == {True, False}
    weights = recorded(model, monkeypatch)
    for path, found in zip(images, every, strict=True):
        image = load_batch([path], 64)[0]
        for caption in found:
            step, state, context = model.start_search(image)
            weights.clear()
            for word in [START, *model.vocabulary.encode(caption.text.split())]:
                _, state = step(torch.tensor([word]), state, context)
            stepped = torch.cat(weights)[: len(caption.word_log_probs)]
            assert caption.attention.shape == (len(caption.text.split()) + caption.ended, 2, 2)
            assert torch.allclose(caption.attention, grids(stepped), atol=1e-6)
            assert torch.allclose(stepped.sum(1), torch.ones(len(stepped)))
            if model.config.attention == "adaptive":
                assert torch.allclose(1 - caption.attention.sum((1, 2)), stepped[:, 4], atol=1e-6)
            else:
                assert stepped.shape[1] == 4
    maps = torch.cat([caption.attention for found in every for caption in found])
    assert maps.flatten(1).std(1).max() > 0.05  # not uniform


def test_attention_changes_no_caption(attentive, images, tmp_path):
    plain = attentive.caption(images, n_best=2)
    assert attentive.caption(images, n_best=2, attention=True) == plain
    assert all(caption.attention is None for found in plain for caption in found)
    assert [one.text for one in attentive.caption(images, attention=True)] == attentive.caption(images)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    found = list(attentive.caption_files([bad, *images], SearchConfig(n_best=2), 6, attention=True))
    assert found[1:] == plain
    assert all(caption.attention is not None for each in found[1:] for caption in each)
    sampled = {"sample": True, "seed": 3}  # the seed goes by the image, not by its features
    assert attentive.caption(images[0], attention=True, **sampled).text == attentive.caption(images[0], **sampled)


def test_the_maps_of_given_captions(attentive, images):
    x = load_batch(images[:3], 64)[0]
    texts = ["a red square", "", "ein Mädchen"]
    maps = attentive.attention_maps(x, texts)
    assert [tuple(each.shape) for each in maps] == [(4, 2, 2), (1, 2, 2), (3, 2, 2)]
    for i, (each, text) in enumerate(zip(maps, texts, strict=True)):
        assert torch.allclose(each, attentive.attention_maps(attentive.features(x)[i : i + 1], [text])[0], atol=1e-6)
    assert attentive.attention_maps(x[:0], []) == []


def test_without_attention_there_are_no_maps(captioner, images):
    for model in (captioner, Ensemble([captioner, captioner], ["one", "two"])):
        with pytest.raises(UserError) as caught:
            model.caption(images, attention=True)
        assert is_one_line(str(caught.value), "no attention maps", "--model.attention", "ensemble")
        with pytest.raises(UserError):
            model.attention_maps(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a"])
