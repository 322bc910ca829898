"""Does a tree fit a network? All names and shapes at once, ahead of any work."""

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
    """Raise StructureError where something else stands in a network's place."""
    if not isinstance(net, Network):
        raise StructureError(
            f"net: expected a network, got {type(net).__name__}; make one: fm.network(build, n_agents=3), "
            "where build returns one agent's module"
        )


def mismatches(given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], what: str) -> list[str]:
    """A line for every leaf that is missing, unknown, no tensor, or of another shape."""
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
    front = _in_front(given, expected)
    if front:
        raise StructureError(
            f"{what}: every leaf has the axes {front} in front of [slots, *leaf], those of a population; map over it: "
            "torch.func.vmap(lambda p: fm.apply(net, p, x))(params), and likewise what else takes params"
        )
    lines = mismatches(given, expected, what)
    lines.append(f"leaves are [slots, *shape of one agent's]; the network has {net.n_agents} agents; {_FIX[what]}")
    raise StructureError("\n".join(lines))


def _in_front(given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> list[int]:
    """The axes that all leaves have in front of their shapes, those of a population; else none."""
    if given.keys() != expected.keys() or not all(isinstance(leaf, Tensor) for leaf in given.values()):
        return []
    fronts = {tuple(given[name].shape[: given[name].ndim - len(shape)]) for name, shape in expected.items()}
    if len(fronts) != 1:
        return []
    front = fronts.pop()
    fits = all(tuple(given[name].shape) == (*front, *shape) for name, shape in expected.items())
    return list(front) if fits else []


_FIX = {
    "params": "use fm.init_params, fm.stack_agents (from one-agent trees) or fm.reshare (from another sharing)",
    "state": "use fm.init_state, or the state that apply(..., mutable=True) returned",
}


def check_params(net: Network, params: Mapping[str, Any]) -> None:
    """Check all names and shapes of params at once.

    Raises:
        StructureError: names every leaf that is missing, unknown or of another shape.
    """
    _check(params, net, net.param_shapes, "params")


def check_state(net: Network, state: Mapping[str, Any]) -> None:
    """Check all names and shapes of a state at once; raises as :func:`check_params`."""
    _check(state, net, net.state_shapes, "state")


def check_meta(params: Params, state: Params, inputs: Sequence[Any]) -> None:
    """Check that all tensors of a call are on the meta device, or none.

    Products of torch take one among others and give memory that nobody wrote.

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
            "elsewhere; tensors on it have no numbers: make them anew, with fm.init_params(net, key, device=...)"
        )


def slot_maps(net: Network, tree: Mapping[str, Any]) -> Mapping[str, Sharing]:
    """The slot maps of a checked tree: params, or a state if its names are those of the buffers."""
    if tree.keys() == net.state_sharing.keys():  # also {}, the state of a network without buffers
        check_state(net, tree)
        return net.state_sharing
    check_params(net, tree)
    return net.sharing
