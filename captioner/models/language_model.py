"""The decoder without images: a language model, whose weights can initialise a captioner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.decoding.search import State
from captioner.models.checkpoint import make_header
from captioner.models.decoder import Decoder

PREFIXES = ("decoder.embedding.", "decoder.rnn.", "decoder.output.")  # of the tensors that a language model uses


class LanguageModel(nn.Module):
    """A :class:`captioner.models.decoder.Decoder` without an image: x_t = e_t. Axes as there, with N texts."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.decoder = Decoder(config, len(vocabulary), feature_size=1)  # its image projection is never used

    def forward(self, words: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """(N, T) ids and the state before them (None: h_0 = 0) → (N, T, V) logits of the next words, and the state."""
        decoder = self.decoder
        x = decoder.input_dropout(decoder.embedding(words))  # (N, T, E)
        hidden, state = decoder.rnn(x, state or decoder.rnn.zero_state(len(words), x))  # (N, T, H)
        return decoder.output(decoder.dropout(hidden)), state

    @torch.inference_mode()
    def generate(
        self, number: int, tokens: int, temperature: float = 1.0, seed: int = 0, prompt: str = ""
    ) -> list[str]:
        """Sample a number of texts word by word, until END or `tokens` words, of which `prompt` is the beginning.

        The logits are divided by `temperature`; with 0 the most probable word is taken.
        """
        device = self.decoder.output.weight.device
        generator = torch.Generator().manual_seed(seed)
        ids = self.vocabulary.encode(self.vocabulary.split(prompt))
        words = [torch.full((number,), i) for i in ids]
        last, state = torch.tensor([[START, *ids]] * number, device=device), None  # (N, 1 + prompt)
        while len(words) < tokens:
            logits, state = self(last, state)
            logits = logits[:, -1].float().cpu()  # (N, V)
            logits[:, [PAD, START, UNK]] = -torch.inf
            if temperature:
                probabilities = torch.softmax(logits / temperature, dim=-1)
                last = torch.multinomial(probabilities, 1, generator=generator)  # (N, 1)
            else:
                last = logits.argmax(dim=-1, keepdim=True)
            words.append(last[:, 0])
            last = last.to(device)
        rows = torch.stack(words, dim=1).tolist()  # (N, T)
        return [self.vocabulary.decode(row[: row.index(END)] if END in row else row) for row in rows]

    def header(self) -> dict[str, Any]:
        return make_header(self.config, self.vocabulary, kind="language_model")


def language_model_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a slim checkpoint: embedding, recurrent layers and output layer."""
    return {name: value for name, value in weights.items() if name.startswith(PREFIXES)}
