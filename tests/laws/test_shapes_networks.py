"""The laws of axes, sizes and dtypes, on our own networks: for each assertion a library that breaks just it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from functional_marl.laws import LAWS, LawViolation
from functional_marl.laws._zoo_subject import zoo_subject


def found(law: str, subject: Any) -> str:
    """What a law says of a subject that breaks it."""
    with pytest.raises(LawViolation) as raised:
        LAWS[law](subject)
    return raised.value.found


def with_ops(subject: Any, operation: str, act: Callable[..., Any]) -> Any:
    """The subject in a library where ``act(result, args, kwargs)`` changes what an operation returns."""
    library: Any = getattr(subject.ops, operation)
    changed = {operation: lambda *args, **kwargs: act(library(*args, **kwargs), args, kwargs)}
    return replace(subject, ops=replace(subject.ops, **changed))


def network(name: str = "mlp", n_agents: int = 2, **how: Any) -> Any:
    return zoo_subject(name, n_agents=n_agents, **how)


def test_the_only_agent_is_the_network() -> None:
    LAWS["one_agent_is_the_network"](network(n_agents=1))
    said = found("one_agent_is_the_network", with_ops(network(n_agents=1), "apply", lambda y, a, k: y + 1))
    assert said.startswith("the only agent: output: expected ")


def test_places_of_agents_are_named() -> None:
    LAWS["agent_dim_is_a_place"](network(batch=(2,)))

    def wrong(y: Any, args: Any, kwargs: Any) -> Any:
        return y + (args[0].out_agent_dim == -1)

    said = found("agent_dim_is_a_place", with_ops(network(batch=(2,)), "apply", wrong))
    assert said.startswith("agent_dim=(0,), out_agent_dim=-1, agent 0: output: expected ")


@pytest.mark.parametrize("given", [1, -2])
def test_lone_places_of_agents_are_tried(given: int) -> None:
    def wrong(y: Any, args: Any, kwargs: Any) -> Any:
        net = args[0]
        return y + (net.agent_dim == given and net.out_agent_dim == 1)

    said = found("agent_dim_is_a_place", with_ops(network(batch=(2,)), "apply", wrong))
    assert said.startswith(f"agent_dim={given}, out_agent_dim=1, agent 0: output: expected ")


def test_outputs_without_a_place_are_tried() -> None:
    def wrong(y: Any, args: Any, kwargs: Any) -> Any:
        net = args[0]
        return y + (net.agent_dim == 0 and net.out_agent_dim is None)

    said = found("agent_dim_is_a_place", with_ops(network(batch=(2,), agent_dims=1), "apply", wrong))
    assert said.startswith("agent_dim=0, out_agent_dim=None, agent 0: output: expected ")


def test_rows_without_axes_are_named() -> None:
    def wrong(y: Any, args: Any, kwargs: Any) -> Any:
        return y + (y.ndim == 2)

    said = found("batch_is_a_loop", with_ops(network(batch=(2, 3)), "apply", wrong))
    assert said.startswith("row [0, 0] of the batch [2, 3], without batch axes, agent 0: output: expected ")


def test_fresh_leaves_of_another_dtype() -> None:
    LAWS["fresh_leaves_keep_kinds"](network())

    def wrong(params: Any, args: Any, kwargs: Any) -> Any:
        return {**params, "0.bias": params["0.bias"].half()}

    said = found("fresh_leaves_keep_kinds", with_ops(network(), "init_params", wrong))
    assert said == ("torch.float32 on cpu: fresh 0.bias: expected torch.float32 on cpu, got torch.float16 on cpu")


def test_fresh_leaves_on_another_device() -> None:
    def wrong(params: Any, args: Any, kwargs: Any) -> Any:
        return {name: torch.zeros(leaf.shape, dtype=leaf.dtype) for name, leaf in params.items()}

    said = found("fresh_leaves_keep_kinds", with_ops(network(), "init_params", wrong))
    assert said.startswith("torch.float32 on meta: fresh ")
    assert said.endswith("expected torch.float32 on meta, got torch.float32 on cpu")


def test_leaves_that_are_shared_anew_in_another_dtype() -> None:
    def wrong(result: Any, args: Any, kwargs: Any) -> Any:
        net, params, *more = result
        return net, {name: leaf.double() for name, leaf in params.items()}, *more

    said = found("fresh_leaves_keep_kinds", with_ops(network(), "reshare", wrong))
    assert said.startswith("torch.float32 on cpu: reshare: ")
    assert said.endswith("expected torch.float32 on cpu, got torch.float64 on cpu")


def test_buffers_that_training_leaves_in_another_dtype() -> None:
    def wrong(result: Any, args: Any, kwargs: Any) -> Any:
        if not kwargs.get("mutable"):
            return result
        outputs, state = result
        return outputs, {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in state.items()}

    said = found("fresh_leaves_keep_kinds", with_ops(network("normaliser"), "apply", wrong))
    assert said.startswith("torch.float32 on cpu: ")
    assert said.endswith(" after training: expected torch.float32 on cpu, got torch.float64 on cpu")


def test_inputs_that_all_agents_see_lose_their_batch_axes() -> None:
    LAWS["batch_is_a_loop"](network("trees", batch=(2,), agent_dims=(0, None, None)))
