"""Networks by name: the features are those of the network itself, and what does not fit is one line."""

import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import is_one_line, train
from torchvision.models import get_model_weights

from captioner.config import ModelConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import UserError
from captioner.models import backbones
from captioner.models.backbones import build_backbone, feature_channels, parameter_stages, preprocessing
from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder, feature_shape, weights_digest

SLOW = ("alexnet", "convnext_tiny", "efficientnet_b0", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2")
SLOW += ("regnet_y_400mf", "shufflenet_v2_x0_5", "swin_t", "vit_b_32")
FAST = ("densenet121", "googlenet", "mobilenet_v3_small", "squeezenet1_1")
FIXED = {"maxvit_t": 224, "vit_b_32": 224, "inception_v3": 96}


def images(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def last_map(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(B, C): the mean over the places of what the network's own forward pools, or has pooled, for its head."""
    if hasattr(network, "conv_proj"):  # a ViT
        hook = network.encoder.register_forward_hook(lambda _, __, out: seen.append(out[:, 1:].mean(dim=1)))
    else:
        name = next(name for name in ("avgpool", "classifier", "fc", "head") if hasattr(network, name))
        hook = getattr(network, name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    seen: list[torch.Tensor] = []
    network(x)
    hook.remove()
    return seen[0] if seen[0].dim() == 2 else seen[0].mean(dim=(2, 3))


@torch.no_grad()
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_features_are_those_of_torchvision(name, downloaded):
    size = FIXED.get(name, 64)
    network, config = downloaded(name), ModelConfig(name, image_size=size, second_size=0)
    transform = get_model_weights(name).DEFAULT.transforms()
    x = images(2, size) / 255
    x = (x - torch.tensor(transform.mean).view(3, 1, 1)) / torch.tensor(transform.std).view(3, 1, 1)
    if name in ("googlenet", "inception_v3"):
        network.transform_input = True  # as with torchvision's own weights
    ours, expected = Encoder(config)(images(2, size)), F.normalize(last_map(network, x))
    assert ours.shape == expected.shape == (2, *feature_shape(config))
    assert torch.allclose(ours, expected, atol=1e-5)
    assert len(weights_digest(name)) == 16


@torch.no_grad()
def test_a_grid_at_two_resolutions(downloaded):
    downloaded("mobilenet_v3_small")
    config = ModelConfig("mobilenet_v3_small", 96, 64, grid=2, attention="soft")
    encoder = Encoder(config)
    cells = encoder(images(2, 96))
    assert cells.shape == (2, *feature_shape(config)) == (2, 4, 2 * 576)
    mean = Encoder(ModelConfig("mobilenet_v3_small", 96, 0))(images(2, 96))
    # 96 pixels make a map of 3 × 3, whose cells overlap in the middle, so the mean of the cells is not quite the mean
    assert F.cosine_similarity(cells.mean(dim=1)[:, :576], mean).min() > 0.9


def test_size_without_weights(monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    for name, size in (
        ("mobilenet_v3_small", 576),
        ("regnet_y_400mf", 440),
        ("swin_t", 768),
        ("wide_resnet50_2", 2048),
    ):
        assert feature_shape(ModelConfig(name, 224, 0)) == (size,)
    assert feature_shape(ModelConfig("vit_b_16", 224, 0)) == (768,)


@pytest.mark.parametrize(
    ("name", "sizes", "says"),
    [
        ("vit_b_16", (288, 0), "model.image_size is 288: expected a size that vit_b_16 takes, such as 224"),
        ("vit_b_16", (224, 96), "model.second_size is 96: expected a size that vit_b_16 takes"),
        ("inception_v3", (32, 0), "model.image_size is 32: "),
    ],
)
def test_sizes_that_do_not_fit(name, sizes, says):
    with pytest.raises(UserError) as caught:
        feature_shape(ModelConfig(name, *sizes))
    assert is_one_line(str(caught.value), says)


def test_unknown_names_have_neighbours():
    with pytest.raises(UserError) as caught:
        ModelConfig("convnext_tinny")
    assert is_one_line(str(caught.value), "convnext_tinny", "convnext_tiny", "timm:NAME")


@pytest.mark.parametrize(
    ("name", "number", "last"),
    [
        ("resnet18", 5, "layer4."),
        ("mobilenet_v3_small", 13, "features.12."),
        ("convnext_tiny", 8, "features.7."),
        ("densenet121", 8, "features.denseblock4."),
        ("swin_t", 8, "features.7."),
    ],
)
def test_stages(name, number, last):
    with torch.device("meta"):
        network = build_backbone(name, (224,))
    stage_of, found = parameter_stages(network)
    assert found == number
    assert set(stage_of) == {key for key, _ in network.named_parameters()}
    norms = ("norm.", "features.norm5.")  # a norm at the end belongs to the last stage
    for key, stage in stage_of.items():
        assert (stage == number - 1) == key.startswith((last, *norms)), key


def test_trainable_layers_of_any_network(downloaded):
    downloaded("mobilenet_v3_small")
    encoder = Encoder(ModelConfig("mobilenet_v3_small", 64, 0, 2))
    opened = {name.split(".")[2] for name, p in encoder.named_parameters() if p.requires_grad}
    assert opened == {"11", "12"}
    with pytest.raises(UserError, match=r"trainable_layers is 14: expected 0 to 13, the stages of mobilenet_v3_small"):
        Encoder(ModelConfig("mobilenet_v3_small", 64, 0, 14))


@pytest.mark.parametrize("trained", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_with_another_network(tiny, tmp_path, cli, downloaded, trained):
    downloaded("squeezenet1_1")
    out = tmp_path / "run"
    options = ["--model.encoder", "squeezenet1_1", "--model.trainable_layers", trained, "--train.epochs", 1]
    assert train(tiny, out, "--data.feature_cache", tmp_path / "features", *options) == 0
    image = next(tiny.images("val").iterdir())
    code, said, _ = cli("predict", image, "--checkpoint", out / "captioner.safetensors")
    assert code == 0
    assert said.startswith(str(image))


# ---- timm


@pytest.fixture
def timm(monkeypatch):
    """timm whose pretrained weights are random ones that are always the same; `seed` chooses others."""
    module = pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[timm]'")
    create, module.seed = module.create_model, 0

    def create_model(name, pretrained=False, **options):
        if pretrained:
            torch.manual_seed(module.seed)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(module, "create_model", create_model)
    backbones.timm_digest.cache_clear()
    yield module
    backbones.timm_digest.cache_clear()
    del module.seed


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_vit_relpos", "test_convnext", "test_mambaout", "test_efficientnet"]
)
def test_features_are_those_of_timm(timm, name):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    config = ModelConfig(f"timm:{name}", 160, 0)
    ours = Encoder(config)(images(2, 160))
    model = timm.create_model(name, pretrained=True, num_classes=0).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[part]).view(3, 1, 1) for part in ("mean", "std"))
    x = model.forward_features((images(2, 160) / 255 - mean) / std)
    if x.dim() == 3:
        expected = x[:, model.num_prefix_tokens if name == "test_vit" else 0 :].mean(dim=1)
    else:
        expected = x.mean(dim=(1, 2) if x.shape[-1] == model.num_features else (2, 3))
    assert ours.shape == expected.shape == (2, *feature_shape(config))
    assert torch.allclose(ours, F.normalize(expected), atol=1e-5)


@torch.no_grad()
def test_the_tokens_lie_as_the_patches_do(timm):
    """A change in one corner of the image is largest in that cell of the grid."""
    encoder = Encoder(ModelConfig("timm:test_vit", 96, 0, grid=6, attention="soft"))  # its own size is 160
    before = images(1, 96)
    for row, column in ((0, 5), (3, 1)):
        after = before.clone()
        after[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
        moved = (encoder(after) - encoder(before)).norm(dim=2)[0]
        assert int(moved.argmax()) == 6 * row + column


def test_timm_in_training_and_a_checkpoint_that_knows_its_weights(timm, tiny, tmp_path):
    out, common = tmp_path / "run", ["--model.encoder", "timm:test_resnet", "--train.epochs", 1]
    assert train(tiny, out, "--data.feature_cache", tmp_path / "features", *common) == 0
    assert Captioner.load(out / "captioner.safetensors").config.encoder == "timm:test_resnet"
    timm.seed = 1
    backbones.timm_digest.cache_clear()
    with pytest.raises(UserError, match="trained on other weights of timm:test_resnet"):
        Captioner.load(out / "captioner.safetensors")
    tuned = tmp_path / "tuned"
    assert train(tiny, tuned, *common, "--model.trainable_layers", 2, "--train.encoder_lr_decay", 0.5) == 0
    timm.seed = 2
    Captioner.load(tuned / "captioner.safetensors")  # brings its own


def test_timm_keeps_its_buffers(timm, tmp_path):
    """Whatever a network computes when it is made is there after loading a fine-tuned checkpoint."""
    if not timm.is_model("test_vit_relpos"):
        pytest.skip("this timm has no test_vit_relpos")
    config = ModelConfig("timm:test_vit_relpos", 160, 0, 1, hidden_size=8, embedding_size=8)
    model = Captioner(config, Vocabulary(["a"]), Encoder(config), "digest").eval()
    model.save(tmp_path / "model.safetensors", half=False)
    again = Captioner.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(model.features(images(1, 160)), again.features(images(1, 160)))


@pytest.mark.parametrize(
    "name",
    [
        *("mobilenetv4_conv_small_035", "test_vit3"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("test_convnext", "test_efficientnet")),
    ],
)
def test_the_last_stage_of_timm_is_one_that_is_used(timm, name):
    """Not a layer of the head, behind the pooling."""
    encoder = Encoder(ModelConfig(f"timm:{name}", 160, 0, 1))
    encoder(images(2, 160)).square().sum().backward()
    opened = {key for key, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert opened
    assert opened == {key for key, parameter in encoder.named_parameters() if parameter.grad is not None}


def test_timm_with_two_maps_is_refused(timm):
    with pytest.raises(UserError, match="several maps"):
        feature_channels("timm:crossvit_9_240", (240,))


def test_timm_refuses_in_one_line(timm, monkeypatch):
    with pytest.raises(UserError) as caught:
        weights_digest("timm:test_resnett")
    assert is_one_line(str(caught.value), "test_resnett", "such as", "timm:test_resnet")

    def offline(*_, pretrained=False, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError) as caught:
        weights_digest("timm:test_resnet")
    assert is_one_line(str(caught.value), "timm:test_resnet", "no route to host", "HF_HOME")


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as caught:
        preprocessing("timm:test_resnet")
    assert is_one_line(str(caught.value), "pip install -e '.[timm]'")


def test_channels_are_counted_without_the_weights_of_timm(timm):
    assert feature_channels("timm:test_vit", (160,)) == 64
    assert feature_channels("timm:test_vit", (288, 96)) == 64  # a ViT of timm takes other sizes
    with pytest.raises(UserError, match=r"model\.image_size is 100"):
        feature_channels("timm:test_vit", (100,))  # not whole patches


@pytest.mark.slow
def test_a_network_that_computes_when_it_is_made_loads_from_a_checkpoint(downloaded, tmp_path):
    """Shapes are computed on the meta device; a RegNet cannot be built there."""
    downloaded("regnet_y_400mf")
    config = ModelConfig("regnet_y_400mf", 64, 0, 1, hidden_size=8, embedding_size=8)
    model = Captioner(config, Vocabulary(["a", "dog"]), Encoder(config), weights_digest(config.encoder)).eval()
    model.save(tmp_path / "model.safetensors", half=False)
    feature_channels.cache_clear()
    batch = images(1, 64)
    assert torch.equal(Captioner.load(tmp_path / "model.safetensors").features(batch), model.features(batch))
