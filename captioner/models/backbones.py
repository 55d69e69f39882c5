"""Pretrained networks by name, without their heads: images to feature maps."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captioner.config import ENCODERS
from captioner.errors import UserError, install_hint, one_line
from captioner.models.resnet import resnet50_v1

TIMM = "timm:"  # prefix of the names of timm's networks
# The children of torchvision's networks after the last map, or beside the chain that leads to it.
HEADS = {"avgpool", "classifier", "fc", "head", "heads", "dropout", "flatten", "aux1", "aux2", "AuxLogits"}
# Children that hold the stages; other children are stages.
CONTAINERS = {"model", "features", "encoder", "layers", "blocks", "stages", "trunk_output"}


class Preprocessing(NamedTuple):
    """The input of pretrained weights: RGB in 0..1, minus mean, divided by std, `size` pixels square."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


class TorchvisionViT(nn.Module):
    """torchvision's ViT (B, 3, H, W) → (B, C, h, w), the last layer's tokens without the class token."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.class_token, self.conv_proj, self.encoder = vit.class_token, vit.conv_proj, vit.encoder

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x)
        size = x.shape[-2:]
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)  # (B, 1 + hw, C)
        return self.encoder(x)[:, 1:].transpose(1, 2).unflatten(2, size)


class TimmBackbone(nn.Module):
    """A network of timm (B, 3, H, W) → (B, C, h, w); tokens are put in the places of their patches."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model: Any = self.model
        x = model.forward_features(x)
        if not isinstance(x, Tensor):  # two branches, such as CrossViT's
            raise UserError(f"{type(model).__name__} of timm gives several maps: choose another model.encoder")
        if x.dim() == 3:  # (B, tokens, C), class token and registers first
            x = x[:, getattr(model, "num_prefix_tokens", 0) :].transpose(1, 2)  # (B, C, hw)
            side = math.isqrt(x.shape[2])
            return x.unflatten(2, (side, side))
        return x if x.shape[1] == model.num_features else x.permute(0, 3, 1, 2)


def is_resnet(name: str) -> bool:
    """Whether `name` is resnet50_v1 or one of torchvision's ResNets, ResNeXts and wide ResNets."""
    return name in ENCODERS or name.startswith(("resnext", "wide_resnet"))


def preprocessing(name: str) -> Preprocessing:
    """The preprocessing of the default weights of `name`."""
    if name.startswith(TIMM):
        config = _timm(name).get_pretrained_cfg(name.removeprefix(TIMM))
        return Preprocessing(tuple(config.mean), tuple(config.std), config.input_size[-1])
    if name == "resnet50_v1":
        return Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)
    from torchvision.models import get_model_weights

    transform = get_model_weights(name).DEFAULT.transforms()
    mean, std = tuple(transform.mean), tuple(transform.std)
    if name in ("googlenet", "inception_v3"):  # they rescale an input normalised by ImageNet's statistics to this
        mean = std = (0.5, 0.5, 0.5)
    return Preprocessing(mean, std, transform.crop_size[0])


def build_backbone(name: str, sizes: tuple[int, ...], pretrained: bool = False) -> nn.Module:
    """A network (B, 3, H, W) → (B, C, h, w). Its parameters have torchvision's names; a ResNet's are uninitialised.

    What follows the last map (pooling, the norm after it in ConvNeXt, layers of the classifier) is the head and is left
    out.

    `name` is resnet50_v1, a torchvision classification model or timm:NAME; `sizes` are H = W of its images, to which a
    ViT of timm resizes its position embedding. `pretrained` networks of timm download their weights; the caller loads
    those of the others. UserError if timm is missing, does not have the network, or cannot get its weights.
    """
    if name.startswith(TIMM):
        return TimmBackbone(_build_timm(name, sizes, pretrained))
    if name == "resnet50_v1":
        with meta_device():
            return resnet50_v1()
    from torchvision.models import DenseNet, VisionTransformer, get_model

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # slow, and overwritten later
    if name.startswith("vit_"):
        options["image_size"] = preprocessing(name).size
    place = meta_device() if is_resnet(name) else nullcontext()  # initialisation is slow, and overwritten later
    with torch.random.fork_rng(devices=[]), place:  # keep the random state for the decoder
        network: Any = get_model(name, weights=None, **options)
    if isinstance(network, VisionTransformer):
        return TorchvisionViT(network)
    chain = OrderedDict(
        (child_name, nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child)
        for child_name, child in network.named_children()
        if child_name not in HEADS
    )
    if isinstance(network, DenseNet):
        chain["relu"] = nn.ReLU()  # a function in its forward
    return nn.Sequential(chain)


