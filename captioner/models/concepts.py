"""What an image shows, by name: the classes of ImageNet, and the words of captions, as an input beside its feature."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data.vocabulary import SPECIAL
from captioner.errors import UserError
from captioner.models.backbones import TIMM
from captioner.models.checkpoint import CHECKPOINTS, load_pickle, load_safetensors
from captioner.models.encoder import feature_shape, weights_file

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
        self.classes, self.words = config.concepts in ("classes", "both"), config.concepts in ("words", "both")
        count = 0
        if self.classes:
            self.register_buffer("head", torch.zeros(CLASSES, self.channels))
            self.register_buffer("bias", torch.zeros(CLASSES))
            self.length = nn.Parameter(torch.tensor(FEATURE_LENGTH))
            count += CLASSES
        if self.words:
            self.detector = nn.Linear(features, min(WORDS, vocabulary_size - len(SPECIAL)))
            count += self.detector.out_features
        self.project = nn.Linear(count, size, bias=False)  # W_c

    def load_head(self, encoder: str) -> None:
        """Copy the head of :func:`imagenet_head`."""
        for own, theirs in zip((self.head, self.bias), imagenet_head(encoder), strict=True):
            own.copy_(theirs)

    def class_probabilities(self, mean: Tensor) -> Tensor:
        """Mean features (I, F) → (I, CLASSES), from the last resolution, which is that of ImageNet or nearer to it."""
        v = F.normalize(mean[:, -self.channels :], dim=1)
        return F.linear(self.length * v, self.head, self.bias).softmax(dim=1)

    def word_logits(self, mean: Tensor) -> Tensor:
        """Mean features (I, F) → (I, words); the probabilities are their logistic function."""
        return self.detector(SCALE * F.normalize(mean, dim=1))

    def forward(self, mean: Tensor, dropout: nn.Dropout) -> Tensor:
        """Mean features (I, F) → (I, size)."""
        found = []
        if self.classes:
            found.append(self.class_probabilities(mean).sqrt())
        if self.words:
            found.append(F.normalize(self.word_logits(mean).detach().sigmoid().sqrt(), dim=1))
        return self.project(dropout(SCALE * torch.cat(found, dim=1)))

    def detection_loss(self, mean: Tensor, words: Tensor, image_of: Tensor) -> Tensor:
        """Binary cross-entropy, mean over words and images; `words` (N, T) are captions of images `image_of` (N,)."""
        logits = self.word_logits(mean)  # (I, K)
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
        state: Any = load_safetensors(CHECKPOINTS / "resnet50_v1_head.safetensors")[1]
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


def class_names(encoder: str) -> list[str]:
    """The names of ImageNet's classes, in the order of a head."""
    if encoder == "resnet50_v1":
        return json.loads(load_safetensors(CHECKPOINTS / "resnet50_v1_head.safetensors")[0]["labels"])
    from torchvision.models import get_model_weights

    return list(get_model_weights(encoder).DEFAULT.meta["categories"])
