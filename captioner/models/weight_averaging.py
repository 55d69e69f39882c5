"""Averages of the weights of several checkpoints ("model soups", Wortsman et al. 2022): one model, as fast as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from captioner.config import ModelConfig
from captioner.errors import UserError


def check(headers: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Only models of one architecture, one vocabulary and one encoder can be averaged; their dropout may differ.

    Raises:
        UserError: what differs, in one line.
    """
    first = headers[0]
    for header, name in zip(headers[1:], names[1:], strict=True):
        mine, its = (asdict(ModelConfig(**each["model"])) for each in (first, header))  # older ones lack newer options
        differ = [
            f"model.{option} is {value} and {its[option]}"
            for option, value in mine.items()
            if value != its[option] and "dropout" not in option
        ]
        digests = [each.get("encoder_digest") for each in (first, header)]  # a language model has none
        if digests[0] != digests[1]:
            differ.append(f"the encoder's weights are {digests[0]} and {digests[1]}")
        if first["vocabulary"] != header["vocabulary"]:
            differ.append(f"the vocabularies differ ({len(first['vocabulary']):,} and {len(header['vocabulary']):,})")
        if differ:
            raise UserError(f"{names[0]} and {name} cannot be averaged: {'; '.join(differ)}")


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor, in fp32, whatever the order of the members; others are the first's.

    Raises:
        UserError: the members have not the same tensors.
    """
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


def greedy(members: int, score: Callable[[list[int]], float]) -> tuple[list[int], float]:
    """Wortsman et al. 2022, recipe 1: from the best to the worst, a member stays in unless the soup's score falls.

    Args:
        members: how many there are.
        score: of the average of these members, higher is better.

    Returns:
        The members that stay, and the score of their average.
    """
    alone = [score([member]) for member in range(members)]
    best, *rest = sorted(range(members), key=lambda member: -alone[member])
    kept, reached = [best], alone[best]
    for member in rest:
        new = score([*kept, member])
        if new >= reached:
            kept, reached = [*kept, member], new
    return kept, reached
