"""The ResNet without its head: frozen stages, and the identity of its weights."""

from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from helpers import is_one_line
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18, resnet50

from captioner.config import ModelConfig
from captioner.errors import UserError
from captioner.models import encoder
from captioner.models.encoder import (
    Encoder,
    cached_shape,
    feature_shape,
    map_shapes,
    matrix_resize,
    shrink,
    weights_digest,
    weights_file,
)

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")


def make(name: str = "resnet18", trained: int = 0, weights: bool = True, **options) -> Encoder:
    return Encoder(ModelConfig(name, trainable_layers=trained, **{"second_size": 0, **options}), weights)


def images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def by_hand(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Features of unit length by a plain network."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        return F.normalize(network.eval()((x / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)))


def test_equals_torchvision_without_its_head(weights):
    plain = resnet18(weights=None)
    plain.load_state_dict(torch.load(weights, weights_only=True))
    plain.fc = nn.Identity()
    with torch.no_grad():
        ours = make()(images(3))
    assert ours.shape == (3, *feature_shape(ModelConfig("resnet18", second_size=0))) == (3, 512)
    assert torch.allclose(ours, by_hand(plain, images(3)), atol=1e-5)


@torch.no_grad()
def test_a_second_resolution():
    """The two features are concatenated: that of an encoder of one resolution, and that of one of the smaller image."""
    two, one = make(image_size=64, second_size=32), make(image_size=64)
    assert feature_shape(ModelConfig("resnet18", second_size=32)) == two.feature_shape == (1024,)
    plain = torch.full((2, 3, 64, 64), 50, dtype=torch.uint8)
    plain[1] = 200
    assert two(images(3, 64)).shape == (3, 1024)
    assert torch.equal(two.state_dict()["resnet.conv1.weight"], one.state_dict()["resnet.conv1.weight"])
    for half, small in zip(two(plain).split(512, dim=1), (plain, plain[:, :, :32, :32]), strict=True):
        assert torch.allclose(half, one(small), atol=1e-5)  # a plain image stays plain at any size
    assert not torch.allclose(one(plain), one(plain[:, :, :32, :32]), atol=1e-3)


@torch.no_grad()
def test_the_cells_of_a_grid():
    """Row by row; their mean is the feature without a grid, and what is seen where decides which cell changes."""
    grid, pooled = make(image_size=128, grid=4, attention="soft"), make(image_size=128)
    assert grid.feature_shape == (16, 512)
    cells = grid(images(3, 128))
    assert cells.shape == (3, 16, 512)
    assert torch.allclose(cells.mean(dim=1), pooled(images(3, 128)), atol=1e-5)
    assert torch.allclose(cells.mean(dim=1).norm(dim=1), torch.ones(3), atol=1e-5)
    changed = images(3, 128)
    changed[:, :, :16, -16:] = 255  # the corner above, on the right
    difference = (grid(changed) - cells).norm(dim=2).mean(dim=0).view(4, 4)
    assert difference.argmax() == 3
    both = make(image_size=128, second_size=64, grid=4, attention="soft")(images(3, 128))
    assert both.shape == (3, 16, 1024)
    assert torch.allclose(both[:, :, :512], cells, atol=1e-5)


@torch.no_grad()
def test_batched_equals_single():
    model = make(image_size=64, second_size=32)
    together = model(images(3, 64))
    single = torch.cat([model(images(3, 64)[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, single, atol=1e-5)


def test_the_resnet50_of_the_repository_is_v1():
    """The stride sits in the 1 × 1 convolutions: He et al. 2015, not torchvision's v1.5."""
    plain = resnet50(weights=None)
    for stage in (plain.layer2, plain.layer3, plain.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    plain.fc = nn.Identity()
    state = {key: value.float() for key, value in load_file(weights_file("resnet50_v1")).items()}
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert all(key.startswith("fc.") for key in unexpected)
    model = make("resnet50_v1")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    with torch.no_grad():
        ours = model(images(2, 64))
    assert ours.shape == (2, *feature_shape(ModelConfig("resnet50_v1", second_size=0))) == (2, 2048)
    assert torch.allclose(ours, by_hand(plain, images(2, 64)), atol=1e-5)
    assert (ours[0] - ours[1]).abs().max() > 1e-3
    for stage in (plain.layer2, plain.layer3, plain.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (1, 1), (2, 2)
    assert not torch.allclose(ours, by_hand(plain, images(2, 64)), atol=1e-3)


@pytest.mark.parametrize("trained", range(6))
def test_trainable_layers_open_the_last_stages(trained):
    model = make(trained=trained).train()
    x = torch.zeros(1, requires_grad=True)
    (model(images(1)).sum() + x.sum()).backward()
    opened = {f"{stage}." for stage in STAGES[5 - trained :]} | ({"bn1."} if trained == 5 else set())
    for name, parameter in model.resnet.named_parameters():
        expected = name.startswith(tuple(opened)) if opened else False
        assert parameter.requires_grad == expected == (parameter.grad is not None), name


@pytest.mark.parametrize("trained", [0, 2, 5])
def test_batchnorm_stays_as_it_is(trained):
    model = nn.Sequential(make(trained=trained))
    before = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        asleep = model.eval()(images(4))
        awake = model.train()(images(4))
    assert not any(module.training for module in model[0].modules())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert torch.equal(asleep, awake)


def test_without_weights_nothing_is_read(monkeypatch):
    monkeypatch.setattr(encoder, "weights_file", lambda name: pytest.fail("the weights were read"))
    empty = {key.removeprefix("resnet.") for key in make(trained=1, weights=False).state_dict()}
    assert empty == set(resnet18().state_dict()) - {"fc.weight", "fc.bias"}


def test_digest_tells_weights_apart(weights, tmp_path, monkeypatch):
    first = weights_digest("resnet18")
    assert len(first) == 16
    assert int(first, 16) >= 0
    other = tmp_path / weights.name
    state = torch.load(weights, weights_only=True)
    state["conv1.weight"][0, 0, 0, 0] += 1
    torch.save(state, other)
    monkeypatch.setattr(encoder, "weights_file", lambda name: other)
    assert weights_digest("resnet18") != first


def test_unknown_encoder():
    with pytest.raises(UserError, match=r"model.encoder is 'vgg'.*resnet50_v1"):
        make("vgg")


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        make("resnet34")
    line = str(caught.value)
    assert "\n" not in line
    assert "https://download.pytorch.org/models/resnet34-" in line
    assert f"put it at {tmp_path / 'hub' / 'checkpoints' / 'resnet34-'}" in line
    assert "no route to host" in line


def test_a_download_is_checked_and_kept(tmp_path, monkeypatch, weights):
    def download(url, file, hash_prefix, progress):
        assert url.endswith(f"-{hash_prefix}.pth")
        with open(file, "wb") as there:
            there.write(weights.read_bytes())

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert weights_file("resnet18").is_relative_to(tmp_path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    assert weights_file("resnet18").exists()


def test_missing_weights_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("captioner.models.weights.places", lambda name: iter([("the repository", tmp_path / name)]))
    with pytest.raises(UserError, match=r"there is no resnet50_v1\.safetensors in .*captioner weights --from"):
        make("resnet50_v1")


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v1"])
@pytest.mark.parametrize("size", [0, 1000])
def test_damaged_weights_are_one_line(tmp_path, monkeypatch, name, size):
    whole = weights_file(name)
    damaged = tmp_path / whole.name
    damaged.write_bytes(whole.read_bytes()[:size])
    monkeypatch.setattr(encoder, "weights_file", lambda _: damaged)
    with pytest.raises(UserError) as caught:
        make(name)
    assert is_one_line(str(caught.value), str(damaged))


@pytest.mark.parametrize(
    ("function", "before", "after"),
    [
        (shrink, (288, 288), (224, 224)),
        (shrink, (96, 64), (33, 50)),
        (F.adaptive_avg_pool2d, (9, 9), (7, 7)),
        (F.adaptive_avg_pool2d, (9, 10), (1, 4)),
        (F.adaptive_avg_pool2d, (3, 4), (7, 7)),
    ],
)
def test_a_resize_is_two_matrix_products(function, before, after):
    x = torch.rand(2, 3, *before, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(matrix_resize(function, x, after), function(x, after), atol=1e-5)


def test_on_mps_alone_a_resize_is_two_matrix_products(monkeypatch):
    monkeypatch.setattr(encoder, "matrix_resize", lambda function, x, size: "products")
    assert encoder.resize(None, SimpleNamespace(device=torch.device("mps")), (7, 7)) == "products"
    assert encoder.resize(F.adaptive_avg_pool2d, torch.ones(1, 1, 9, 9), (7, 7)).shape == (1, 1, 7, 7)


@pytest.mark.parametrize("second_size", [0, 32])
@pytest.mark.parametrize(("trained", "grid"), [(1, 0), (2, 0), (3, 2)])
def test_maps_before_the_trained_stages_are_enough(trained, grid, second_size):
    attention = "soft" if grid else "none"
    config = ModelConfig("resnet18", 64, second_size, trained, grid, attention)
    encoder, images = Encoder(config), torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    maps = encoder.cached(images)
    assert not maps.requires_grad
    assert maps.shape == (2, *cached_shape(config)) == (2, sum(h * w * c for h, w, c in map_shapes(config)))
    found = encoder(maps)
    torch.testing.assert_close(found, encoder(images), atol=1e-6, rtol=1e-5)
    found.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == (encoder.stages_after[name] < trained), name


def test_what_is_cached():
    """The features of a frozen encoder; nothing where a network cannot be cut, is trained whole, or sees clips."""
    assert cached_shape(ModelConfig("resnet18", 64, 0, 0)) == (512,)
    assert map_shapes(ModelConfig("resnet18", 64, 0, 1)) == ((4, 4, 256),)
    assert map_shapes(ModelConfig("convnext_tiny", 64, 0, 1)) == ((2, 2, 768),)
    for config in (
        ModelConfig("resnet18", 64, 0, 5),
        ModelConfig("vit_b_16", 224, 0, 1),
        ModelConfig("resnet18", 64, 0, 1, frames=2),
    ):
        assert cached_shape(config) == ()


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf"])
def test_other_networks_are_cut_before_their_last_stage(name):
    config = ModelConfig(name, 64, 0, 1)
    encoder, images = Encoder(config, weights=False), torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(encoder(encoder.cached(images)), encoder(images))
