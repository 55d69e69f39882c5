"""Concepts beside the feature: the classes of the encoder's own head, and words that are learned with the decoder."""

import pytest
import torch
import torch.nn.functional as F
from helpers import make_captioner, refused

from captioner.config import ModelConfig, SearchConfig
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, SPECIAL, START
from captioner.models.captioner import Captioner
from captioner.models.concepts import CLASSES, Concepts, class_names, imagenet_head
from captioner.models.encoder import feature_shape, weights_file

KINDS = ["classes", "words"]
SMALL = {"image_size": 64, "second_size": 32, "hidden_size": 16, "embedding_size": 16, "attention_size": 8}


def concepts(kind: str, **options) -> Concepts:
    torch.manual_seed(0)
    return Concepts(ModelConfig(concepts=kind, **SMALL, **options), 50, 16).eval()


def test_the_probabilities_are_those_of_the_head_on_the_mean_of_the_last_map():
    """Up to the length of the feature, which the encoder does not keep: 38.7 ± 5.6 for photographs of 224 px."""
    weight, bias = imagenet_head("resnet50_v1")
    assert weight.shape == (CLASSES, 2048)
    part = concepts("classes")
    part.load_head("resnet50_v1")
    feature = torch.rand(3, 2048)
    seen = 38.7 * F.normalize(feature, dim=1)
    mean = torch.cat([torch.rand(3, 2048), F.normalize(feature, dim=1)], dim=1)  # of both sizes
    found = part.probabilities(mean)
    assert torch.allclose(found, (seen @ weight.T + bias).softmax(dim=1), atol=1e-5)


def test_the_names_of_the_classes():
    names = class_names("resnet50_v1")
    assert len(names) == CLASSES
    assert names[285] == "Egyptian_cat"


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet"])
def test_the_head_of_a_network_of_torchvision(downloaded, name):
    network = downloaded(name)
    head = network.classifier if name == "densenet121" else network.fc
    weight, bias = imagenet_head(name)
    assert torch.equal(weight, head.weight)
    assert torch.equal(bias, head.bias)
    assert len(class_names(name)) == len(weight)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "timm:resnet18"])
def test_a_network_without_such_a_head(downloaded, name):
    if ":" not in name:
        downloaded(name)
    refused(lambda: imagenet_head(name), says=[f"model.encoder is {name}", "model.concepts", "words"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["none", "soft", "adaptive", "updown"])
def test_they_change_the_captions_of_every_decoder(kind, attention):
    grid = {"grid": 2, "attention": attention} if attention != "none" else {}
    torch.manual_seed(0)
    config = ModelConfig(concepts=kind, dropout=0, input_dropout=0, feature_dropout=0, **SMALL, **grid)
    model = Captioner(config, make_captioner().vocabulary, None, "")
    model.load_head()
    features = torch.rand(2, *feature_shape(config))
    words = torch.tensor([[START, 4, 5, END], [START, 6, END, PAD]])
    layout = Layout.of_words(words.numpy())
    logits = model.decoder(features, words[:, :-1], torch.arange(2), layout)
    logits.sum().backward()
    assert model.decoder.concepts.project.weight.grad.abs().sum() > 0
    with torch.no_grad():
        model.decoder.concepts.project.weight.zero_()
    without = model.decoder(features, words[:, :-1], torch.arange(2), layout)
    assert not torch.allclose(logits, without)


def test_the_detector_learns_the_words_of_the_captions():
    part = concepts("words")
    mean = torch.eye(4, feature_shape(ModelConfig(concepts="words", **SMALL))[-1])
    image_of = torch.tensor([0, 0, 1, 2, 3])
    words = torch.tensor([[START, 4, 5, END], [START, 6, END, PAD], [START, 4, END, PAD], [5] * 4, [49] * 4])
    optimizer = torch.optim.Adam(part.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        part.detection_loss(mean, words, image_of).backward()
        optimizer.step()
    found = part.logits(mean) > 0
    assert [row.nonzero().flatten().tolist() for row in found] == [[0, 1, 2], [0], [1], [45]]
    assert part.project.weight.grad is None


def test_captions_name_the_classes_that_the_model_sees(downloaded):
    network = downloaded("resnet18")
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.fill_(-9)
        network.fc.bias[[3, 285, 7]] = torch.tensor([1.0, 2.0, -9.0])
    torch.save(network.state_dict(), weights_file("resnet18"))
    model = make_captioner(concepts="classes", grid=2, attention="soft")
    model.load_head()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    for found in model.search(images, SearchConfig()):
        (first, p), (second, q) = found[0].concepts
        assert (first, second) == ("Egyptian cat", "tiger shark")
        assert p / q == pytest.approx(2.718, rel=1e-3)
    assert model.concepts(model.features(images)) == model.concepts(images)


def test_captions_name_the_words_that_the_model_sees():
    model = make_captioner(concepts="words")
    with torch.no_grad():
        model.decoder.concepts.detector.weight.zero_()
        model.decoder.concepts.detector.bias.fill_(-9)
        model.decoder.concepts.detector.bias[1] = 0
    (found,) = model.search(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), SearchConfig(beam=2, n_best=2))
    assert [caption.concepts for caption in found] == [((model.vocabulary.words[len(SPECIAL) + 1], 0.5),)] * 2
    assert make_captioner().search(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), SearchConfig())[0][0].concepts == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_them(kind, tmp_path):
    model = make_captioner(concepts=kind)
    model.save(tmp_path / "model.safetensors", half=False)
    again = Captioner.load(tmp_path / "model.safetensors")
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    texts = [[found[0].text for found in each.search(images, SearchConfig())] for each in (model, again)]
    assert texts[0] == texts[1]
    for name, value in model.decoder.concepts.state_dict().items():
        assert torch.equal(again.decoder.concepts.state_dict()[name], value)


def test_clips_have_none():
    refused(lambda: ModelConfig(frames=4, concepts="words"), says=["model.concepts", "none for clips"])
