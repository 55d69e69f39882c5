"""A pretrained network without its head: one feature per image, or per cell of a grid."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from captioner.config import ModelConfig
from captioner.errors import UserError, one_line
from captioner.models import backbones
from captioner.models.checkpoint import file_digest, load_pickle, load_safetensors
from captioner.models.weights import find_weights


def feature_shape(config: ModelConfig) -> tuple[int, ...]:
    """The shape of an image's features: (F,), or (P, F) with P = grid × grid cells, row by row.

    F is the number of channels of the last map, such as 2048 for ResNet-50, for each resolution.
    """
    sizes = _sizes(config)
    size = len(sizes) * backbones.feature_channels(config.encoder, sizes)
    return (config.grid**2, size) if config.grid else (size,)


def leaves_out_frozen_stages(config: ModelConfig) -> bool:
    """Whether checkpoints leave out the frozen stages: where all are frozen, and those of resnet50_v1, shipped here."""
    return not config.custom_encoder and (config.trainable_layers == 0 or config.encoder == "resnet50_v1")


@lru_cache(maxsize=8)
def map_shapes(config: ModelConfig) -> tuple[tuple[int, int, int], ...]:
    """(h, w, C) of the maps before the first trained stage, for each resolution.

    () where none are cached: the encoder is frozen, or trained in all of its stages; the network is no sequence; or
    images are clips, where maps of every frame would take too much room.
    """
    if config.trainable_layers == 0 or config.frames:
        return ()
    encoder: Any = backbones.shapes_only(lambda: Encoder(config, weights=False)).eval()
    frozen = [module for _, module in encoder.chain[: encoder.cut]]
    shapes = []
    for size in _sizes(config) if frozen else ():
        x = torch.empty(1, 3, size, size, device="meta")
        for module in frozen:
            x = module(x)
        shapes.append((*x.shape[2:], x.shape[1]))
    return tuple(shapes)


def cached_shape(config: ModelConfig) -> tuple[int, ...]:
    """The shape of what training does not change of an image: its feature, or the maps of :func:`map_shapes`, flat.

    () if nothing of it is cached.
    """
    if config.custom_encoder:
        return ()
    if config.trainable_layers == 0:
        return feature_shape(config)
    shapes = map_shapes(config)
    return (sum(map(math.prod, shapes)),) if shapes else ()


def _sizes(config: ModelConfig) -> tuple[int, ...]:
    return (config.image_size, config.second_size) if config.second_size else (config.image_size,)


def weights_file(name: str) -> Path:
    """The file of the ImageNet weights of `name`; torchvision's are downloaded if missing, UserError if that fails."""
    if name == "resnet50_v1":
        return find_weights("resnet50_v1.safetensors")
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rsplit("-", 1)[1], progress=True)
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash of the file is wrong
            advice = f"fetch {url} elsewhere and put it at {file}"
            raise UserError(f"the weights of {name} could not be downloaded ({error}): {advice}") from error
    return file


def pretrained_weights(name: str) -> dict[str, Tensor]:
    """The ImageNet weights of `name`, which ships with captioner, with the names that checkpoints have for them."""
    return {f"encoder.resnet.{key}": value for key, value in load_safetensors(weights_file(name))[1].items()}


@lru_cache(maxsize=8)
def _cached_digest(path: Path, modified: int) -> str:
    return file_digest(path)


def weights_digest(name: str) -> str:
    """The first 16 hex digits of the SHA-256 of the weights of `name`: of their file, or of timm's tensors."""
    if name.startswith(backbones.TIMM):
        return backbones.timm_digest(name)
    file = weights_file(name)
    return _cached_digest(file, file.stat().st_mtime_ns)


