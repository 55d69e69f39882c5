"""Averages of the weights of several checkpoints ("model soups", Wortsman et al. 2022): one model, as fast as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from captioner.errors import UserError
from captioner.models.checkpoint import parse_header


def check_compatible(headers: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Raise UserError unless checkpoints have the same architecture (but for dropout), vocabulary and encoder."""
    first, *others = (asdict(parse_header(name, header)[0]) for name, header in zip(names, headers, strict=True))
    for header, name, config in zip(headers[1:], names[1:], others, strict=True):
        differences = [
            f"model.{option} is {value} and {config[option]}"
            for option, value in first.items()
            if value != config[option] and "dropout" not in option
        ]
        digests = [each.get("encoder_digest") for each in (headers[0], header)]  # None for a language model
        if digests[0] != digests[1]:
            differences.append(f"the encoder's weights are {digests[0]} and {digests[1]}")
        levels = [each.get("level") or "word" for each in (headers[0], header)]  # older checkpoints have none
        if levels[0] != levels[1]:
            differences.append(f"data.level is {levels[0]} and {levels[1]}")
        elif headers[0]["vocabulary"] != header["vocabulary"]:
            differences.append("the vocabularies differ")
        if differences:
            raise UserError(f"{names[0]} and {name} cannot be averaged: {'; '.join(differences)}")


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor, in fp32 and independent of the order; other tensors are the first's."""
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        raise UserError("the checkpoints cannot be averaged: they do not have the same tensors")
    mean = {}
    for name, value in states[0].items():
        if value.is_floating_point():
            # Sorted, so that the rounding of the sum does not depend on the order.
            value = torch.stack([state[name].double() for state in states]).sort(dim=0).values.mean(dim=0).float()
        mean[name] = value
    return mean


def greedy_selection(members: int, score: Callable[[list[int]], float]) -> tuple[list[int], float]:
    """Choose what to average: from the best member to the worst, each is added unless the score of the average falls.

    Wortsman et al. 2022, recipe 1, the greedy soup. `score` is that of the average of given members; higher is better.
    Returns the chosen members and the score of their average.
    """
    alone = [score([member]) for member in range(members)]
    best, *rest = sorted(range(members), key=lambda member: -alone[member])
    chosen, reached = [best], alone[best]
    for member in rest:
        new = score([*chosen, member])
        if new >= reached:
            chosen, reached = [*chosen, member], new
    return chosen, reached
