"""Whether params or a state fit a network: all names and shapes are checked at once, before any computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from functional_marl._errors import StructureError
from functional_marl._network import Network
from functional_marl._pytrees import Params
from functional_marl._sharing import Sharing

__all__ = ["check_meta", "check_network", "check_params", "check_state", "mismatches", "slot_maps"]


def check_network(net: Any) -> None:
    """Raise StructureError unless ``net`` is a network."""
    if not isinstance(net, Network):
        raise StructureError(
            f"net: expected a network, got {type(net).__name__}; make one: fm.network(build, n_agents=3), "
            "where build returns one agent's module"
        )


def mismatches(given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], what: str) -> list[str]:
    """A line for every leaf that is missing, unknown, no tensor, or has another shape."""
    lines = [f"{what}[{k!r}]: missing, expected {list(expected[k])}" for k in expected if k not in given]
    lines += [
        f"{what}[{k!r}]: not a leaf of this network; its leaves are {list(expected)}"
        for k in given
        if k not in expected
    ]
    for name, shape in expected.items():
        value = given.get(name)
        if name in given and not isinstance(value, Tensor):
            lines.append(f"{what}[{name!r}]: expected a tensor {list(shape)}, got {type(value).__name__}")
        elif isinstance(value, Tensor) and tuple(value.shape) != shape:
            lines.append(f"{what}[{name!r}]: expected {list(shape)}, got {list(value.shape)}")
    return lines


def _check(given: Mapping[str, Any], net: Network, expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    if len(given) == len(expected):
        for name, shape in expected.items():
            value = given.get(name)
            if not isinstance(value, Tensor) or value.shape != shape:
                break
        else:
            return
    population = _population_axes(given, expected)
    if population:
        raise StructureError(
            f"{what}: every leaf has the axes {population} in front of [slots, *leaf], as for a population; map over "
            "it: torch.func.vmap(lambda p: fm.apply(net, p, x))(params), and likewise every function that takes params"
        )
    lines = mismatches(given, expected, what)
    lines.append(f"leaves are [slots, *shape of one agent's]; the network has {net.n_agents} agents; {_FIX[what]}")
    raise StructureError("\n".join(lines))


def _population_axes(given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> list[int]:
    """The axes that all leaves have in front of their expected shapes; empty if these differ or there are none."""
    if given.keys() != expected.keys() or not all(isinstance(leaf, Tensor) for leaf in given.values()):
        return []
    found = {tuple(given[name].shape[: given[name].ndim - len(shape)]) for name, shape in expected.items()}
    if len(found) != 1:
        return []
    axes = found.pop()
    fits = all(tuple(given[name].shape) == (*axes, *shape) for name, shape in expected.items())
    return list(axes) if fits else []


_FIX = {
    "params": "use fm.init_params, fm.stack_agents (from one-agent trees) or fm.reshare (from another sharing)",
    "state": "use fm.init_state, or the state that apply(..., mutable=True) returned",
}


def check_params(net: Network, params: Mapping[str, Any]) -> None:
    """Check all names and shapes of params at once.

    Raises:
        StructureError: with a line for every leaf that is missing, unknown, no tensor, or has another shape.
    """
    _check(params, net, net.param_shapes, "params")


def check_state(net: Network, state: Mapping[str, Any]) -> None:
    """Check all names and shapes of a state at once, as :func:`check_params` does for params."""
    _check(state, net, net.state_shapes, "state")


def check_meta(params: Params, state: Params, inputs: Sequence[Any]) -> None:
    """Check that all tensors of a call are on the meta device, or none of them.

    torch's products accept a mixture, and return memory that was never written.

    Raises:
        StructureError: names the tensors on the meta device.
    """
    places = [("params", params.items()), ("state", state.items()), ("inputs", enumerate(inputs))]
    on_meta: list[str] = []
    others = 0
    for what, leaves in places:
        for name, leaf in leaves:
            if isinstance(leaf, Tensor):
                if leaf.is_meta:
                    on_meta.append(f"{what}[{name!r}]")
                else:
                    others += 1
    if on_meta and others:
        raise StructureError(
            f"expected all tensors on the meta device or none, got {', '.join(on_meta)} on it and {others} others "
            "elsewhere; tensors on it have no numbers: make new ones, with fm.init_params(net, key, device=...)"
        )


def slot_maps(net: Network, tree: Mapping[str, Any]) -> Mapping[str, Sharing]:
    """Check a tree and return its slot maps: of params, or of a state if its names are those of the buffers."""
    if tree.keys() == net.state_sharing.keys():  # {} is the state of a network without buffers
        check_state(net, tree)
        return net.state_sharing
    check_params(net, tree)
    return net.sharing
