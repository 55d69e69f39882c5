"""Batched search against a beam for one image at a time, and against its own bare matrix products.

Ours is Captioner.search of 1,000 images from the features to the strings, 500 rows at a time: beam 5 of 100 images,
alone and with rules, and sampling of 500. One at a time is the search of most tutorials: for each image a loop over
the words with its live beams as the batch. The floor does, for the same rows at every step, only the embedding, the
LSTM, the output layer, log-softmax and top-k (the 10 best for the beam, the best for sampling): no bookkeeping, no
reordering.

An untrained model rarely generates END, so one unit of the LSTM counts the words, and END's logit depends on it.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from ratios import median, rounds_argument, take_turns, verdict
from torch import Tensor

from captioner.config import ModelConfig, SearchConfig
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.models.captioner import Captioner

VOCABULARY, IMAGES, ROWS = 9_487, 1_000, 500
SEARCH = SearchConfig(beam=5, max_length=20, length_penalty=0.0)  # the usual search has no length penalty
SAMPLE = SearchConfig(sample=True)
# name: how to search, and the least speed as a share of the floor's
SEARCHES = {
    "beam 5": (SEARCH, 0.7),
    "beam 5, rules": (replace(SEARCH, no_repeat_ngram=3, no_repeat_word=True, no_bad_ending=True, min_length=4), 0.7),
    "sampling": (SAMPLE, 0.8),
    "sampling, top-k 40": (replace(SAMPLE, top_k=40), 0.8),
    "sampling, top-p 0.9": (replace(SAMPLE, top_p=0.9), 0.8),
}
FEW = 20  # images in a turn of the one-by-one search, so that turns are short
FASTER = 10.0


def counting_model() -> Captioner:
    """A random model whose captions have a realistic length, about 10 ± 2."""
    torch.manual_seed(0)
    words = Vocabulary([f"w{i}" for i in range(VOCABULARY - 4)])
    model = Captioner(ModelConfig(embedding_size=512, hidden_size=512), words, None, "").eval()
    decoder = model.decoder
    with torch.no_grad():
        decoder.output.weight.normal_()  # the best words well above the others
        for matrix in (decoder.rnn.layers[0].weight_ih_l0, decoder.rnn.layers[0].weight_hh_l0):
            matrix[::512] = 0  # unit 0: all gates constant
        decoder.rnn.layers[0].bias_hh_l0[::512] = 0
        decoder.rnn.layers[0].bias_ih_l0[::512] = torch.tensor([20.0, 20.0, math.atanh(0.05), 20.0])  # c_t = t / 20
        decoder.output.weight[:, 0] = 0
        decoder.output.weight[END, 0] = 40.0
        decoder.output.bias[END] = -6.0
    return model


def tutorial_beam(model: Captioner, feature: Tensor) -> list[int]:
    """The best caption of one image (1, F)."""
    step, width = model.decoder.step, SEARCH.beam
    state, context = model.decoder.start(feature)
    words, live, history = torch.tensor([START]), torch.zeros(1), torch.empty((1, 0), dtype=torch.long)
    finished: list[tuple[float, list[int]]] = []
    for _ in range(SEARCH.max_length + 1):
        log_probs, state = step(words, state, (context[0].expand(len(words), -1),))
        log_probs[:, [PAD, START, UNK]] = -math.inf
        total = live.unsqueeze(1) + log_probs
        live, best = total.flatten().topk(width)
        parents, words = best // VOCABULARY, best % VOCABULARY
        history = torch.cat([history[parents], words.unsqueeze(1)], dim=1)
        for k in (words == END).nonzero()[:, 0].tolist():
            finished.append((live[k].item(), history[k, :-1].tolist()))
        going = words != END
        width = int(going.sum())
        if width == 0:
            break
        live, words, history = live[going], words[going], history[going]
        state = tuple(part[parents[going]] for part in state)
    return max(finished)[1] if finished else history[int(live.argmax())].tolist()


class Floor:
    """The matrix products of a search, with the same inputs at each step: the time of top-k depends on them."""

    def __init__(self, model: Captioner, features: Tensor, config: SearchConfig) -> None:
        self.decoder, self.best = model.decoder, 1 if config.sample else 2 * config.beam
        self.inputs: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []
        with patch.object(model.decoder, "step", self.watch):
            self.captions = [found[0].text for found in model.search(features, config)]

    def watch(self, words: Tensor, state: tuple[Tensor, ...], context: tuple[Tensor, ...]) -> Any:
        """In place of Decoder.step: record its inputs."""
        before = tuple(part.transpose(0, 1).clone(memory_format=torch.contiguous_format) for part in state)
        image = context[0].repeat_interleave(len(words) // len(context[0]), dim=0)  # a row for each beam
        self.inputs.append((words, before, image))
        return type(self.decoder).step(self.decoder, words, state, context)

    def run(self) -> None:
        """All steps."""
        for words, before, image in self.inputs:
            x = self.decoder.embedding(words) + image
            hidden, _ = self.decoder.rnn.layers[0](x.unsqueeze(1), before)
            self.decoder.output(hidden[:, 0]).log_softmax(dim=1).topk(self.best, dim=1)


def main() -> bool:
    """Print the ratios; whether they are within their limits."""
    parser = rounds_argument(__doc__, 5)
    parser.add_argument("--count", type=int, default=IMAGES)
    options = parser.parse_args()
    model = counting_model()
    held = []
    with torch.inference_mode():
        features = torch.rand(options.count, model.decoder.project.in_features)
        for name, (config, limit) in SEARCHES.items():
            batches = features.split(ROWS if config.sample else ROWS // config.beam)
            floors = [Floor(model, batch, config) for batch in batches]
            words = [float(len(caption.split())) for floor in floors for caption in floor.captions]
            print(f"{name}: {statistics.mean(words):.1f} ± {statistics.stdev(words):.1f} words")
            sides = {
                "ours": lambda config=config, batches=batches: [model.search(batch, config) for batch in batches],
                "floor": lambda floors=floors: [floor.run() for floor in floors],
            }
            times = take_turns(sides, options.rounds)
            held.append(verdict(f"{name}, floor / ours, time", times["floor"], times["ours"], ">=", limit))

        # Small products gain nothing from a second thread on a busy machine: the faster of both for each side.
        batch = features[: ROWS // SEARCH.beam]
        few = batch[:FEW].split(1)
        most = torch.get_num_threads()

        def alone_with(threads: int) -> None:
            torch.set_num_threads(threads)
            for feature in few:
                tutorial_beam(model, feature)
            torch.set_num_threads(most)

        alone = [model.vocabulary.decode(tutorial_beam(model, feature)) for feature in few]
        together = [found[0].text for found in model.search(batch, SEARCH)[: len(few)]]
        same = sum(a == b for a, b in zip(alone, together, strict=True))
        print(f"{same} of {len(few)} captions are the same one at a time")
        times = take_turns(
            {
                "ours": lambda: model.search(batch, SEARCH),
                "one by one, 1 thread": lambda: alone_with(1),
                "one by one": lambda: alone_with(most),
            },
            options.rounds,
        )
    for name in ("one by one, 1 thread", "one by one"):
        times[name] = [value * len(batch) / len(few) for value in times[name]]
    one = min((times["one by one, 1 thread"], times["one by one"]), key=median)
    held.append(verdict("one by one / ours, time", one, times["ours"], ">=", FASTER))
    return all(held)


if __name__ == "__main__":
    sys.exit(not main())
