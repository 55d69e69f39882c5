"""Counts what makes the host wait for the device, on any device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Names of the operations whose result the host needs before it can go on.

    By torch's own tags: the size of the result depends on values (nonzero, masked_select, unique), or a value is read
    back (item, tolist, bool). An index is such an operation only if it is a mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if waits:
            self.names.append(name)
        return func(*args, **(kwargs or {}))
