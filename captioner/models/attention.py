"""The recurrent decoder that looks at the cells of a grid: Show, Attend and Tell, adaptive attention, Up-Down."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data.vocabulary import PAD
from captioner.models.decoder import FEATURE_NORM, State, remember


def lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 4H) input, forget, cell and output gate before their activation, c_{t-1} (N, H) → h_t, c_t (N, H)."""
    i, f, g, o = gates.float().chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


class AttentionDecoder(nn.Module):
    """Words from the P cells of an image, of which each step sees another mean.

    As in :class:`captioner.models.decoder.Decoder` the mean v of all cells enters at every step, ``x_t = e_t + P v``
    with the word's embedding e_t. The cells are projected once an image, ``a_p = ReLU(W_a v_p)``, and so are their keys
    ``W_k a_p``. A state h looks at them with additive attention (Bahdanau et al. 2015)::

        α_p ∝ exp(w · tanh(W_k a_p + W_q h)),    z = Σ α_p a_p

    soft (Xu et al. 2015, Show, Attend and Tell): h_{t-1} looks, ``z_t`` is gated by ``σ(W_β h_{t-1})`` (equation 4.2.1)
    and enters the LSTM beside x_t; the words come from ``h_t + W_z z_t``.

    adaptive (Lu et al. 2017): h_t looks, at the cells and at the sentinel ``s_t = σ(W_x x_t + W_h h_{t-1}) tanh c_t``
    (equations 9 and 10), what the LSTM knows without looking; the words come from ``h_t + W_z z_t``.

    updown (Anderson et al. 2018): the first LSTM sees x_t and the second's h², looks, and the second LSTM sees z_t and
    the first's h¹; the words come from h².

    Axes: I images, P cells, F feature size, N captions (or beams), T words, E embedding size, H hidden size,
    D attention size (of the space in which states and cells are compared), V vocabulary, R beams of an image.

    Args:
        config: attention, sizes, dropout rates, tie_embeddings.
        vocabulary_size: V.
        feature_size: F.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, feature_size: int) -> None:
        super().__init__()
        e, h, d = config.embedding_size, config.hidden_size, config.attention_size
        self.kind, self.hidden_size, self.cell_dropout = config.attention, h, config.cell_dropout
        self.embedding = nn.Embedding(vocabulary_size, e, padding_idx=PAD)
        self.project = nn.Linear(feature_size, e)  # P
        self.cells = nn.Linear(feature_size, e)  # W_a
        self.keys = nn.Linear(e, d)  # W_k
        self.query = nn.Linear(h, d, bias=False)  # W_q
        self.score = nn.Linear(d, 1, bias=False)  # w
        # Of the (first) LSTM, from x_t and from the rest; the adaptive one's fifth part is the sentinel's gate.
        gates = (5 if self.kind == "adaptive" else 4) * h
        self.input = nn.Linear(e, gates)
        self.recurrent = nn.Linear({"soft": e + h, "adaptive": h, "updown": 2 * h}[self.kind], gates, bias=False)
        if self.kind == "soft":
            self.gate = nn.Linear(h, e)  # W_β
        if self.kind == "adaptive":
            self.sentinel = nn.Linear(h, e)
        if self.kind == "updown":
            self.language = nn.Linear(e + 2 * h, 4 * h)  # the second LSTM
            remember(self.language.bias, h)
        else:
            self.seen = nn.Linear(e, h)  # W_z
        remember(self.input.bias, h)
        self.output = nn.Linear(h, vocabulary_size)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.dropout)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
            nn.init.normal_(self.embedding.weight, std=e**-0.5)

    def look(self, features: Tensor) -> State:
        """(I, P, F) → P v (I, E), the keys (I, P, D) and the projected cells (I, P, E): once an image."""
        cells = features.float()
        if self.training and self.cell_dropout:
            keep = max(1, round((1 - self.cell_dropout) * cells.shape[1]))
            kept = torch.rand(cells.shape[:2], device=cells.device).argsort(dim=1)[:, :keep]
            cells = cells.gather(1, kept.unsqueeze(2).expand(-1, -1, cells.shape[2]))
        mean = cells.mean(dim=1, keepdim=True)
        cells = cells * (FEATURE_NORM / mean.norm(dim=2, keepdim=True).clamp_min(1e-12))
        seen = self.feature_dropout(self.cells(cells).relu())  # (I, P, E)
        mean = self.feature_dropout(cells.mean(dim=1))
        return self.project(mean), self.keys(seen).float(), seen

    def attend(self, h: Tensor, keys: Tensor, cells: Tensor, sentinel: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Look at the cells, and at a `sentinel` of each row.

        Args:
            h: (A · R, H) states.
            keys, cells: (A, P, D) and (A, P, E), of images with R rows each.
            sentinel: (A · R, E), or None.

        Returns:
            (A · R, E) what is seen, and (A · R, P or, with the sentinel last, P + 1) the weights.
        """
        query = self.query(h).unflatten(0, (keys.shape[0], -1)).unsqueeze(2)  # (A, R, 1, D)
        scores = self.score(torch.tanh(keys.unsqueeze(1) + query)).squeeze(3).float()  # (A, R, P)
        if sentinel is not None:
            own = sentinel.unflatten(0, (keys.shape[0], -1)).unsqueeze(2)  # (A, R, 1, E)
            scores = torch.cat([scores, self.score(torch.tanh(self.keys(own) + query)).squeeze(3).float()], dim=2)
        weights = scores.softmax(dim=2)
        seen = (weights[..., : cells.shape[1]].to(cells.dtype) @ cells).flatten(0, 1)
        weights = weights.flatten(0, 1)
        return (seen if sentinel is None else seen + weights[:, -1:] * sentinel), weights

    def advance(self, gates: Tensor, state: State, keys: Tensor, cells: Tensor) -> tuple[Tensor, State, Tensor]:
        """One step of the recurrence.

        Args:
            gates: (A · R, 4H or 5H) what x_t gives to the gates of the first LSTM.
            state: h and c (A · R, H), of both LSTMs of updown.
            keys, cells: (A, P, D) and (A, P, E), of images with R rows each.

        Returns:
            (A · R, H) what the words come from, the state after it, and the weights (A · R, P or, with the sentinel
            last, P + 1).
        """
        if self.kind == "soft":
            h, c = state
            seen, weights = self.attend(h, keys, cells)
            seen = self.gate(h).sigmoid() * seen
            h, c = lstm(gates + self.recurrent(torch.cat([seen, h], dim=1)), c)
            return h + self.seen(seen), (h, c), weights
        if self.kind == "adaptive":
            h, c = state
            gates, gate = (gates + self.recurrent(h)).split([4 * self.hidden_size, self.hidden_size], dim=1)
            h, c = lstm(gates, c)
            sentinel = self.sentinel(gate.sigmoid() * c.tanh()).relu()  # (A · R, E)
            seen, weights = self.attend(h, keys, cells, sentinel)
            return h + self.seen(seen), (h, c), weights
        first, c1, second, c2 = state
        first, c1 = lstm(gates + self.recurrent(torch.cat([first, second], dim=1)), c1)
        seen, weights = self.attend(first, keys, cells)
        second, c2 = lstm(self.language(torch.cat([seen, first, second], dim=1)), c2)
        return second, (first, c1, second, c2), weights

    def forward(self, features: Tensor, words: Tensor, image_of: Tensor, real: Tensor) -> Tensor:
        """Teacher forcing: the logits of the word after each of `words`, where `real`.

        Args:
            features: (I, P, F).
            words: (N, T) ids, START first.
            image_of: (N,) the row of `features` each caption belongs to; captions of an image share what `look`
                gives.
            real: (N, T) bool, R of them true; logits of padding are never computed, nor steps after the last real one.

        Returns:
            (R, V) logits, in the order of ``words[real]``.
        """
        hidden, _, place = self.run(features, words, image_of, real)
        return self.output(self.dropout(hidden[place[real]]))

    def maps(self, features: Tensor, words: Tensor) -> Tensor:
        """Where each word is looked for: features (I, P, F), captions (I, T) with START and PAD → (I, T, P or P + 1).

        Row t has the weights with which the word after ``words[:, t]`` is found, those of updown and adaptive at this
        very step; they add up to 1, with the sentinel (adaptive) as the last. 0 at padding.
        """
        real = words != PAD
        _, weights, place = self.run(features, words, torch.arange(len(words), device=words.device), real)
        return weights[place] * real.unsqueeze(2)

    def run(self, features: Tensor, words: Tensor, image_of: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the words come from (S, H), the weights (S, P or P + 1), and the row of each word (N, T)."""
        image, *looked = self.look(features)
        # The longest captions first, so that those still going on are the first rows of everything.
        longest = real.shape[1]
        lengths = (real * torch.arange(1, longest + 1, device=real.device)).amax(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        going = torch.arange(longest, device=real.device).unsqueeze(1) < lengths[order]  # (T, N), S of them true
        place = torch.zeros_like(words)
        place[order] = (going.flatten().cumsum(0).view(going.shape) - 1).clamp_min_(0).t()
        x = self.embedding(words[order].t()[going]) + image[image_of[order].expand_as(going)[going]]  # (S, E)
        numbers = going.sum(dim=1).tolist()
        keys, cells = (part[image_of[order]] for part in looked)  # (N, P, D), (N, P, E)
        state = self.zeros(len(words), x.device)
        found = []
        for gates in self.input(self.input_dropout(x)).split(numbers):
            n = len(gates)
            if n == 0:
                break
            if n < len(keys):
                keys, cells, state = keys[:n], cells[:n], tuple(part[:n] for part in state)
            hidden, state, weights = self.advance(gates, state, keys, cells)
            found.append((hidden, weights))
        hidden, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
        return hidden, weights, place

    def zeros(self, rows: int, device: torch.device) -> State:
        """h_0 = c_0 = 0."""
        return (torch.zeros(rows, self.hidden_size, device=device),) * (4 if self.kind == "updown" else 2)

    def start(self, features: Tensor) -> tuple[State, State]:
        """(I, P, F) → the state before the first word, 0, and the context.

        Returns:
            state: (I, H), h and c, of both LSTMs of updown.
            context: what P v gives to the gates (I, 4H or 5H), the keys (I, P, D) and the projected cells
                (I, P, E).
        """
        image, keys, cells = self.look(features)
        return self.zeros(features.shape[0], features.device), (self.input(image), keys, cells)

    def step(self, words: Tensor, state: State, context: State) -> tuple[Tensor, State]:
        """One word further.

        Args:
            words: (A · R,) the last words, those of an image side by side.
            state: as from `start`, A · R rows.
            context: as from `start`, A rows.

        Returns:
            (A · R, V) log-probabilities of the next word, and the state after `words`.
        """
        image, keys, cells = context
        gates = nn.functional.linear(self.embedding(words), self.input.weight)
        gates = (gates.unflatten(0, (image.shape[0], -1)) + image.unsqueeze(1)).flatten(0, 1)
        hidden, state, _ = self.advance(gates, state, keys, cells)
        return torch.log_softmax(self.output(hidden).float(), dim=-1), state
