"""A pretrained network without its head: images in, one feature an image, or one a cell of a grid, out."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from captioner.config import ENCODERS, ModelConfig
from captioner.errors import UserError
from captioner.models import backbones

if TYPE_CHECKING:
    from torchvision.models import ResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


def feature_size(config: ModelConfig) -> int:
    """F: the channels of the last map, such as 2048 of ResNet-50 (512 of ResNet-18 and -34), for each look."""
    sizes = (config.image_size, config.second_size) if config.second_size else (config.image_size,)
    if is_resnet(config.encoder):
        return len(sizes) * (512 if config.encoder in ("resnet18", "resnet34") else 2048)
    return len(sizes) * backbones.channels(config.encoder, sizes)


def feature_shape(config: ModelConfig) -> tuple[int, ...]:
    """Of what the encoder gives for one image: (F,), or (P, F) with P = grid × grid cells, row by row."""
    return (config.grid**2, feature_size(config)) if config.grid else (feature_size(config),)


def is_resnet(name: str) -> bool:
    """Whether it is one of torchvision's ResNets, ResNeXts and wide ResNets, or resnet50_v1."""
    return name in ENCODERS or name.startswith(("resnext", "wide_resnet"))


def build_resnet(name: str) -> ResNet:
    """An uninitialised ResNet `name` without a head.

    ``resnet50_v1`` is the network of He et al. 2015, where the 1×1 convolution of a stage's first block carries the
    stride; torchvision's ``resnet50`` is v1.5, where the 3×3 one does.
    """
    from torchvision.models import get_model

    with torch.device("meta"):
        resnet = get_model(name.removesuffix("_v1"), weights=None)
    if name.endswith("_v1"):
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    resnet.fc = nn.Identity()
    return resnet


def weights_file(name: str) -> Path:
    """Where the ImageNet weights of `name` lie; torchvision's are downloaded to torch's cache when they are not there.

    Raises:
        UserError: they are neither here nor to be had; the message names the file and where to put it.
    """
    if name == "resnet50_v1":
        file = CHECKPOINTS / "resnet50_v1.safetensors"
        if not file.exists():
            raise UserError(f"the weights of resnet50_v1 are missing: put {file.name} from the repository at {file}")
        return file
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[1], progress=True)
        except Exception as error:
            raise UserError(
                f"the weights of {name} could not be downloaded ({error}): fetch {url} elsewhere and put it at {file}"
            ) from error
    return file


@lru_cache(maxsize=8)
def _digest(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):  # Python 3.11
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return hashlib.sha256(file.read()).hexdigest()[:16]


def weights_digest(name: str) -> str:
    """The first 16 hex digits of the SHA-256 of the weights of `name`: of their file, or of timm's tensors."""
    if name.startswith(backbones.TIMM):
        return backbones.timm_digest(name)
    file = weights_file(name)
    status = os.stat(file)
    return _digest(str(file), status.st_size, status.st_mtime_ns)


def check_unpacked(file: Path) -> None:
    """torch never packs what it writes, so that a file of weights cannot unfold to more than its size.

    Raises:
        ValueError: this one is packed.
    """
    if zipfile.is_zipfile(file):  # older ones are not
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is packed")


def _fold_batchnorm(module: nn.Module) -> None:
    """Put each BatchNorm into the convolution before it: the same function, a fifth faster on a CPU.

    For ResNets, where the one follows the other in the module as in the forward pass; elsewhere it need not.
    """
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (name, convolution), (next_name, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, next_name, nn.Identity())