@lru_cache(maxsize=8)
def feature_channels(name: str, sizes: tuple[int, ...]) -> int:
    """C of the feature map, computed without weights; UserError if the network does not take images of these sizes."""
    if is_resnet(name):
        return 512 if name in ("resnet18", "resnet34") else 2048
    network, found = shapes_only(lambda: build_backbone(name, sizes)).eval(), 0
    for size, option in zip(sizes, ("image_size", "second_size"), strict=False):
        try:
            with torch.device("meta"), torch.no_grad():
                batch, found, *_, width = network(torch.empty(2, 3, size, size)).shape
            if batch != 2 or width == 0:
                raise ValueError
        except (RuntimeError, AssertionError, ValueError, IndexError):
            advice = f"expected a size that {name} takes, such as {preprocessing(name).size}, which it was trained at"
            other = "" if option == "image_size" else "; 0 leaves the second resolution out"
            raise UserError(f"model.{option} is {size}: {advice}{other}") from None
    return found


@lru_cache(maxsize=8)
def used_parameters(name: str, size: int) -> frozenset[str]:
    """The parameters that the feature map depends on: some networks of timm keep parts of their head."""
    network = shapes_only(lambda: build_backbone(name, (size,))).eval()
    with torch.enable_grad():
        network(torch.empty(2, 3, size, size, device="meta")).sum().backward()
    return frozenset(key for key, parameter in network.named_parameters() if parameter.grad is not None)


class _WithoutNormal(TorchFunctionMode):
    """Leaves tensors as they are instead of drawing them from a normal distribution."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def meta_device() -> Iterator[None]:
    """Modules made inside have shapes, but neither values nor memory.

    ``normal_`` is left out: on the meta device it does nothing but import torch's compiler, which takes a second.
    """
    with torch.device("meta"), _WithoutNormal():
        yield


def shapes_only(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that `make` makes, moved to the meta device if it cannot be made there."""
    try:
        with meta_device():
            network = make()
    except (NotImplementedError, RuntimeError):  # RegNets and some of timm's networks compute with values when made
        with torch.device("cpu"):  # also inside another torch.device
            network = make()
    return network.to("meta")


def parameter_stages(network: nn.Module, among: Container[str] | None = None) -> tuple[dict[str, int], int]:
    """The stage of each parameter by its name, from 0, and the number of stages.

    A stage is a child of the network, or of a child in CONTAINERS. One of vectors alone (a norm) belongs to the stage
    before it, and parameters outside the children (a class token) to the first. A ResNet has five: conv1 with bn1,
    layer1 … layer4. With `among` only the parameters of these names are considered.
    """
    stages, stage_of = 0, dict[str, int]()
    for path, child in _stage_modules(network):
        parameters = {key: p for key, p in child.named_parameters(path) if among is None or key in among}
        stages += any(parameter.dim() > 1 for parameter in parameters.values())
        stage_of |= dict.fromkeys(parameters, max(0, stages - 1))
    first = {key: 0 for key, _ in network.named_parameters() if among is None or key in among}
    return first | stage_of, stages


def chain_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that a network runs one after the other, by name, nested sequences unfolded; [] if it is no sequence.

    A torchvision ViT and the networks of timm are none.
    """

    def unfold(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if type(module) is nn.Sequential:  # a subclass may have a forward of its own
            for child_name, child in module.named_children():
                yield from unfold(child, f"{name}{child_name}.")
        else:
            yield name, module

    return list(unfold(network, "")) if type(network) is nn.Sequential else []


def _stage_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if name in CONTAINERS and list(child.children()):
            yield from _stage_modules(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


@lru_cache(maxsize=8)
def timm_digest(name: str) -> str:
    """The first 16 hex digits of the SHA-256 of the names and values of timm's pretrained tensors, without the head."""
    digest = hashlib.sha256()
    network = build_backbone(name, (preprocessing(name).size,), pretrained=True)
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _timm(name: str) -> Any:
    """The module timm, which has the network."""
    try:
        import timm
    except ImportError:
        raise UserError(f"model.encoder {name} needs timm: {install_hint('timm')}") from None
    short = name.removeprefix(TIMM)
    if not timm.is_model(short) or timm.get_pretrained_cfg(short) is None:
        close = get_close_matches(short, [*timm.list_models(), *timm.list_pretrained()], 3, 0.4)
        like = f", such as {', '.join(TIMM + one for one in close)}" if close else ""
        raise UserError(f"model.encoder is {name!r}: expected a model of timm {timm.__version__}{like}")
    return timm


def _build_timm(name: str, sizes: tuple[int, ...], pretrained: bool) -> nn.Module:
    timm, short = _timm(name), name.removeprefix(TIMM)
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        try:
            if set(sizes) != {preprocessing(name).size}:
                with suppress(TypeError):  # not a ViT
                    return timm.create_model(short, **options, dynamic_img_size=True)
            return timm.create_model(short, **options)
        except Exception as error:  # of timm, huggingface_hub and the network library below it
            if not pretrained:
                raise
            advice = "download them elsewhere and copy the cache of huggingface_hub (HF_HOME) to this machine"
            raise UserError(f"the weights of {name} could not be downloaded ({one_line(error)}): {advice}") from error
