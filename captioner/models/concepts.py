"""What an image shows, by name: the classes of ImageNet, and the words of captions, as an input beside its feature."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data.vocabulary import SPECIAL
from captioner.errors import UserError
from captioner.models.backbones import TIMM
from captioner.models.checkpoint import load_pickle, load_safetensors
from captioner.models.encoder import feature_shape, weights_file
from captioner.models.weights import find_weights

CLASSES = 1000  # of ImageNet
WORDS = 1000  # the commonest
SCALE = 16.0  # of the inputs, as FEATURE_NORM of the decoders
FEATURE_LENGTH = 38.7  # of the mean feature of resnet50_v1 before it is scaled to 1


class Concepts(nn.Module):
    """``W_c √p`` of the probabilities p of concepts, to be added to P v: a second W_ih.

    Wu et al. 2016 (What Value Do Explicit High Level Concepts Have in Vision to Language Problems?), Yao et al. 2017
    (LSTM-A), Gan et al. 2017. The square root lets rare concepts count, and makes a distribution a vector of length 1.

    classes: softmax of the ImageNet head of the encoder on the mean feature; frozen but for the length of the feature,
    which the encoder does not keep.

    words: the probabilities that the WORDS commonest words of the vocabulary are in a caption of the image, by logistic
    regression on the mean feature. It learns from the training captions (`detection_loss`), not from the decoder.

    Args:
        size: of the output.
    """

    head: Tensor
    bias: Tensor

    def __init__(self, config: ModelConfig, vocabulary_size: int, size: int) -> None:
        super().__init__()
        features = feature_shape(config)[-1]
        self.channels = features // (2 if config.second_size else 1)
        self.kind, count = config.concepts, CLASSES
        if self.kind == "classes":
            self.register_buffer("head", torch.zeros(CLASSES, self.channels))
            self.register_buffer("bias", torch.zeros(CLASSES))
            self.length = nn.Parameter(torch.tensor(FEATURE_LENGTH))
        else:
            count = min(WORDS, vocabulary_size - len(SPECIAL))
            self.detector = nn.Linear(features, count)
        self.project = nn.Linear(count, size, bias=False)  # W_c

    def load_head(self, encoder: str) -> None:
        """Copy the head of :func:`imagenet_head`."""
        for own, theirs in zip((self.head, self.bias), imagenet_head(encoder), strict=True):
            own.copy_(theirs)

    def logits(self, mean: Tensor) -> Tensor:
        """Mean features (I, F) → (I, CLASSES) or (I, words); the classes from the last resolution, that of ImageNet."""
        if self.kind == "words":
            return self.detector(SCALE * F.normalize(mean, dim=1))
        return F.linear(self.length * F.normalize(mean[:, -self.channels :], dim=1), self.head, self.bias)

    def probabilities(self, mean: Tensor) -> Tensor:
        """Mean features (I, F) → (I, CLASSES), which add up to 1, or (I, words), of which each is 0 to 1."""
        logits = self.logits(mean).float()
        return logits.sigmoid() if self.kind == "words" else logits.softmax(dim=1)

    def forward(self, mean: Tensor, dropout: nn.Dropout) -> Tensor:
        """Mean features (I, F) → (I, size)."""
        logits = self.logits(mean).float()
        if self.kind == "words":
            roots = F.normalize(logits.detach().sigmoid().sqrt(), dim=1)
        else:
            roots = (logits.log_softmax(dim=1) / 2).exp()  # √p, with a gradient where p is 0
        return self.project(dropout(SCALE * roots))

    def detection_loss(self, mean: Tensor, words: Tensor, image_of: Tensor) -> Tensor:
        """Binary cross-entropy, mean over words and images; `words` (N, T) are captions of images `image_of` (N,)."""
        logits = self.logits(mean)  # (I, K)
        present = logits.new_zeros(len(mean), len(SPECIAL) + logits.shape[1] + 1)
        places = words.clamp_max(present.shape[1] - 1)  # the last column is for all rarer words
        present[image_of.unsqueeze(1), places] = 1
        return F.binary_cross_entropy_with_logits(logits, present[:, len(SPECIAL) : -1])


def imagenet_head(encoder: str) -> tuple[Tensor, Tensor]:
    """The weight (CLASSES, C) and bias (CLASSES,) of the last layer of a pretrained network, on its mean feature.

    Raises:
        UserError: the head is not one linear layer, or that of a class token, or of timm.
    """
    if encoder == "resnet50_v1":
        state: Any = load_safetensors(find_weights("resnet50_v1_head.safetensors"))[1]
        return state["fc.weight"].float(), state["fc.bias"].float()
    if not encoder.startswith((TIMM, "vit_")):
        state = load_pickle(weights_file(encoder), legacy=True)
        head = {name: value for name, value in state.items() if name.split(".")[0] in ("fc", "classifier", "head")}
        if sorted(value.dim() for value in head.values()) == [1, 2]:
            bias, weight = sorted(head.values(), key=Tensor.dim)
            return weight.float(), bias.float()
    raise UserError(
        f"model.encoder is {encoder}, whose head is not one linear layer on the mean of its map: "
        "choose another for model.concepts classes, or model.concepts words"
    )


@lru_cache(maxsize=8)
def class_names(encoder: str) -> list[str]:
    """The names of ImageNet's classes, in the order of a head."""
    if encoder == "resnet50_v1":
        return json.loads(load_safetensors(find_weights("resnet50_v1_head.safetensors"))[0]["labels"])
    from torchvision.models import get_model_weights

    return list(get_model_weights(encoder).DEFAULT.meta["categories"])
