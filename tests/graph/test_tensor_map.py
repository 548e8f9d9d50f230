from __future__ import annotations

import torch

from lightning_slimga.graph.tensor_map import TensorMap


def test_equal_tensors_are_different_keys() -> None:
    a, b = torch.ones(2), torch.ones(2)
    values: TensorMap[str] = TensorMap()
    values[a] = "a"
    assert values.get(a) == "a"
    assert values.get(b) is None


def test_what_is_popped_is_gone() -> None:
    a = torch.ones(2)
    values: TensorMap[str] = TensorMap()
    assert values.pop(a) is None
    values[a] = "a"
    assert values.pop(a) == "a"
    assert values.get(a) is None


def test_a_tensor_that_is_gone_leaves_nothing_to_the_next_one() -> None:
    values: TensorMap[int] = TensorMap()
    for number in range(100):  # the same addresses are used again and again
        tensor = torch.ones(2)
        assert values.get(tensor) is None
        values[tensor] = number
        del tensor