def _fold_frozen_batchnorm(module: nn.Module) -> None:
    """Fold each frozen BatchNorm of a ResNet into the convolution before it: the same, a fifth faster on a CPU."""
    for parent in list(module.modules()):
        for (_, convolution), (name, norm) in pairwise(list(parent.named_children())):
            if (
                isinstance(convolution, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d)
                and not norm.weight.requires_grad
            ):
                if convolution.weight.is_meta:  # shapes alone; arithmetic on them would import torch's compiler
                    convolution.bias = nn.Parameter(convolution.weight.new_empty(convolution.out_channels), False)
                else:
                    statistics: Any = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
                    convolution.weight, convolution.bias = fuse_conv_bn_weights(
                        convolution.weight, convolution.bias, *statistics
                    )
                setattr(parent, name, nn.Identity())


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, H, W) → (…, size): bilinear, with antialiasing."""
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def resize(function: Callable[..., Tensor], x: Tensor, size: tuple[int, int]) -> Tensor:
    """``function(x, size)``, a weighted mean of rows and of columns; on MPS, which lacks some, by two matrix products.

    The weights of h rows for `size` are what the function makes of the (h, h) identity on the CPU.
    """
    if x.device.type != "mps":
        return function(x, size)
    return matrix_resize(function, x, size)


def matrix_resize(function: Callable[..., Tensor], x: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, H, W) → (…, size): the products of :func:`resize`."""
    sides = zip(x.shape[-2:], size, strict=True)
    rows, columns = (function(torch.eye(before)[None, None], (after, before))[0, 0].to(x) for before, after in sides)
    return rows @ x @ columns.T


