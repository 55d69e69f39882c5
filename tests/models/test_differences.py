"""Fine-tuned weights as int8 differences from the pretrained ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captioner.models.differences import FINEST, from_differences, to_differences


def in_fp16(state):
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


@given(st.integers(0, 2**31), st.floats(-20, 3))
def test_differences_are_as_exact_as_a_scale_says_and_do_not_change_when_written_again(seed, exponent):
    drawn = torch.Generator().manual_seed(seed)
    start = {"w": torch.randn(5, 3, 2, generator=drawn).half(), "b": torch.randn(5, generator=drawn)}
    change = torch.randn(5, 3, 2, generator=drawn) * 2**exponent
    change[0] = 0
    tuned = {"w": start["w"].float() + change, "b": start["b"] + 1}
    stored = in_fp16(to_differences(tuned, start))
    found = from_differences(stored, start)
    assert found["b"].equal(tuned["b"].half())
    assert found["w"][0].equal(start["w"][0].float())
    largest = change.flatten(1).abs().amax(dim=1).view(5, 1, 1)
    assert ((found["w"] - tuned["w"]).abs() <= (largest / 127).clamp_min(2.0 ** (FINEST - 1)) + 1e-6).all()
    again = to_differences(found, start)
    assert all(in_fp16(again)[name].equal(value) for name, value in stored.items())


@pytest.mark.parametrize(
    "wrong",
    [
        {"w": torch.zeros(2, 2), "v.scale": torch.ones(2)},
        {"w": torch.zeros(2, 2), "w.scale": torch.ones(3)},
        {"w": torch.zeros(3, 2), "w.scale": torch.ones(3)},
        {"w.scale": torch.ones(2)},
    ],
)
def test_differences_of_other_weights_are_refused(wrong):
    with pytest.raises(ValueError, match="does not fit"):
        from_differences(wrong, {"w": torch.zeros(2, 2)})
