"""The recurrent decoder: h_t = f(W_xh x_t + W_hh h_{t-1} + W_ih v)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.vocabulary import PAD

FEATURE_NORM = 16.0  # chosen on Flickr8k val among 4, 16 and 40

State = tuple[Tensor, ...]

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def remember(bias: Tensor, hidden_size: int) -> None:
    """Begin with forget gates biased to 1, so that an LSTM's cell keeps what it has (Jozefowicz et al. 2015).

    Args:
        bias: of the input, forget, cell and output gate, one after the other.
        hidden_size: H.
    """
    nn.init.zeros_(bias)
    nn.init.ones_(bias[hidden_size : 2 * hidden_size])


class Decoder(nn.Module):
    """Words from an image feature v: tanh RNN, GRU or LSTM, one to five layers.

    `image_as` says how v enters; P is the linear map `project`, e_t the embedding of word t, START the word 1.

    **every_step.** The lecture's formula (EECS 498-007, recurrent networks) is
    ``h_t = tanh(W_xh x_t + W_hh h_{t-1} + W_ih v)``: the image enters at every step, h_0 = 0. Here ``x_t = e_t + P v``
    goes into the first layer. Then ``W_xh (e_t + P v) = W_xh e_t + (W_xh P) v``: the lecture's formula with
    ``W_ih = W_xh P``, for every gate of a GRU or LSTM alike. ``P v`` does not depend on the step: it is computed once
    a picture, and the recurrent layers stay torch's fused ones.

    **first_word.** ``x_0 = P v``, ``x_t = e_t``: the image is seen once, before START, from a state of zeros, and no
    word is asked for after it (Vinyals et al. 2015, Show and Tell, equations 10 and 11, which count from −1).

    **initial_state.** ``x_t = e_t``, and ``h_0 = tanh(P v)``, with rows of P of its own for each layer and, in an
    LSTM, for c_0 (Xu et al. 2015, Show, Attend and Tell, section 3.1.2, with one tanh layer as the perceptron).

    v is scaled to the length FEATURE_NORM, so that the features of every backbone and picture weigh the same against
    the words.

    Axes: I pictures, N captions (or beams), T words, F feature size, E embedding size, H hidden size, L layers,
    V vocabulary.

    Args:
        config: cell, layers, image_as, sizes, dropout rates, tie_embeddings.
        vocabulary_size: V.
        feature_size: F.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, feature_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size, padding_idx=PAD)
        self.image_as, self.parts = config.image_as, 2 if config.cell == "lstm" else 1  # parts of the state: h, c
        states = self.parts * config.layers * config.hidden_size
        image_size = states if config.image_as == "initial_state" else config.embedding_size
        self.project = nn.Linear(feature_size, image_size)  # P
        self.rnn = CELLS[config.cell](
            config.embedding_size,
            config.hidden_size,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.output = nn.Linear(config.hidden_size, vocabulary_size)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.dropout)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
            nn.init.normal_(self.embedding.weight, std=config.embedding_size**-0.5)
        if config.cell == "lstm":
            for name, bias in self.rnn.named_parameters():
                if name.startswith("bias_ih"):
                    remember(bias, config.hidden_size)
                elif name.startswith("bias_hh"):
                    nn.init.zeros_(bias)

    def image(self, features: Tensor) -> Tensor:
        """(I, F) → (I, E): P v, once a picture; (I, parts · L · H) where it becomes the initial state."""
        v = FEATURE_NORM * F.normalize(features.float(), dim=-1)
        return self.project(self.feature_dropout(v))

    def forward(self, features: Tensor, words: Tensor, picture_of: Tensor, real: Tensor) -> Tensor:
        """Teacher forcing: the logits of the word after each of `words`, where `real`.

        Args:
            features: (I, F) one row a picture.
            words: (N, T) ids, START first.
            picture_of: (N,) the row of `features` each caption belongs to; captions of a picture share one P v.
            real: (N, T) bool, R of them true; logits of padding are never computed.

        Returns:
            (R, V) logits, in the order of ``words[real]``.
        """
        state, (image,) = self.start(features)
        x = self.embedding(words) + image[picture_of].unsqueeze(1)  # (N, T, E)
        hidden, _ = self._recur(self.input_dropout(x), tuple(part[picture_of] for part in state))  # (N, T, H)
        return self.output(self.dropout(hidden[real]))  # (R, V)

    def language(self, words: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """A language model, the image off: x_t = e_t. Stepping through a text and reading it at once are the same.

        Args:
            words: (N, T) ids.
            state: after the words before these, as from `step`, N rows; None is h_0 = 0.

        Returns:
            (N, T, V) logits of the word after each of `words`, and the state after the last one.
        """
        lstm = isinstance(self.rnn, nn.LSTM)
        before = tuple(part.transpose(0, 1).contiguous() for part in state or ())  # (L, N, H)
        x = self.input_dropout(self.embedding(words))  # (N, T, E)
        hidden, after = self.rnn(x, (before if lstm else before[0]) if before else None)  # (N, T, H)
        return self.output(self.dropout(hidden)), tuple(p.transpose(0, 1) for p in (after if lstm else (after,)))

    def start(self, features: Tensor) -> tuple[State, State]:
        """(I, F) → the state before START, and the context: what is added to every word.

        Returns:
            state: (I, L, H), twice for an LSTM (h and c); the search may reorder its rows.
            context: (I, E) P v, or (I, 1) zeros where the image is in the state; never reordered.
        """
        image = self.image(features)
        nothing = image.new_zeros(len(image), 1)
        if self.image_as == "initial_state":
            state = image.unflatten(1, (self.parts, self.rnn.num_layers, self.rnn.hidden_size)).tanh()
            return state.unbind(1), (nothing,)
        state = (image.new_zeros(len(image), self.rnn.num_layers, self.rnn.hidden_size),) * self.parts
        if self.image_as == "every_step":
            return state, (image,)
        return self._recur(self.input_dropout(image).unsqueeze(1), state)[1], (nothing,)

    def step(self, words: Tensor, state: State, context: State) -> tuple[Tensor, State]:
        """One word further.

        Args:
            words: (A · R,) the last words, those of a picture side by side.
            state: as from `start`, A · R rows.
            context: as from `start`, A rows.

        Returns:
            (A · R, V) log-probabilities of the next word, and the state after `words`.
        """
        image = context[0].unsqueeze(1)  # (A, 1, E)
        x = (self.embedding(words).unflatten(0, (len(image), -1)) + image).flatten(0, 1)  # (A · R, E)
        hidden, state = self._recur(x.unsqueeze(1), state)
        return torch.log_softmax(self.output(hidden[:, 0]).float(), dim=-1), state

    def _recur(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(N, T, E) → (N, T, H) of the last layer, and the state after it; torch's states are (L, N, H)."""
        before = tuple(part.transpose(0, 1).contiguous() for part in state)
        hidden, after = self.rnn(x, before if self.parts == 2 else before[0])
        return hidden, tuple(part.transpose(0, 1) for part in (after if self.parts == 2 else (after,)))
