"""The recurrent decoder with attention over a grid: Show, Attend and Tell, adaptive attention, Up-Down."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data.layout import Layout
from captioner.data.vocabulary import PAD
from captioner.decoding.search import State
from captioner.models.concepts import Concepts
from captioner.models.decoder import FEATURE_NORM, init_forget_bias

FEW = 8  # images


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 4H) input, forget, cell and output gate before their activation, c_{t-1} (N, H) → h_t, c_t (N, H)."""
    i, f, g, o = gates.float().chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


class AttentionDecoder(nn.Module):
    """Predicts words from the P cells of an image, weighted at each step.

    As in :class:`captioner.models.decoder.Decoder` the mean v of all cells enters at every step, ``x_t = e_t + P v``
    with the word's embedding e_t. The cells are projected once per image, ``a_p = ReLU(W_a v_p)``, and so are their
    keys ``W_k a_p``. Additive attention (Bahdanau et al. 2015) of a state h over them is::

        α_p ∝ exp(w · tanh(W_k a_p + W_q h)),    z = Σ α_p a_p

    soft (Xu et al. 2015, Show, Attend and Tell): attention of h_{t-1}; z_t is gated by ``σ(W_β h_{t-1})`` (section
    4.2.1) and enters the LSTM beside x_t; the words are predicted from ``h_t + W_z z_t``.

    adaptive (Lu et al. 2017, Knowing When to Look): attention of h_t over the cells and the visual sentinel
    ``s_t = σ(W_x x_t + W_h h_{t-1}) tanh c_t`` (equations 9 and 10), the content of the LSTM's memory; the words are
    predicted from ``h_t + W_z z_t``.

    updown (Anderson et al. 2018, Bottom-Up and Top-Down Attention): the first LSTM takes x_t and the second's h²;
    attention of its h¹ gives z_t; the second LSTM takes z_t and h¹; the words are predicted from h².

    Axes as in :class:`captioner.models.decoder.Decoder`, and D attention size: of the space in which states and cells
    are compared. A row is a caption or, in a search, a beam.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, feature_size: int) -> None:
        super().__init__()
        e, h, d = config.embedding_size, config.hidden_size, config.attention_size
        self.kind, self.hidden_size, self.cell_dropout = config.attention, h, config.cell_dropout
        self.embedding = nn.Embedding(vocabulary_size, e, padding_idx=PAD)
        self.project = nn.Linear(feature_size, e)  # P
        self.concepts = Concepts(config, vocabulary_size, e) if config.concepts != "none" else None
        self.cells = nn.Linear(feature_size, e)  # W_a
        self.keys = nn.Linear(e, d)  # W_k
        self.query = nn.Linear(h, d, bias=False)  # W_q
        self.score = nn.Linear(d, 1, bias=False)  # w
        # The gates of the (first) LSTM, from x_t and from the rest; adaptive has the sentinel's gate as a fifth.
        gates = (5 if self.kind == "adaptive" else 4) * h
        self.input = nn.Linear(e, gates)
        self.recurrent = nn.Linear({"soft": e + h, "adaptive": h, "updown": 2 * h}[self.kind], gates, bias=False)
        if self.kind == "soft":
            self.gate = nn.Linear(h, e)  # W_β
        if self.kind == "adaptive":
            self.sentinel = nn.Linear(h, e)
        if self.kind == "updown":
            self.language = nn.Linear(e + 2 * h, 4 * h)  # the gates of the second LSTM
            init_forget_bias(self.language.bias, h)
        else:
            self.seen = nn.Linear(e, h)  # W_z
        init_forget_bias(self.input.bias, h)
        self.output = nn.Linear(h, vocabulary_size)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.dropout)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
            nn.init.normal_(self.embedding.weight, std=e**-0.5)

    def project_image(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on the image alone: (I, P, F) → P v (I, E), keys (I, P, D), a (I, P, E).

        In training only a random share of the cells is kept, 1 − cell_dropout of them.
        """
        cells = features
        if self.training and self.cell_dropout:
            count = max(1, round((1 - self.cell_dropout) * cells.shape[1]))
            kept = torch.rand(cells.shape[:2], device=cells.device).argsort(dim=1)[:, :count]  # (I, count)
            cells = cells.gather(1, kept.unsqueeze(2).expand(-1, -1, cells.shape[2]))
        mean = cells.mean(dim=1, keepdim=True, dtype=torch.float32)  # (I, 1, F)
        cells = cells * (FEATURE_NORM / mean.norm(dim=2, keepdim=True).clamp_min(1e-12))
        a = self.feature_dropout(self.cells(cells).relu())  # (I, P, E)
        image = self.project(self.feature_dropout(cells.mean(dim=1)))  # (I, E)
        if self.concepts is not None:
            image = image + self.concepts(features.mean(dim=1, dtype=torch.float32), self.feature_dropout)
        return image, self.keys(a).float(), a

    def additive_scores(self, keys: Tensor, query: Tensor) -> Tensor:
        """``w · tanh(key + query)``: keys (A, P, D), query (A, R, 1, D) → (A, R, P).

        A search on a CPU takes a few images at a time: to request the memory of (A, R, P, D) from the system takes
        longer than to fill it.
        """
        if torch.is_inference_mode_enabled() and keys.device.type == "cpu" and len(keys) > FEW:
            parts = zip(keys.split(FEW), query.split(FEW), strict=True)
            return torch.cat([self.additive_scores(*part) for part in parts])
        return self.score((keys.unsqueeze(1) + query).tanh_()).squeeze(3).float()

    def attend(self, h: Tensor, keys: Tensor, a: Tensor, sentinel: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Additive attention over the cells, and over a `sentinel` (A · R, E) of each row.

        `h` (A · R, H) are the states of R rows for each image, `keys` and `a` as from `project_image`. Returns
        z (A · R, E) and the weights α (A · R, P), or (A · R, P + 1) with the sentinel last.
        """
        query = self.query(h).unflatten(0, (keys.shape[0], -1)).unsqueeze(2)  # (A, R, 1, D)
        scores = self.additive_scores(keys, query)  # (A, R, P)
        if sentinel is not None:
            own = sentinel.unflatten(0, (keys.shape[0], -1)).unsqueeze(2)  # (A, R, 1, E)
            scores = torch.cat([scores, self.score(torch.tanh(self.keys(own) + query)).squeeze(3).float()], dim=2)
        weights = scores.softmax(dim=2)  # (A, R, P or P + 1)
        z = (weights[..., : a.shape[1]].to(a.dtype) @ a).flatten(0, 1)  # (A · R, E)
        weights = weights.flatten(0, 1)
        return (z if sentinel is None else z + weights[:, -1:] * sentinel), weights

    def advance(self, gates: Tensor, state: State, keys: Tensor, a: Tensor) -> tuple[Tensor, State, Tensor]:
        """One step of the recurrence; `gates` (A · R, 4H or 5H) is the share of x_t in those of the first LSTM.

        Returns (A · R, H) from which the words are predicted, the new state, and the weights of :meth:`attend`.
        """
        if self.kind == "soft":
            h, c = state
            z, weights = self.attend(h, keys, a)
            z = self.gate(h).sigmoid() * z
            h, c = lstm_cell(gates + self.recurrent(torch.cat([z, h], dim=1)), c)
            return h + self.seen(z), (h, c), weights
        if self.kind == "adaptive":
            h, c = state
            gates, gate = (gates + self.recurrent(h)).split([4 * self.hidden_size, self.hidden_size], dim=1)
            h, c = lstm_cell(gates, c)
            sentinel = self.sentinel(gate.sigmoid() * c.tanh()).relu()  # (A · R, E)
            z, weights = self.attend(h, keys, a, sentinel)
            return h + self.seen(z), (h, c), weights
        h1, c1, h2, c2 = state
        h1, c1 = lstm_cell(gates + self.recurrent(torch.cat([h1, h2], dim=1)), c1)
        z, weights = self.attend(h1, keys, a)
        h2, c2 = lstm_cell(self.language(torch.cat([z, h1, h2], dim=1)), c2)
        return h2, (h1, c1, h2, c2), weights

    def forward(self, features: Tensor, words: Tensor, image_of: Tensor, layout: Layout) -> Tensor:
        """Teacher forcing, as :meth:`captioner.models.decoder.Decoder.forward`, from features (I, P, F)."""
        hidden, _ = self.unroll(features, words, image_of, layout)
        return self.output(self.dropout(hidden.index_select(0, layout.rows)))  # (R, V)

    def attention_weights(self, features: Tensor, words: Tensor) -> Tensor:
        """The attention weights of each word: features (I, P, F), words (I, T) from START on → (I, T, P or P + 1).

        Row t has the weights of the step that predicts the word after ``words[:, t]``. They add up to 1, with the
        sentinel of adaptive attention as the last, and are 0 at padding.
        """
        layout = Layout.of((words != PAD).cpu().numpy()).to(words.device)
        _, weights = self.unroll(features, words, torch.arange(len(words), device=words.device), layout)
        places = weights.new_zeros(words.numel(), weights.shape[1])
        return places.index_copy_(0, layout.steps, weights).unflatten(0, words.shape)

    def unroll(self, features: Tensor, words: Tensor, image_of: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The recurrence over whole captions, without steps for padding; arguments as for :meth:`forward`.

        The captions are taken longest first, so that those still active at a step are the first rows of each tensor.
        Returns (S, H) from which the words are predicted and the weights (S, P or P + 1), in the order of
        ``layout.steps``.
        """
        image, keys, a = self.project_image(features)
        images = image_of.index_select(0, layout.steps // words.shape[1])  # (S,)
        x = self.embedding(words.flatten().index_select(0, layout.steps)) + image.index_select(0, images)  # (S, E)
        longest_first = image_of.index_select(0, layout.order)  # (N,)
        keys, a = keys.index_select(0, longest_first), a.index_select(0, longest_first)  # (N, P, D), (N, P, E)
        state = self.zero_state(len(words), x.device)
        outputs = []
        for gates in self.input(self.input_dropout(x)).split(layout.sizes):
            n = len(gates)
            if n < len(keys):
                keys, a, state = keys[:n], a[:n], tuple(part[:n] for part in state)
            hidden, state, weights = self.advance(gates, state, keys, a)
            outputs.append((hidden, weights))
        hidden, weights = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return hidden, weights

    def zero_state(self, rows: int, device: torch.device) -> State:
        """(rows, H) zeros for h and c, of both LSTMs of updown."""
        return (torch.zeros(rows, self.hidden_size, device=device),) * (4 if self.kind == "updown" else 2)

    def start(self, features: Tensor) -> tuple[State, State]:
        """As :meth:`captioner.models.decoder.Decoder.start`, from features (I, P, F).

        The context is the share of P v in the gates (I, 4H or 5H), which is W_ih v, and the keys and a of the cells.
        """
        image, keys, a = self.project_image(features)
        return self.zero_state(features.shape[0], features.device), (self.input(image), keys, a)

    def step(self, words: Tensor, state: State, context: State) -> tuple[Tensor, State]:
        """As :meth:`captioner.models.decoder.Decoder.step`."""
        image, keys, a = context
        gates = nn.functional.linear(self.embedding(words), self.input.weight)  # (A · R, 4H or 5H)
        gates = (gates.unflatten(0, (image.shape[0], -1)) + image.unsqueeze(1)).flatten(0, 1)
        hidden, state, _ = self.advance(gates, state, keys, a)
        return torch.log_softmax(self.output(hidden).float(), dim=-1), state
