"""Clips and albums: a many-to-one recurrent encoder of frames in front of the decoder of one feature."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.models.decoder import FEATURE_NORM, Decoder, RecurrentLayers


class ClipEncoder(nn.Module):
    """Features of S frames → the last hidden state of a recurrent network, ``h_s = f(W_xh x_s + W_hh h_{s-1})``.

    The many-to-one half of the lecture's sequence to sequence (EECS 498-007; Sutskever et al. 2014, over frames as in
    Venugopalan et al. 2015), with the decoder's cell, layers and sizes.

    Features of neighbouring frames are nearly equal, so each component of v_s is first scaled to mean 0 and variance 1
    over the training frames (BatchNorm). x_s is a linear map of the result; with a grid the maps of the
    cells are concatenated. (The mean over a frame hardly separates left from right: ResNets train on mirrored images.)

    Axes: I clips, S frames, M of them present, P cells, F feature size, E embedding size, H hidden size.
    """

    def __init__(self, config: ModelConfig, feature_size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(feature_size, affine=False)
        self.project = nn.Linear(feature_size, config.embedding_size)
        self.rnn = RecurrentLayers(config, config.embedding_size * max(1, config.grid**2))
        self.dropout = nn.Dropout(config.feature_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(I, S, F) or (I, S, P, F) → (I, H). Absent frames are 0; their places and number make no difference."""
        present = features.flatten(2).any(dim=2)  # (I, S)
        lengths = present.sum(dim=1)  # (I,)
        first = (~present).int().argsort(dim=1, stable=True)  # (I, S) the frames, absent ones last
        x = self.project(self.dropout(self.normalized(features.float(), present))).flatten(2)  # (I, S, P · E)
        frames = x.gather(1, first.unsqueeze(2).expand_as(x))
        hidden, _ = self.rnn(frames, self.rnn.zero_state(len(frames), frames))  # (I, S, H)
        last = (lengths.clamp_min(1) - 1).view(-1, 1, 1).expand(-1, 1, hidden.shape[2])
        return hidden.gather(1, last)[:, 0]

    def normalized(self, v: Tensor, present: Tensor) -> Tensor:
        """BatchNorm of (I, S, F) or (I, S, P, F) by the statistics of the frames that are present (I, S).

        Selecting these for torch's own would make the CPU wait for the GPU. One row alone has no variance: then, as in
        evaluation, the statistics are the running ones.
        """
        norm: Any = self.norm
        axes = tuple(range(v.dim() - 1))
        mean, variance = norm.running_mean, norm.running_var
        if self.training:
            weights = present.unsqueeze(-1) if v.dim() == 3 else present[..., None, None].expand(-1, -1, v.shape[2], 1)
            number = weights.sum().clamp_min(1)
            own_mean = (v * weights).sum(axes) / number
            own_variance = ((v - own_mean).square() * weights).sum(axes) / number
            mean, variance = torch.where(number > 1, own_mean, mean), torch.where(number > 1, own_variance, variance)
            with torch.no_grad():
                norm.running_mean.lerp_(mean, norm.momentum)
                norm.running_var.lerp_(variance * (number / (number - 1).clamp_min(1)), norm.momentum)  # unbiased
        return (v - mean) * torch.rsqrt(variance + norm.eps)


class ClipDecoder(Decoder):
    """A :class:`captioner.models.decoder.Decoder` with the last hidden state of a :class:`ClipEncoder` as v.

    Its methods take features of frames (I, S, F) or (I, S, P, F). v has no dropout; it is scaled like that of an image,
    because unscaled it is too small against the words for learning to start.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, feature_size: int) -> None:
        super().__init__(config, vocabulary_size, config.hidden_size)
        self.frames = ClipEncoder(config, feature_size)

    def project_image(self, features: Tensor) -> Tensor:
        """P v, once per clip."""
        return self.project(FEATURE_NORM * F.normalize(self.frames(features), dim=-1))
