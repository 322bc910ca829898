"""From slots to agents: which row each agent gets, and index tensors that are kept for later calls."""

import pytest
import torch
from torch import Tensor

import functional_marl as fm
from functional_marl._gather_slots import gather_slots, index_tensor
from tests.builders import numbers


@pytest.mark.parametrize("slots", [[0, 0, 0], [0, 1, 2], [1, 0, 1], [2, 0, 2]], ids=str)
def test_each_agent_gets_the_row_of_its_slot(slots: list[int]) -> None:
    sharing = fm.Sharing(slots, max(slots) + 1)
    leaf = numbers(sharing.n_slots, 4, 2)
    gathered = gather_slots(leaf, sharing)
    assert gathered.equal(torch.stack([leaf[slot] for slot in slots]))
    assert (gathered.data_ptr() == leaf.data_ptr()) == (slots in ([0, 0, 0], [0, 1, 2]))  # a view where none is moved


def test_an_index_is_kept() -> None:
    slots, cpu = (1, 0, 1, 0, 1), torch.device("cpu")
    assert index_tensor(slots, cpu).tolist() == list(slots)
    assert index_tensor(slots, cpu) is index_tensor(slots, cpu)


@pytest.mark.parametrize("mode", ["inference", "grad"])
def test_a_kept_index_belongs_to_no_mode(mode: str) -> None:
    slots = (0, 2, 5, 1) if mode == "grad" else (1, 5, 2, 0)  # no other test uses these
    if mode == "grad":
        torch.func.grad(lambda x: (index_tensor(slots, x.device), x.sum())[1])(numbers(2))
    else:
        with torch.inference_mode():
            index_tensor(slots, torch.device("cpu"))
    kept = index_tensor(slots, torch.device("cpu"))
    assert type(kept) is Tensor
    assert not kept.is_inference()
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)  # pyright: ignore
