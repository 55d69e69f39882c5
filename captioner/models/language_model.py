"""The decoder without images: a language model, whose weights a captioner can begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.data.vocabulary import END, PAD, SPECIAL, START, UNK, Vocabulary
from captioner.models.captioner import FORMAT
from captioner.models.decoder import Decoder, State

PARTS = ("decoder.embedding.", "decoder.rnn.", "decoder.output.")  # what reads and writes words


class LanguageModel(nn.Module):
    """A :class:`captioner.models.decoder.Decoder` that reads and writes words, the image off.

    Axes: N texts, T words, V vocabulary.

    Args:
        config: of which cell, layers, sizes of words and states, dropout rates and tie_embeddings are used.
        vocabulary: the words or characters.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.decoder = Decoder(config, len(vocabulary), feature_size=1)  # of no image: it is never asked

    def forward(self, words: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """(N, T) ids → (N, T, V) logits of the word after each, and the state; see :meth:`Decoder.language`."""
        return self.decoder.language(words, state)

    @torch.inference_mode()
    def generate(
        self, number: int, tokens: int, temperature: float = 1.0, seed: int = 0, prompt: str = ""
    ) -> list[str]:
        """Texts drawn word by word, until END or `tokens` words.

        Args:
            number: of texts.
            tokens: most words in each, the prompt included.
            temperature: what logits are divided by; 0 is the likeliest word each time.
            seed: of the drawing.
            prompt: what all begin with.
        """
        device = self.decoder.output.weight.device
        generator = torch.Generator().manual_seed(seed)
        begun = self.vocabulary.encode(self.vocabulary.split(prompt))
        said = [torch.full((number,), i) for i in begun]
        last, state = torch.tensor([[START, *begun]] * number, device=device), None
        while len(said) < tokens:
            logits, state = self(last, state)
            logits = logits[:, -1].float().cpu()
            logits[:, [PAD, START, UNK]] = -torch.inf
            if temperature:
                chances = torch.softmax(logits / temperature, dim=-1)
                last = torch.multinomial(chances, 1, generator=generator)
            else:
                last = logits.argmax(dim=-1, keepdim=True)
            said.append(last[:, 0])
            last = last.to(device)
        rows = torch.stack(said, dim=1).tolist()  # (N, T)
        return [self.vocabulary.decode(row[: row.index(END)] if END in row else row) for row in rows]

    def header(self) -> dict[str, Any]:
        """What a checkpoint holds beside the tensors, as plain values."""
        return {
            "format": FORMAT,
            "kind": "language_model",
            "model": asdict(self.config),
            "vocabulary": list(self.vocabulary.words[len(SPECIAL) :]),
            "level": self.vocabulary.level,
        }


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a slim checkpoint: those of the embedding, the recurrent layers and the output layer."""
    return {name: value for name, value in state.items() if name.startswith(PARTS)}
