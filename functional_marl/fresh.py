"""Fresh parameters and buffers: what the factory builds, a slot at a time, under that slot's key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from functional_marl.arguments import as_device, as_floating
from functional_marl.checks import Params, check_network
from functional_marl.errors import StructureError
from functional_marl.network import Network
from functional_marl.random import Key, as_key, split
from functional_marl.skeleton import named_tensors
from functional_marl.tape import Tape
from functional_marl.template import Leaf

__all__ = ["default_state", "init_params", "init_state"]


def _draw(
    net: Network,
    key: Tensor,
    kind: Literal["_parameters", "_buffers"],
    device: Any,
    dtype: torch.dtype | None,
) -> Params:
    check_network(net)
    if torch._C._functorch.is_batchedtensor(key):  # pyright: ignore[reportAttributeAccessIssue]
        raise StructureError(
            "key: the factory cannot run inside vmap; give the batch of keys itself: "
            "fm.init_params(net, fm.split(key, 8)) gives [8, slots, *leaf]"
        )
    shapes = net.param_shapes if kind == "_parameters" else net.state_shapes
    out: Params = {}
    batch = tuple(key.shape[:-1])
    if 0 in batch:
        raise StructureError(f"key: expected at least one key, got an empty batch of shape {list(key.shape)}")
    count = max((shape[0] for shape in shapes.values()), default=0)
    # [P, S] seeds: the two words of the key of each slot
    words = split(key.reshape(-1, 2), count).transpose(0, 1).tolist()
    seeds = [[high << 32 | low for high, low in slots] for slots in words]
    tape = net.template.tape() if len(seeds) * count > _WORTH_A_TAPE else None
    # One slot is built all the same: the factory may have come to do something else.
    if tape is not None and tape.fits() and tape.gives(net.template.draw(seeds[0][0]), seeds[0][0]):
        out = _play(net, tape, seeds, shapes, dtype, device)
    else:
        for p, slot_seeds in enumerate(seeds):
            for slot, seed in enumerate(slot_seeds):
                _copy_drawn(
                    named_tensors(net.template.draw(seed), kind)[0], out, p, slot, len(seeds), shapes, dtype, device
                )
    return {name: out[name].view(*batch, *shape) for name, shape in shapes.items() if name in out}


_WORTH_A_TAPE = 2  # recording one costs two builds, using it one


def _copy_drawn(
    drawn: Params,
    out: Params,
    p: int,
    slot: int,
    count: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    device: Any,
) -> None:
    """One built module's leaves into their rows, which the first of them makes."""
    for name, shape in shapes.items():
        leaf = drawn.get(name)
        if leaf is None or tuple(leaf.shape) != shape[1:]:
            got = "no such leaf" if leaf is None else list(leaf.shape)
            raise StructureError(f"build: {name!r} was {list(shape[1:])} at first, now {got}")
        if name not in out:
            kept = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
            out[name] = torch.empty((count, *shape), dtype=kept, device=leaf.device if device is None else device)
        if slot < shape[0]:
            out[name][p, slot].copy_(leaf)


def _play(
    net: Network,
    tape: Tape,
    seeds: list[list[int]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    device: Any,
) -> Params:
    """Every slot's leaves by a tape. A leaf with fewer slots than others still draws, into nothing."""
    template = net.template
    leaves = {**template.params, **{k: Leaf(tuple(b.shape), b.dtype) for k, b in template.buffers.items()}}
    nowhere = {name: torch.empty(leaf.shape, dtype=leaf.dtype) for name, leaf in leaves.items()}
    out = {name: torch.empty((len(seeds), *shape), dtype=leaves[name].dtype) for name, shape in shapes.items()}
    rows = {name: [p.unbind(0) for p in leaf.unbind(0)] for name, leaf in out.items()}
    generator = torch.Generator()
    for p, slot_seeds in enumerate(seeds):
        for slot, seed in enumerate(slot_seeds):
            own = {name: rows[name][p][slot] for name in shapes if slot < shapes[name][0]}
            tape.play({**nowhere, **own}, generator.manual_seed(seed))
    del rows
    for name, leaf in out.items():
        out[name] = leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)
    return out


def init_params(
    net: Network, key: Key, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Params:
    """Fresh parameters: a flat dict of contiguous tensors ``[S, *leaf]`` that require no grad.

    A slot's parameters are what the factory builds with all its draws taken from that slot's key
    (``fm.split(key, S)[s]``): they depend on the key and on the slot alone, not on the number of agents,
    and are the same on every device. No global generator is read or written. The seed of torch's own
    CPU generator (Mersenne Twister) has 32 bits; of a key's 64 bits it uses the lower half.

    Args:
        net: the network.
        key: a key, an int seed, or a batch of keys ``[*P, 2]`` for a population ``[*P, S, *leaf]``.
        device: where to put them; by default where the factory does.
        dtype: the dtype of floating leaves; by default what the factory gives.

    Raises:
        StructureError: a bad key, device or dtype; a factory that does not build the same leaves every time; a module
            whose reset leaves a leaf unfilled. RandomnessError: a draw that a key cannot serve.

    >>> from torch import nn
    >>> from functional_marl import network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> {name: list(leaf.shape) for name, leaf in init_params(net, 0).items()}
    {'weight': [3, 2, 4], 'bias': [3, 2]}
    """
    check_network(net)
    device, dtype = as_device(device), as_floating(dtype)
    return _draw(net, as_key(key, batch=True), "_parameters", device, dtype)


def init_state(
    net: Network,
    key: Key | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Params:
    """The initial buffers, a flat dict of ``[S, *leaf]``; ``{}`` for a network without buffers.

    A key is needed only where the factory draws buffers at random; the key of :func:`init_params` gives
    the buffers that were built with those parameters.

    Raises:
        StructureError: a random buffer and no key; a bad key, device or dtype.

    >>> from torch import nn
    >>> from functional_marl import network
    >>> net = network(lambda: nn.BatchNorm1d(4), n_agents=3)
    >>> {name: list(leaf.shape) for name, leaf in init_state(net).items()}
    {'running_mean': [3, 4], 'running_var': [3, 4], 'num_batches_tracked': [3]}
    """
    check_network(net)
    device, dtype = as_device(device), as_floating(dtype)
    if key is not None:
        return _draw(net, as_key(key, batch=True), "_buffers", device, dtype)
    if net.template.random_buffers:
        raise StructureError(
            f"state: the factory draws the buffers {list(net.template.random_buffers)} at random; "
            "give fm.init_state(net, key), or state= where apply is called"
        )
    return {
        name: net.template.buffers[name]
        .to(device=device, dtype=dtype if net.template.buffers[name].is_floating_point() else None)
        .expand(shape)
        .clone()
        for name, shape in net.state_shapes.items()
    }


def default_state(net: Network, params: Mapping[str, Tensor]) -> Params:
    """The initial buffers, on the device of the params and in their floating dtype."""
    if not net.template.buffers:
        return {}
    like = next((leaf for leaf in params.values() if leaf.is_floating_point()), None)
    return init_state(net) if like is None else init_state(net, device=like.device, dtype=like.dtype)
