"""The table of a network: every leaf, which agents share it, how many numbers it has, and the strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import functional_marl as fm
from tests.builders import SHARINGS, N, mlp, numbers


@pytest.mark.parametrize("sharing", SHARINGS.values(), ids=SHARINGS)
def test_every_leaf_has_a_row_with_its_shape_and_slots(sharing: Any) -> None:
    net = fm.network(mlp, N, sharing=sharing)
    params = fm.init_params(net, 0)
    rows = [line.split() for line in fm.tabulate(net).splitlines()[1:-1]]
    assert [row[0] for row in rows] == list(params)
    for row, (name, leaf) in zip(rows, params.items(), strict=True):
        text = " ".join(row[1:])
        slots = net.sharing[name]
        word = {fm.Sharing.shared(N): "shared", fm.Sharing.independent(N): "independent"}
        assert text == f"{list(leaf.shape)} {word.get(slots, ' '.join(map(str, slots)))} {leaf.numel()}"
    total = sum(leaf.numel() for leaf in params.values())
    assert f"3 agents, {total} numbers; strategy auto: " in fm.tabulate(net)


def test_columns_are_aligned() -> None:
    heading, *rows, _ = fm.tabulate(fm.network(mlp, 12, sharing=[0, 1] * 6)).splitlines()
    assert heading.split() == ["leaf", "shape", "agents", "->", "slots", "numbers"]
    assert {len(row) for row in rows} == {len(heading)}
    assert all(row.index("[") == heading.index("shape") for row in rows)
    assert all(row.index("0 1 0 1") == heading.index("agents") for row in rows)


def test_buffers_are_marked_and_not_counted() -> None:
    table = fm.tabulate(fm.network(lambda: nn.BatchNorm1d(4), N, sharing={"running_*": "shared", "*": [0, 0, 1]}))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[1:6] == [
        "weight [2, 4] 0 0 1 8",
        "bias [2, 4] 0 0 1 8",
        "running_mean (buffer) [1, 4] shared 4",
        "running_var (buffer) [1, 4] shared 4",
        "num_batches_tracked (buffer) [2] 0 0 1 2",
    ]
    assert lines[6].startswith("3 agents, 16 numbers; ")


def test_a_network_without_leaves_has_a_table_too() -> None:
    lines = fm.tabulate(fm.network(nn.Softsign, N)).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("3 agents, 0 numbers; strategy auto: ")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if bool(x.sum() > 0) else -self.linear(x)


def test_the_last_line_shows_the_strategy_and_the_reason() -> None:
    last = lambda net: fm.tabulate(net).splitlines()[-1]
    assert "strategy auto: plan in evaluation, plan in training" in last(fm.network(mlp, N))
    for strategy in ("loop", "vmap"):
        net = fm.network(mlp, N, strategy=strategy)  # pyright: ignore[reportArgumentType]
        assert last(net).endswith(f"strategy {strategy}: {strategy} in evaluation, {strategy} in training")
    assert "loop (torch.func.vmap has no batching rule for GRU) in evaluation" in last(
        fm.network(lambda: nn.GRU(4, 2), N)
    )
    net = fm.network(Branches, N)
    assert "vmap (no plan: the module (Branches): no rule for Branches) in evaluation, vmap" in last(net)
    fm.apply(net, fm.init_params(net, 0), numbers(5, N, 4))
    assert "loop (vmap raised RuntimeError: vmap: " in last(net)
    assert "in evaluation, vmap (no plan: " in last(net)  # training has not been tried


def test_the_table_is_plain_text_without_trailing_spaces() -> None:
    net = fm.network(mlp, N)
    assert fm.tabulate(net) == fm.tabulate(net)
    assert fm.tabulate(net.replace(sharing="shared")) != fm.tabulate(net)
    assert all(line == line.rstrip() for line in fm.tabulate(net).splitlines())


def test_the_table_shows_why_a_chosen_strategy_cannot_be_used() -> None:
    last = lambda net: fm.tabulate(net).splitlines()[-1]
    planned = fm.network(lambda: nn.LSTM(4, 2), N, strategy="plan")
    assert "strategy plan: none (plan is not possible: " in last(planned)
    assert "none (vmap is not possible: torch.func.vmap has no batching rule for LSTM)" in last(
        planned.replace(strategy="vmap")
    )


@pytest.mark.parametrize("kind", ["forward", "full_backward"])
def test_hooks_for_all_modules_are_in_the_table_while_they_are_registered(kind: str) -> None:
    last = lambda net: fm.tabulate(net).splitlines()[-1]
    planned, mapped = fm.network(mlp, N), fm.network(Branches, N)
    before = last(planned), last(mapped)
    register = getattr(nn.modules.module, f"register_module_{kind}_hook")
    handle = register(lambda module, *_: None)
    try:
        if kind == "forward":
            assert "auto: vmap (no plan: hooks for all modules are registered " in last(planned)
            assert last(mapped) == before[1]
        else:
            assert "auto: loop (torch.func.vmap leaves out global backward hooks) in evaluation, loop" in last(mapped)
            chosen = mapped.replace(strategy="vmap")
            assert "none (vmap is not possible: torch.func.vmap leaves out global backward hooks)" in last(chosen)
        assert "none (plan is not possible: hooks for all modules " in last(planned.replace(strategy="plan"))
    finally:
        handle.remove()
    assert (last(planned), last(mapped)) == before
