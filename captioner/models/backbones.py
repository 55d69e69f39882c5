"""The networks of torchvision and timm by name, without their heads: an image in, a map of features out."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Container
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captioner.errors import UserError

TIMM = "timm:"  # before the name of one of timm's
# The children of torchvision's networks that come after the last map, or beside the chain that leads to it.
HEADS = {"avgpool", "classifier", "fc", "head", "heads", "dropout", "flatten", "aux1", "aux2", "AuxLogits"}
# Children that hold the stages; elsewhere a child is a stage.
CONTAINERS = {"model", "features", "encoder", "layers", "blocks", "stages", "trunk_output"}


class Facts(NamedTuple):
    """What the pretrained weights expect: RGB in 0..1 minus mean, over std, `size` pixels square."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


class VisionMap(nn.Module):
    """torchvision's ViT as a map of its patches: the last encoder's tokens without the class token."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.class_token, self.conv_proj, self.encoder = vit.class_token, vit.conv_proj, vit.encoder

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, h, w)."""
        x = self.conv_proj(x)
        size = x.shape[-2:]
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)  # (B, 1 + hw, C)
        return self.encoder(x)[:, 1:].transpose(1, 2).unflatten(2, size)


class TimmMap(nn.Module):
    """One of timm's networks as a map: tokens laid out as they were cut from the square, channels second."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, h, w)."""
        model: Any = self.model
        x = model.forward_features(x)
        if not isinstance(x, Tensor):  # two branches, as in CrossViT
            raise UserError(f"{type(model).__name__} of timm gives several maps: choose another model.encoder")
        if x.dim() == 3:  # (B, tokens, C); the class token and registers come first
            x = x[:, getattr(model, "num_prefix_tokens", 0) :].transpose(1, 2)
            side = math.isqrt(x.shape[2])
            return x.unflatten(2, (side, side))
        return x if x.shape[1] == model.num_features else x.permute(0, 3, 1, 2)


def facts(name: str) -> Facts:
    """What the default weights of `name` expect."""
    if name.startswith(TIMM):
        config = _timm(name).get_pretrained_cfg(name.removeprefix(TIMM))
        return Facts(tuple(config.mean), tuple(config.std), config.input_size[-1])
    from torchvision.models import get_model_weights

    transform = get_model_weights(name).DEFAULT.transforms()
    mean, std = tuple(transform.mean), tuple(transform.std)
    if name in ("googlenet", "inception_v3"):  # they rescale what ImageNet's mean and std have made; this is the sum
        mean = std = (0.5, 0.5, 0.5)
    return Facts(mean, std, transform.crop_size[0])


def build(name: str, sizes: tuple[int, ...], pretrained: bool = False) -> nn.Module:
    """The network as (B, 3, H, W) → (B, C, h, w).

    Torchvision's parameters keep their names. What follows the last map (pooling, ConvNeXt's norm after it, layers
    of the classifier) is the head and is left out.

    Args:
        name: of a torchvision classification model, or timm:NAME.
        sizes: H = W of the images it will see; a ViT of timm then resizes its position embedding.
        pretrained: for timm, which downloads its own weights; torchvision's are loaded by the caller.

    Raises:
        UserError: timm is missing, does not have the network, or cannot get its weights.
    """
    if name.startswith(TIMM):
        return TimmMap(_build_timm(name, sizes, pretrained))
    from torchvision.models import DenseNet, VisionTransformer, get_model

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # slow, and overwritten
    if name.startswith("vit_"):
        options["image_size"] = facts(name).size
    with torch.random.fork_rng(devices=[]):  # the weights to come do not depend on the seed, so nothing else should
        network: Any = get_model(name, weights=None, **options)
    if isinstance(network, VisionTransformer):
        return VisionMap(network)
    chain = OrderedDict(
        (child_name, nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child)
        for child_name, child in network.named_children()
        if child_name not in HEADS
    )
    if isinstance(network, DenseNet):
        chain["relu"] = nn.ReLU()  # a function in its forward
    return nn.Sequential(chain)


