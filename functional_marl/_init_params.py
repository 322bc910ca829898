"""How a slot is initialized: the factory runs with all its random operations under that slot's key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from functional_marl import _torch_compat
from functional_marl._check_arguments import as_device, as_floating
from functional_marl._check_params import check_network
from functional_marl._clean_context import regular_tensors
from functional_marl._errors import StructureError
from functional_marl._module.leaves import named_tensors
from functional_marl._module.module_spec import LeafSpec
from functional_marl._module.replay_init import InitTrace
from functional_marl._network import Network
from functional_marl._pytrees import Params
from functional_marl._randomness.use_generator import seeded_generator
from functional_marl.random import Key, as_key, split

__all__ = ["init_params", "init_slots"]

_MIN_SLOTS_TO_RECORD = 3  # recording a trace costs two builds, and its check at each use costs one


def init_params(
    net: Network, key: Key, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Params:
    """Initial parameters: a flat dict of contiguous tensors ``[S, *leaf]`` that require no grad.

    A slot's parameters are what the factory builds when all its random operations use that slot's key
    (``fm.split(key, S)[s]``). They depend on the key and on the slot alone, not on the number of agents, and are
    the same on every device. No global generator is read or written. The seed of torch's CPU generator (Mersenne
    Twister) has 32 bits: of a key's 64 bits it uses the lower half.

    In inference mode, and inside a transform of torch.func, the parameters are the same plain tensors as outside.
    On ``torch.device("meta")`` and under fake tensors they have shapes and no numbers.

    Args:
        net: the network.
        key: a key, an int seed, or a batch of keys ``[*P, 2]`` for a population ``[*P, S, *leaf]``.
        device: where to put them; by default where the factory puts them.
        dtype: the dtype of floating leaves; by default that of the factory.

    Raises:
        StructureError: a bad key, device or dtype; a factory that does not build the same leaves every time; a module
            whose reset leaves a leaf unfilled.
        RandomnessError: a random operation that cannot sample from a key.

    >>> from torch import nn
    >>> from functional_marl import network
    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3)
    >>> {name: list(leaf.shape) for name, leaf in init_params(net, 0).items()}
    {'weight': [3, 2, 4], 'bias': [3, 2]}
    """
    check_network(net)
    return init_slots(net, key, "_parameters", as_device(device), as_floating(dtype))


@regular_tensors()
def init_slots(
    net: Network,
    key: Key,
    kind: Literal["_parameters", "_buffers"],
    device: Any,
    dtype: torch.dtype | None,
) -> Params:
    """Parameters or buffers ``[*P, S, *leaf]`` for a key, or for keys ``[*P, 2]``."""
    # Inside of torch.device("meta") too, an int seed becomes a key with numbers.
    with torch.device("cpu"), _torch_compat.skip_python_dispatch():
        key = as_key(key, batch=True)
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
    n_slots = max((shape[0] for shape in shapes.values()), default=0)
    seeds = _slot_seeds(key, n_slots)
    spec, first = net.module_spec, seeds[0][0] if n_slots else 0
    trace = spec.init_trace() if len(seeds) * n_slots >= _MIN_SLOTS_TO_RECORD else None
    # The first slot is always built: the factory may behave differently from when the trace was recorded.
    if trace is not None and trace.matches_context() and trace.reproduces(spec.init_module(first), first):
        out = _replay_slots(net, trace, seeds, shapes, dtype, device)
    else:
        for p, slot_seeds in enumerate(seeds):
            for slot, seed in enumerate(slot_seeds):
                built = named_tensors(net.module_spec.init_module(seed), kind)
                _copy_slot(built, out, p, slot, len(seeds), shapes, dtype, device)
    return {name: out[name].view(*batch, *shape) for name, shape in shapes.items() if name in out}


def _slot_seeds(key: Tensor, n_slots: int) -> list[list[int]]:
    """``[P, S]`` seeds for keys ``[*P, 2]``: the two words of each slot's key as one int."""
    try:
        with _torch_compat.skip_python_dispatch():
            words = split(key.reshape(-1, 2), n_slots).transpose(0, 1).tolist()
    except RuntimeError as error:
        raise StructureError(
            f"key: expected numbers, got a {type(key).__name__} on {key.device} that holds none; make the key outside "
            'of torch.device("meta") and of fake tensors, or give an int seed'
        ) from error
    return [[high << 32 | low for high, low in slots] for slots in words]


def _copy_slot(
    built: Params,
    out: Params,
    p: int,
    slot: int,
    n_keys: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    device: Any,
) -> None:
    """Copy the leaves of one built module into their slot of ``out``. The first module creates ``out``."""
    for name, shape in shapes.items():
        leaf = built.get(name)
        if leaf is None or tuple(leaf.shape) != shape[1:]:
            got = "no such leaf" if leaf is None else list(leaf.shape)
            raise StructureError(f"build: {name!r} was {list(shape[1:])} at first, now {got}")
        if name not in out:
            wanted = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
            out[name] = torch.empty((n_keys, *shape), dtype=wanted, device=leaf.device if device is None else device)
        if slot < shape[0]:
            out[name][p, slot].copy_(leaf)


def _replay_slots(
    net: Network,
    trace: InitTrace,
    seeds: list[list[int]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    device: Any,
) -> Params:
    """Fill all slots by a trace.

    Every slot replays all leaves, so that each leaf samples at the same point of the slot's stream. A leaf without
    such a slot, or of the other kind, is written into a tensor that nobody reads.
    """
    spec = net.module_spec
    leaves = {**spec.params, **{k: LeafSpec(tuple(b.shape), b.dtype) for k, b in spec.buffers.items()}}
    unread = {name: torch.empty(leaf.shape, dtype=leaf.dtype) for name, leaf in leaves.items()}
    out = {name: torch.empty((len(seeds), *shape), dtype=leaves[name].dtype) for name, shape in shapes.items()}
    rows = {name: [p.unbind(0) for p in leaf.unbind(0)] for name, leaf in out.items()}
    with seeded_generator(0) as generator:
        for p, slot_seeds in enumerate(seeds):
            for slot, seed in enumerate(slot_seeds):
                targets = {name: rows[name][p][slot] for name in shapes if slot < shapes[name][0]}
                trace.replay({**unread, **targets}, generator.manual_seed(seed))
    del rows
    for name, leaf in out.items():
        out[name] = leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)
    return out
