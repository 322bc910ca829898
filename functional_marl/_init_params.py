"""Fresh parameters and buffers: what the factory builds, a slot at a time, under that slot's key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from functional_marl import _torch_compat
from functional_marl._arguments import as_device, as_floating
from functional_marl._checks import Params, check_network
from functional_marl._clean_context import ordinary_tensors
from functional_marl._errors import StructureError
from functional_marl._module.leaves import named_tensors
from functional_marl._module.replay import InitTrace
from functional_marl._module.spec import LeafSpec
from functional_marl._network import Network
from functional_marl._randomness.use_generator import seeded
from functional_marl.random import Key, as_key, split

__all__ = ["default_state", "init_params", "init_state"]


@ordinary_tensors()
def _draw(
    net: Network,
    given: Key,
    kind: Literal["_parameters", "_buffers"],
    device: Any,
    dtype: torch.dtype | None,
) -> Params:
    with torch.device("cpu"), _torch_compat.unwatched():  # a seed has numbers also where the parameters get none
        key = as_key(given, batch=True)
    if _torch_compat.is_batched(key):
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
    seeds = _seeds(key, count)
    tape = net.module_spec.init_trace() if len(seeds) * count > _WORTH_A_TRACE else None
    # One slot is built all the same: the factory may have come to do something else.
    if (
        tape is not None
        and tape.matches_context()
        and tape.reproduces(net.module_spec.init_module(seeds[0][0]), seeds[0][0])
    ):
        out = _play(net, tape, seeds, shapes, dtype, device)
    else:
        for p, slot_seeds in enumerate(seeds):
            for slot, seed in enumerate(slot_seeds):
                _copy_drawn(
                    named_tensors(net.module_spec.init_module(seed), kind),
                    out,
                    p,
                    slot,
                    len(seeds),
                    shapes,
                    dtype,
                    device,
                )
    return {name: out[name].view(*batch, *shape) for name, shape in shapes.items() if name in out}


def _seeds(key: Tensor, count: int) -> list[list[int]]:
    """``[P, S]`` seeds for keys ``[*P, 2]``: the two words of the key of each slot."""
    try:
        with _torch_compat.unwatched():
            words = split(key.reshape(-1, 2), count).transpose(0, 1).tolist()
    except RuntimeError as error:
        raise StructureError(
            f"key: expected numbers, got a {type(key).__name__} on {key.device} that holds none; make the key outside "
            'of torch.device("meta") and of fake tensors, or give an int seed'
        ) from error
    return [[high << 32 | low for high, low in slots] for slots in words]


_WORTH_A_TRACE = 2  # recording one costs two builds, using it one


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
    tape: InitTrace,
    seeds: list[list[int]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    device: Any,
) -> Params:
    """Every slot's leaves by a tape. A leaf with fewer slots than others still draws, into nothing."""
    template = net.module_spec
    leaves = {**template.params, **{k: LeafSpec(tuple(b.shape), b.dtype) for k, b in template.buffers.items()}}
    nowhere = {name: torch.empty(leaf.shape, dtype=leaf.dtype) for name, leaf in leaves.items()}
    out = {name: torch.empty((len(seeds), *shape), dtype=leaves[name].dtype) for name, shape in shapes.items()}
    rows = {name: [p.unbind(0) for p in leaf.unbind(0)] for name, leaf in out.items()}
    with seeded(0) as generator:
        for p, slot_seeds in enumerate(seeds):
            for slot, seed in enumerate(slot_seeds):
                own = {name: rows[name][p][slot] for name in shapes if slot < shapes[name][0]}
                tape.replay({**nowhere, **own}, generator.manual_seed(seed))
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
    CPU generator (Mersenne Twister) has 32 bits; of a key's 64 bits it uses the lower half. Parameters that
    are made in inference mode or inside a transform of torch.func are ordinary tensors, as made outside; on
    ``torch.device("meta")`` and under fake tensors they have shapes and no numbers.

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
    return _draw(net, key, "_parameters", as_device(device), as_floating(dtype))


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
        return _draw(net, key, "_buffers", device, dtype)
    _check_drawn(net)
    with ordinary_tensors():
        return {
            name: _initial(net, name, device, dtype if net.module_spec.buffers[name].is_floating_point() else None)
            for name in net.state_shapes
        }


def _initial(net: Network, name: str, device: Any, dtype: torch.dtype | None) -> Tensor:
    """A buffer as the factory built it, ``[S, *leaf]``, on a device and in a dtype."""
    buffer = net.module_spec.buffers[name]
    if buffer.is_meta and device is not None and torch.device(device).type != "meta":
        raise StructureError(
            f"state: the network was made under torch.device('meta'), where its buffer {name!r} got no numbers; "
            "give fm.init_state(net, key)"
        )
    return buffer.to(device=device, dtype=dtype).expand(net.state_shapes[name]).clone()


def default_state(net: Network, params: Mapping[str, Tensor]) -> Params:
    """The initial buffers, for parameters that were perhaps moved or cast after they were drawn.

    A buffer follows one parameter: the first floating one of the smallest part around it that has any. It is on
    that one's device, and takes its dtype if that is another than the factory gave it.
    """
    if not net.module_spec.buffers:
        return {}
    _check_drawn(net)
    state: Params = {}
    for name, beside in net.module_spec.nearest_param.items():
        like = params.get(beside, None)
        if like is None:
            state[name] = _initial(net, name, None, None)
            continue
        floats = net.module_spec.buffers[name].is_floating_point() and like.is_floating_point()
        cast = floats and like.dtype != net.module_spec.params[beside].dtype
        state[name] = _initial(net, name, like.device, like.dtype if cast else None)
    return state


def _check_drawn(net: Network) -> None:
    if net.module_spec.random_buffers:
        raise StructureError(
            f"state: the factory draws the buffers {list(net.module_spec.random_buffers)} at random; "
            "give fm.init_state(net, key), or state= where apply is called"
        )