class Encoder(nn.Module):
    """A network of :mod:`captioner.models.backbones`: B images → B features of size F, or of P cells each.

    With a `second_size` the image is encoded at two resolutions, and the two features, each of unit length, are
    concatenated, so that objects appear at two scales. With a `grid` the last maps are averaged over its cells instead
    of over the whole image; then the mean of the cells is of unit length.

    Frozen but for its last `trainable_layers` stages. BatchNorm keeps its ImageNet statistics also in trained stages:
    caption batches are too small and too few to estimate better ones.

    Args:
        config: with the encoder, image_size, second_size, grid and trainable_layers.
        weights: False leaves the parameters uninitialised, to be loaded from a checkpoint.

    Attributes:
        feature_shape: (F,) or (P, F).
        stages_after: for each parameter by name, how many stages come after its own.

    Raises:
        UserError: the network is unavailable, does not take images of that size, or has fewer stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, weights: bool = True) -> None:
        super().__init__()
        self.config, name, resnet = config, config.encoder, backbones.is_resnet(config.encoder)
        self.second_size, self.feature_shape = config.second_size, feature_shape(config)
        self.cells = config.grid or 1  # per side
        mean, std, _ = backbones.preprocessing(name)
        # Multiplied by numpy: arithmetic on the meta device, as for shapes alone, would import torch's compiler.
        for buffer, values in (("mean", mean), ("std", std)):
            pixels = np.array(values, np.float32) * np.float32(255)
            self.register_buffer(buffer, torch.tensor(pixels.tolist()).view(3, 1, 1), persistent=False)
        self.resnet = backbones.build_backbone(name, _sizes(config), weights)  # in checkpoints all have this name
        if weights and not name.startswith(backbones.TIMM):
            self._load_weights(weights_file(name))
        elif resnet and not torch.empty(0).is_meta:  # unless for shapes alone
            self.resnet.to_empty(device="cpu")
        self._freeze(config)
        if resnet and leaves_out_frozen_stages(config):
            _fold_frozen_batchnorm(self.resnet.eval())
        self.resnet.to(memory_format=torch.channels_last)
        self.eval()

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the encoder: the parameters of its trained stages, or all tensors.

        See :func:`leaves_out_frozen_stages`; the tensors that are left out are known by their digest.
        """
        if leaves_out_frozen_stages(self.config):
            return {name: value.detach() for name, value in self.named_parameters() if self._is_trained(name)}
        return self.state_dict()

    def freeze(self) -> None:
        """Train no stage from here on, so that :meth:`cached` gives features also of stages that were fine-tuned."""
        self.config = replace(self.config, trainable_layers=0)
        self.requires_grad_(False)

    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of all parameters, in fp16."""
        digest = hashlib.sha256()
        for _, value in sorted(self.named_parameters()):
            digest.update(value.detach().half().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def chain(self) -> list[tuple[str, nn.Module]]:
        """The modules that an image goes through; see :func:`captioner.models.backbones.chain_of`."""
        return backbones.chain_of(self.resnet)

    @property
    def cut(self) -> int:
        """The number of modules in the chain before the first trained parameter."""
        trained = [
            any(self._is_trained(f"resnet.{name}{key}") for key, _ in module.named_parameters())
            for name, module in self.chain
        ]
        return trained.index(True) if any(trained) else 0

    def _freeze(self, config: ModelConfig) -> None:
        """Let only the parameters of the last `trainable_layers` stages require gradients."""
        name, trained = config.encoder, config.trainable_layers
        among = None if backbones.is_resnet(name) or not trained else backbones.used_parameters(name, config.image_size)
        stage_of, stages = backbones.parameter_stages(self.resnet, among)
        if trained > stages:
            raise UserError(f"model.trainable_layers is {trained}: expected 0 to {stages}, the stages of {name}")
        self.stages_after = {f"resnet.{key}": stages - 1 - stage for key, stage in stage_of.items()}
        for key, parameter in self.named_parameters():
            parameter.requires_grad_(self._is_trained(key))

    def _is_trained(self, name: str) -> bool:
        """Whether a parameter is of the last `trainable_layers` stages."""
        return self.stages_after.get(name, math.inf) < self.config.trainable_layers

    def _load_weights(self, file: Path) -> None:
        try:
            found = load_safetensors(file)[1] if file.suffix == ".safetensors" else load_pickle(file, legacy=True)
            if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
                raise ValueError("it is not a state dict")
            # The files of the DenseNets are older than the names of their layers.
            found = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", str(k)): found[k] for k in found}
            state = {}
            for key, value in self.resnet.state_dict().items():  # without the head
                if key in found:
                    state[key] = found[key].to(value.dtype)
                elif key.endswith("num_batches_tracked"):
                    state[key] = torch.zeros((), dtype=value.dtype)
            self.resnet.load_state_dict(state, assign=True)
        except (OSError, RuntimeError, ValueError) as error:
            reason = one_line(error)
            raise UserError(f"{file} does not hold the weights of that network ({reason}): fetch it again") from None

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode, so that BatchNorm is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB → (B, F) or (B, P, F): normalisation, network, mean over each cell, unit length.

        Maps (B, D), floats from `cached`, go through the trained stages alone.

        Clips of S frames: (B, S, 3, H, W) → (B, S, F) or (B, S, P, F). A black frame after the first one is an absent
        frame, with a feature of 0.
        """
        if images.dim() == 5:
            present = images.flatten(2).any(dim=2).bool()  # (B, S)
            present[:, 0] = True
            found = self(images[present])  # (frames that are present, F) or (…, P, F)
            features = found.new_zeros(*present.shape, *found.shape[1:])
            features[present] = found
            return features
        features = []
        for maps in self._last_maps(images):  # (B, C, h, w)
            pooled = resize(F.adaptive_avg_pool2d, maps, (self.cells, self.cells)).contiguous()  # (B, C, grid, grid)
            cells = pooled.flatten(2).transpose(1, 2)  # (B, P, C)
            features.append(cells / cells.mean(dim=1, keepdim=True).norm(dim=2, keepdim=True).clamp_min(1e-12))
        return torch.cat(features, dim=2).view(images.shape[0], *self.feature_shape)

    def cached(self, images: Tensor) -> Tensor:
        """What training does not change of images: their features, or maps for `forward`, (B, *cached_shape)."""
        if self.config.trainable_layers == 0:
            return self(images)
        frozen = self.chain[: self.cut]
        maps = [self._run(frozen, x) for x in self._resolutions(images)]
        return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in maps], dim=1)  # channels last, as they are used

    def _last_maps(self, images: Tensor) -> list[Tensor]:
        """The last map of images, or of maps (B, D), at each resolution."""
        if not images.is_floating_point():
            return [self.resnet(x) for x in self._resolutions(images)]
        trained, shapes = self.chain[self.cut :], map_shapes(self.config)
        parts = images.to(self.mean.dtype).split([math.prod(shape) for shape in shapes], dim=1)
        return [
            self._run(trained, part.unflatten(1, shape).permute(0, 3, 1, 2))
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def _resolutions(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) uint8, normalised, at each resolution."""
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        sizes = [(size, size) for size in (self.second_size,) if size]
        resolutions = [x, *(resize(shrink, x, size) for size in sizes)]
        return [x.contiguous(memory_format=torch.channels_last) for x in resolutions]

    @staticmethod
    def _run(modules: list[tuple[str, nn.Module]], x: Tensor) -> Tensor:
        for _, module in modules:
            x = module(x)
        return x
