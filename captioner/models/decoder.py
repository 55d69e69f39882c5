"""The recurrent decoder: h_t = f(W_xh x_t + W_hh h_{t-1} + W_ih v)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data.layout import Layout
from captioner.data.vocabulary import PAD
from captioner.decoding.search import State
from captioner.models.concepts import Concepts

FEATURE_NORM = 16.0  # chosen on Flickr8k val among 4, 16 and 40

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
STATE_PARTS = {"rnn": 1, "gru": 1, "lstm": 2}  # h; h and c
# Whether torch's recurrent layers run in bf16 on this CPU: with oneDNN they need AVX-512 or newer.
CPU_HAS_BF16 = not torch.backends.mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def init_forget_bias(bias: Tensor, hidden_size: int) -> None:
    """Set the bias of an LSTM's forget gate to 1, so that its cell keeps its content at first, and the others to 0.

    Jozefowicz et al. 2015, An Empirical Exploration of Recurrent Network Architectures. `bias` (4H or more,) is of the
    input, forget, cell and output gate in this order.
    """
    nn.init.zeros_(bias)
    nn.init.ones_(bias[hidden_size : 2 * hidden_size])


class RecurrentLayers(nn.Module):
    """torch's recurrent layers, stacked with residual connections from the second on: ``x^{l+1}_t = x^l_t + h^l_t``.

    Wu et al. 2016, Google's Neural Machine Translation System, section 3.1. Without them a GRU or LSTM of three layers
    learned no more than the word frequencies in ten epochs of Flickr8k.
    """

    def __init__(self, config: ModelConfig, input_size: int) -> None:
        super().__init__()
        self.parts, self.hidden_size = STATE_PARTS[config.cell], config.hidden_size
        sizes = [input_size] + [config.hidden_size] * (config.layers - 1)
        self.layers = nn.ModuleList(CELLS[config.cell](size, config.hidden_size, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(config.dropout)
        layer: Any
        for layer in self.layers if config.cell == "lstm" else ():
            init_forget_bias(layer.bias_ih_l0, config.hidden_size)
            nn.init.zeros_(layer.bias_hh_l0)  # added to bias_ih

    def zero_state(self, rows: int, like: Tensor) -> State:
        """h_0 = 0: (rows, L, H), twice for an LSTM (h and c), with the dtype and device of `like`."""
        return (like.new_zeros(rows, len(self.layers), self.hidden_size),) * self.parts

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(N, T, input_size) and the state before it → (N, T, H) and the state after it."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not CPU_HAS_BF16:
            with torch.autocast("cpu", enabled=False):
                return self.forward(x.float(), tuple(part.float() for part in state))
        states = []
        for number, layer in enumerate(self.layers):
            h, *c = (part[:, number].unsqueeze(0).contiguous() for part in state)  # (1, N, H)
            hidden, new = layer(self.dropout(x) if number else x, (h, *c) if c else h)  # (N, T, H)
            x = x + hidden if number else hidden
            states.append(new if c else (new,))
        return x, tuple(torch.cat(layers).transpose(0, 1) for layers in zip(*states, strict=True))  # (N, L, H)


class Decoder(nn.Module):
    """Predicts words from an image feature v: a tanh RNN, GRU or LSTM of one to five :class:`RecurrentLayers`.

    `image_as` chooses how v enters. P is the linear map `project`, e_t the embedding of word t.

    **every_step.** The formula of the lecture (EECS 498-007, recurrent networks), with h_0 = 0::

        h_t = tanh(W_xh x_t + W_hh h_{t-1} + W_ih v)

    Here the first layer gets ``x_t = e_t + P v``. Since ``W_xh (e_t + P v) = W_xh e_t + (W_xh P) v``, this is the
    lecture's formula with ``W_ih = W_xh P``, for each gate of a GRU or LSTM alike. ``P v`` does not depend on the step:
    it is computed once per image, and torch's fused recurrent layers can be used.

    **first_word.** ``x_0 = P v``, then ``x_t = e_t``: the image is the input before START (Vinyals et al. 2015, Show
    and Tell, equations 10 and 11, which count from −1).

    **initial_state.** ``x_t = e_t`` and ``h_0 = tanh(P v)``, with own rows of P for each layer and for the c_0 of an
    LSTM (Xu et al. 2015, Show, Attend and Tell, section 3.1.2, with one tanh layer as the perceptron).

    v is scaled to the length FEATURE_NORM, so that it has the same weight against the words for every backbone.

    Axes, here and in the other decoders: I images, A of them still searched, R beams of each, N captions, T words,
    P cells of a grid, F feature size, E embedding size, H hidden size, L layers, V vocabulary.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, feature_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size, padding_idx=PAD)
        self.image_as = config.image_as
        states = STATE_PARTS[config.cell] * config.layers * config.hidden_size
        image_size = states if config.image_as == "initial_state" else config.embedding_size
        self.project = nn.Linear(feature_size, image_size)  # P
        self.concepts = Concepts(config, vocabulary_size, image_size) if config.concepts != "none" else None
        self.rnn = RecurrentLayers(config, config.embedding_size)  # W_xh, W_hh
        self.output = nn.Linear(config.hidden_size, vocabulary_size)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.dropout)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
            nn.init.normal_(self.embedding.weight, std=config.embedding_size**-0.5)

    def project_image(self, features: Tensor) -> Tensor:
        """P v, once per image: (I, F) → (I, E), or (I, parts · L · H) as the initial state; W_ih = W_xh P."""
        v = FEATURE_NORM * F.normalize(features.float(), dim=-1)
        image = self.project(self.feature_dropout(v))
        return image if self.concepts is None else image + self.concepts(features.float(), self.feature_dropout)

    def forward(self, features: Tensor, words: Tensor, image_of: Tensor, layout: Layout) -> Tensor:
        """Teacher forcing: the logits of the word after each of `words`, where there is one to predict.

        Args:
            features: (I, F), one row per image.
            words: (N, T) ids, START first.
            image_of: (N,) the row of `features` of each caption; the captions of an image share one P v.
            layout: of the R words to predict; logits of padding are never computed.

        Returns:
            (R, V) logits, in the order of ``layout.targets``.
        """
        state, (image,) = self.start(features)
        x = self.embedding(words) + image.index_select(0, image_of).unsqueeze(1)  # (N, T, E)
        hidden, _ = self.rnn(self.input_dropout(x), tuple(part.index_select(0, image_of) for part in state))
        return self.output(self.dropout(hidden.flatten(0, 1).index_select(0, layout.targets)))  # (R, V)

    def start(self, features: Tensor) -> tuple[State, State]:
        """The state and the context before START.

        The state is (I, L, H), twice for an LSTM (h and c); a search may reorder its rows. The context, which it may
        not reorder, is P v (I, E), which is added to every word, or (I, 1) zeros where the image is in the state.
        """
        image = self.project_image(features)
        no_context = (image.new_zeros(image.shape[0], 1),)
        if self.image_as == "initial_state":
            state = image.unflatten(1, (self.rnn.parts, len(self.rnn.layers), self.rnn.hidden_size)).tanh()
            return state.unbind(1), no_context  # (I, L, H) each
        state = self.rnn.zero_state(image.shape[0], image)
        if self.image_as == "every_step":
            return state, (image,)
        return self.rnn(self.input_dropout(image).unsqueeze(1), state)[1], no_context

    def step(self, words: Tensor, state: State, context: State) -> tuple[Tensor, State]:
        """The next word after `words` (A · R,): log-probabilities (A · R, V) and the new state.

        The R beams of an image are consecutive rows; `state` and `context` are as from `start`, of A · R and A rows.
        """
        image = context[0].unsqueeze(1)  # (A, 1, E)
        x = (self.embedding(words).unflatten(0, (image.shape[0], -1)) + image).flatten(0, 1)  # (A · R, E)
        hidden, state = self.rnn(x.unsqueeze(1), state)  # (A · R, 1, H)
        return torch.log_softmax(self.output(hidden[:, 0]).float(), dim=-1), state