@lru_cache(maxsize=8)
def channels(name: str, sizes: tuple[int, ...]) -> int:
    """C of the map for images of these sizes, found without weights.

    Raises:
        UserError: the network does not take images of such a size.
    """
    network, found = _without_values(name, sizes), 0
    for size, option in zip(sizes, ("image_size", "second_size"), strict=False):
        try:
            with torch.device("meta"), torch.no_grad():
                batch, found, *_, width = network(torch.empty(2, 3, size, size)).shape
            if batch != 2 or width == 0:
                raise ValueError
        except (RuntimeError, AssertionError, ValueError, IndexError):
            own = facts(name).size
            other = "" if option == "image_size" else "; 0 is one look"
            raise UserError(
                f"model.{option} is {size}: expected a size that {name} can look at, such as {own}, which it was "
                f"trained at{other}"
            ) from None
    return found


@lru_cache(maxsize=8)
def used(name: str, size: int) -> frozenset[str]:
    """The parameters that the map depends on; some of timm's belong to a head that `build` could not take off."""
    network = _without_values(name, (size,))
    with torch.enable_grad():
        network(torch.empty(2, 3, size, size, device="meta")).sum().backward()
    return frozenset(key for key, parameter in network.named_parameters() if parameter.grad is not None)


def _without_values(name: str, sizes: tuple[int, ...]) -> nn.Module:
    """The network on the meta device, which knows shapes alone."""
    try:
        with torch.device("meta"):
            network = build(name, sizes)
    except (NotImplementedError, RuntimeError):  # RegNets and some of timm compute with tensors when they are made
        with torch.device("cpu"):  # whatever it is otherwise
            network = build(name, sizes)
    return network.to("meta").eval()


def stages(network: nn.Module, among: Container[str] | None = None) -> tuple[dict[str, int], int]:
    """The stage, from 0, of each parameter by its name; and how many stages there are.

    A stage is a child of the network, or of the child that holds the stages; one of vectors alone (a norm) belongs to
    the stage before it, and what lies outside the children (a class token) to the first. A ResNet has five: conv1 with
    bn1, layer1 … layer4. Only parameters `among` these count; None: all of them.
    """
    found: list[str] = []
    stage_of: dict[str, int] = {}

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            whole = f"{prefix}{name}."
            if name in CONTAINERS and list(child.children()):
                walk(child, whole)
                continue
            parameters = [(key, p) for key, p in child.named_parameters(whole.removesuffix(".")) if counts(key)]
            if any(parameter.dim() > 1 for _, parameter in parameters):
                found.append(whole)
            for parameter_name, _ in parameters:
                stage_of[parameter_name] = max(0, len(found) - 1)

    def counts(key: str) -> bool:
        return among is None or key in among

    walk(network, "")
    return {key: stage_of.get(key, 0) for key, _ in network.named_parameters() if counts(key)}, len(found)


@lru_cache(maxsize=8)
def timm_digest(name: str) -> str:
    """The first 16 hex digits of the SHA-256 of the names and values of timm's pretrained tensors, without the head."""
    digest = hashlib.sha256()
    network = build(name, (facts(name).size,), pretrained=True)
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _timm(name: str) -> Any:
    """The module timm, if it knows the network."""
    try:
        import timm
    except ImportError:
        raise UserError(f"model.encoder {name} needs timm: pip install 'captioner[timm]'") from None
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
            if set(sizes) != {facts(name).size}:
                try:
                    return timm.create_model(short, **options, dynamic_img_size=True)
                except TypeError:  # not a ViT
                    pass
            return timm.create_model(short, **options)
        except Exception as error:
            if not pretrained:
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the weights of {name} could not be had ({reason}): fetch them where there is a network, and bring "
                "the cache of huggingface_hub (HF_HOME) here"
            ) from error
