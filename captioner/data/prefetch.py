"""Batches read ahead of the training, in a thread, and copied to the device beside its work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

DEPTH = 2  # batches


def read_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """The same batches, on a CUDA `device` or left where they are; the next DEPTH are read while one is used.

    CUDA copies them from pinned memory in a stream of their own. The stream of the caller waits for that copy, the
    caller does not.
    """
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def load() -> tuple[Any, Any]:
        batch = next(batches, None)
        if copies is None:
            return batch, None
        with torch.cuda.stream(copies):
            sent = tree_map(lambda x: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x, batch)
            return sent, copies.record_event()

    with ThreadPoolExecutor(1, "read_ahead") as thread:
        pending = deque(thread.submit(load) for _ in range(DEPTH))
        try:
            while (loaded := pending.popleft().result())[0] is not None:
                pending.append(thread.submit(load))
                batch, copied = loaded
                if copied is not None:
                    uses = torch.cuda.current_stream(device)
                    uses.wait_event(copied)
                    for tensor in filter(torch.is_tensor, tree_leaves(batch)):
                        tensor.record_stream(uses)  # its memory is not used again before that stream is done with it
                yield batch
        finally:
            thread.shutdown(cancel_futures=True)