class Encoder(nn.Module):
    """ResNet, or another network, without its head: B images → B features of size F, or of P cells each.

    With a `second_size` the network looks at each image twice, as it is and made smaller, and so sees things at two
    sizes; the features of both looks, each of unit length, stand side by side. With a `grid` the last maps are averaged
    over its cells instead of over the whole image; it is the mean of the cells that is of unit length.

    Frozen but for its last `trainable_layers` stages. BatchNorm keeps its ImageNet statistics throughout, also in the
    trainable stages: caption batches are too small and too few to estimate better ones.

    Args:
        config: encoder, image_size, second_size, grid, trainable_layers (how many of the stages, in a ResNet conv1
            with bn1, layer1 … layer4, are trained, counted from the last; see ``backbones.stages``).
        weights: False leaves the parameters unset, for a checkpoint that brings its own.

    Raises:
        UserError: the network is not to be had, does not take images of that size, or has not so many stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, weights: bool = True) -> None:
        super().__init__()
        name, timm = config.encoder, config.encoder.startswith(backbones.TIMM)
        self.second_size, self.feature_shape = config.second_size, feature_shape(config)
        self.cells = config.grid or 1  # on each side
        # Whichever network it is, its tensors in checkpoints are called so.
        self.resnet: Any
        mean: tuple[float, ...]
        std: tuple[float, ...]
        if is_resnet(name):
            mean, std = MEAN, STD
            self.resnet = build_resnet(name)
            self.resnet.avgpool = nn.AdaptiveAvgPool2d(self.cells)
        else:
            mean, std, _ = backbones.facts(name)
            self.resnet = backbones.build(name, (config.image_size, config.second_size or config.image_size), weights)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)
        if weights and not timm:
            self._load_weights(weights_file(name))
        elif is_resnet(name):
            self.resnet.to_empty(device="cpu")
        if config.trainable_layers == 0 and is_resnet(name):
            _fold_batchnorm(self.resnet.eval())
        self.resnet.to(memory_format=torch.channels_last)
        among = None if is_resnet(name) or not config.trainable_layers else backbones.used(name, config.image_size)
        stage_of, stages = backbones.stages(self.resnet, among)
        if config.trainable_layers > stages:
            raise UserError(
                f"model.trainable_layers is {config.trainable_layers}: expected 0 to {stages}, the stages of {name}"
            )
        self.depth_of = {f"resnet.{key}": stages - 1 - stage for key, stage in stage_of.items()}
        """How many stages come after the one of each parameter that can be trained."""
        for parameter_name, parameter in self.named_parameters():
            parameter.requires_grad_(self.depth_of.get(parameter_name, stages) < config.trainable_layers)
        self.eval()

    def _load_weights(self, file: Path) -> None:
        state: dict[str, Any]
        try:
            if file.suffix == ".safetensors":
                from safetensors.torch import load_file

                state = load_file(file)
            else:
                check_unpacked(file)
                state = torch.load(file, weights_only=True)
            # The files of the DenseNets are older than the names of their layers.
            state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): state[key] for key in state}
            wanted = self.resnet.state_dict()
            state = {
                key: value.float() if value.is_floating_point() else value
                for key, value in state.items()
                if key in wanted
            }  # without the head
            for key, value in wanted.items():
                if key.endswith("num_batches_tracked"):
                    state.setdefault(key, torch.zeros((), dtype=value.dtype))
            self.resnet.load_state_dict(state, assign=True)
        except Exception as error:  # safetensors, pickle and zip each have their own
            reason = " ".join(str(error).split())[:200]
            if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run the code in it
                reason = "no file of weights, or one with code in it, which is not run"
            raise UserError(f"{file} does not hold the weights of that network ({reason}): fetch it again") from None

    def train(self, mode: bool = True) -> Encoder:
        """Stays in evaluation mode whatever is asked: BatchNorm is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB → (B, F) or (B, P, F): normalisation, network, mean over the cells, length.

        S frames an example, (B, S, 3, H, W) → (B, S, F) or (B, S, P, F); after the first one a wholly black frame is an
        absent one, and its feature 0.
        """
        if images.dim() == 5:
            there = images.flatten(2).any(dim=2).bool()  # (B, S)
            there[:, 0] = True
            found = self(images[there])  # (frames that are there, F)
            features = found.new_zeros(*there.shape, *found.shape[1:])
            features[there] = found
            return features
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        looks = [x]
        if self.second_size:
            looks.append(F.interpolate(x, (self.second_size, self.second_size), mode="bilinear", antialias=True))
        features = []
        for look in looks:
            maps = self.resnet(look.contiguous(memory_format=torch.channels_last))
            if maps.dim() == 4:  # a ResNet pools by itself
                maps = F.adaptive_avg_pool2d(maps, self.cells).flatten(1)
            # (B, C * P), channel by channel
            cells = maps.unflatten(1, (-1, *self.feature_shape[:-1], 1)).flatten(2).transpose(1, 2)  # (B, P, C)
            features.append(cells / cells.mean(dim=1, keepdim=True).norm(dim=2, keepdim=True).clamp_min(1e-12))
        return torch.cat(features, dim=2).view(images.shape[0], *self.feature_shape)
