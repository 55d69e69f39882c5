"""Sequence in, sequence out: a many-to-one recurrent encoder of frames before the decoder of one feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.models.decoder import FEATURE_NORM, Decoder, Layers


class SequenceEncoder(nn.Module):
    """Features of S frames → the last hidden state of a recurrent network, ``h_s = f(W_xh x_s + W_hh h_{s-1})``.

    It is the many-to-one half of the lecture's sequence to sequence (EECS 498-007; Sutskever et al. 2014, with frames
    as in Venugopalan et al. 2015), of the decoder's cell, layers and sizes.

    The features of neighbouring frames are nearly alike, so each is first compared with those of other frames: every
    number of v_s is scaled to mean 0 and variance 1 over the training frames (BatchNorm), and x_s is a linear map of
    that, the same for all cells where a frame has a grid of them; those of a frame stand side by side. (A mean over the
    whole frame hardly tells left from right: ResNets are trained on mirrored images.)

    Axes: I clips, S frames, P cells, F feature size, E embedding size, H hidden size.

    Args:
        config: grid, cell, layers, embedding_size, hidden_size, dropout rates.
        feature_size: F.
    """

    def __init__(self, config: ModelConfig, feature_size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(feature_size, affine=False)
        self.project = nn.Linear(feature_size, config.embedding_size)
        self.rnn = Layers(config, config.embedding_size * max(1, config.grid**2))
        self.dropout = nn.Dropout(config.feature_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(I, S, F) or (I, S, P, F) → (I, H); absent frames are 0, and their places and number do not matter."""
        there = features.flatten(2).any(dim=2)  # (I, S)
        v = features[there].float()  # (frames that are there, F) or (…, P, F)
        self.norm.train(self.training and v.shape[:-1].numel() > 1)  # one alone has no variance
        v = self.norm(v.flatten(0, -2)).view_as(v)
        x = self.project(self.dropout(v)).flatten(1)  # (frames that are there, P · E)
        # The absent ones last.
        numbers = there.sum(dim=1)
        first = torch.arange(there.shape[1], device=there.device) < numbers.unsqueeze(1)  # (I, S)
        frames = x.new_zeros(*there.shape, x.shape[1]).masked_scatter(first.unsqueeze(2), x)
        hidden, _ = self.rnn(frames, self.rnn.start(len(frames), frames))  # (I, S, H)
        return hidden[torch.arange(len(hidden), device=hidden.device), numbers.clamp_min(1) - 1]


class SequenceDecoder(Decoder):
    """The :class:`captioner.models.decoder.Decoder` whose v is the last hidden state of a :class:`SequenceEncoder`.

    Where its methods take features of images (I, F), they take those of frames (I, S, F) or (I, S, P, F). Of this v
    nothing is dropped out; it is scaled as theirs is, since it would begin too small against the words to be learned
    from.

    Args:
        config: as for both.
        vocabulary_size: V.
        feature_size: F.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, feature_size: int) -> None:
        super().__init__(config, vocabulary_size, config.hidden_size)
        self.frames = SequenceEncoder(config, feature_size)

    def image(self, features: Tensor) -> Tensor:
        """(I, S, F) or (I, S, P, F) → P v, once a clip; its shape is that of the decoder of images."""
        return self.project(FEATURE_NORM * F.normalize(self.frames(features), dim=-1))
