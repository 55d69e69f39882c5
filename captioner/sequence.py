"""Sequence in, sequence out: a many-to-one recurrent encoder of frames before the decoder of one feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.decoder import CELLS, FEATURE_NORM, Decoder, remember


class SequenceEncoder(nn.Module):
    """Features of S frames → the last hidden state of a recurrent network, ``h_s = f(W_xh v_s + W_hh h_{s-1})``.

    It is the many-to-one half of the lecture's sequence to sequence (EECS 498-007; Sutskever et al. 2014, with frames
    as in Venugopalan et al. 2015), of the decoder's cell, layers and sizes.

    Each v_s is scaled to the length FEATURE_NORM, as the decoder of pictures does with its v.

    Axes: I clips, S frames, F feature size, H hidden size.

    Args:
        config: cell, layers, hidden_size, dropout rates.
        feature_size: F.
    """

    def __init__(self, config: ModelConfig, feature_size: int) -> None:
        super().__init__()
        self.rnn = CELLS[config.cell](
            feature_size,
            config.hidden_size,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.feature_dropout)
        if config.cell == "lstm":
            for layer in range(config.layers):
                remember(getattr(self.rnn, f"bias_ih_l{layer}"), config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """(I, S, F), absent frames 0 → (I, H), the same wherever and however many the absent ones are."""
        v = FEATURE_NORM * F.normalize(features.float(), dim=2)
        there = v.any(dim=2)  # (I, S)
        order = there.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # the absent ones last
        v = v.gather(1, order.unsqueeze(2).expand_as(v))
        hidden, _ = self.rnn(self.dropout(v))  # (I, S, H)
        last = there.sum(dim=1).clamp_min(1) - 1
        return hidden[torch.arange(len(v), device=v.device), last]


class SequenceDecoder(Decoder):
    """The :class:`captioner.decoder.Decoder` whose v is the last hidden state of a :class:`SequenceEncoder`.

    Where its methods take features of pictures (I, F), they take those of frames (I, S, F). v is not scaled: the
    encoder learns its length.

    Args:
        config: as for both.
        vocabulary_size: V.
        feature_size: F.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, feature_size: int) -> None:
        super().__init__(config, vocabulary_size, config.hidden_size)
        self.frames = SequenceEncoder(config, feature_size)

    def image(self, features: Tensor) -> Tensor:
        """(I, S, F) → (I, E): P v, once a clip."""
        return self.project(self.frames(features))
