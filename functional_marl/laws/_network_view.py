"""A functional network that was given as a module, as what it is: a network with slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from functional_marl._pytrees import Tree, flatten, tree_map
from functional_marl._strategies import supports
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_module import NetworkModule
from functional_marl.laws._network_subject import NetworkSubject
from functional_marl.laws._subject import CheckError
from functional_marl.laws._zoo_subject import moved

__all__ = ["network_view"]


def network_view(case: ModuleSubject) -> NetworkSubject:
    """The network of a case in float64, every leaf moved off its value, on the inputs of the case.

    Raises:
        CheckError: it is no functional network, or leaves of one input have the agents at different places.
    """
    host = case.host
    if not isinstance(host.module, NetworkModule):
        raise CheckError("it needs a functional_marl Network")
    net = host.module.net
    if net.randomness == "error":
        net = net.replace(randomness="different")  # laws train it, and those about randomness choose the mode
    args, kwargs = host.rebuild([leaf.double() if leaf.is_floating_point() else leaf for leaf in case.leaves])
    at: tuple[Any, Any] = host.rebuild([-1 if place.dim is None else place.dim for place in host.places])
    dims = [_one(tree) for tree in (*at[0], at[1])]
    dims[-1] = dims[-1] if kwargs else dims[0]
    first = next((dim for dim in dims if dim is not None), None)
    if first is None or len({place.dim for place in host.out_places}) != 1:
        raise CheckError("outputs or inputs carry no agents, or at different places")
    generator = torch.Generator().manual_seed(case.seed)

    def in_front(tree: Tree, dim: int | None) -> Tree:
        return tree if dim is None else tree_map(lambda leaf: leaf.movedim(dim, 0), tree)

    def drawn(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        wide = {k: leaf.double() if leaf.is_floating_point() else leaf for k, leaf in leaves.items()}
        return moved({k: leaf.detach() for k, leaf in wide.items()}, generator)

    batch = tuple(flatten(args)[0][0].shape[:first])
    strategies = {
        "auto": True,
        "loop": True,
        "vmap": supports(net, "vmap"),
        "plan": supports(net, "plan"),
    }
    return NetworkSubject(
        name=f"network_view({case!r})",
        net=net,
        params=drawn(dict(host.module.named_parameters())),
        inputs=tuple(in_front(tree, dim) for tree, dim in zip(args, dims[:-1], strict=True)),
        dims=tuple(dims),
        out_dim=next(place.dim for place in host.out_places if place.dim is not None),
        kwargs=in_front(kwargs, dims[-1]),
        state=drawn(dict(host.module.named_buffers())),
        batch=batch,
        least_batch_dims=len(batch),
        traits=frozenset(
            {"compiles", "exports"}
            | ({"random"} if case.draws_in_training else set())
            | ({"vmap"} if strategies["vmap"] else set())
        ),
        strategies=tuple(strategy for strategy, can in strategies.items() if can),
        build=net.module_spec.build,
        seed=case.seed,
    )


def _one(dims: Tree) -> int | None:
    """Where all leaves of an input have the agents; -1 stands for None, which a tree cannot hold."""
    found = set(flatten(dims)[0])
    if len(found) > 1:
        raise CheckError("leaves of one input have the agents at different places")
    dim = found.pop() if found else -1
    return None if dim == -1 else dim
