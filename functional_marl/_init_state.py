"""Initial buffers: as the factory built them, under a key where they are random, or for a call without ``state=``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from functional_marl._check_arguments import as_device, as_floating
from functional_marl._check_params import check_network
from functional_marl._clean_context import regular_tensors
from functional_marl._errors import StructureError
from functional_marl._init_params import init_slots
from functional_marl._network import Network
from functional_marl._pytrees import Params
from functional_marl.random import Key

__all__ = ["default_state", "init_state"]


def init_state(
    net: Network,
    key: Key | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Params:
    """The initial buffers, a flat dict of ``[S, *leaf]``; ``{}`` for a network without buffers.

    A key is needed only where the factory fills buffers with random numbers. The key of :func:`init_params` gives
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
        return init_slots(net, key, "_buffers", device, dtype)
    _check_no_random_buffers(net)
    with regular_tensors():
        return {
            name: _expanded_buffer(
                net, name, device, dtype if net.module_spec.buffers[name].is_floating_point() else None
            )
            for name in net.state_shapes
        }


def _expanded_buffer(net: Network, name: str, device: Any, dtype: torch.dtype | None) -> Tensor:
    """A buffer as the factory built it, once for each slot: ``[S, *leaf]``."""
    buffer = net.module_spec.buffers[name]
    if buffer.is_meta and device is not None and torch.device(device).type != "meta":
        raise StructureError(
            f"state: the network was made under torch.device('meta'), where its buffer {name!r} got no numbers; "
            "give fm.init_state(net, key)"
        )
    return net.initial_buffer(name, None if device is None else torch.device(device), dtype)


def default_state(net: Network, params: Mapping[str, Tensor]) -> Params:
    """The initial buffers of a call without ``state=``. Its parameters may have been moved or cast.

    A buffer follows one parameter: the first floating one, or else the first, of the smallest submodule around the
    buffer that has parameters. The buffer is on that parameter's device. If the parameter was cast, the buffer gets
    its dtype.
    """
    if not net.module_spec.buffers:
        return {}
    _check_no_random_buffers(net)
    state: Params = {}
    for name, beside in net.module_spec.nearest_param.items():
        parameter = params.get(beside, None)
        if parameter is None:
            state[name] = _expanded_buffer(net, name, None, None)
            continue
        floats = net.module_spec.buffers[name].is_floating_point() and parameter.is_floating_point()
        cast = floats and parameter.dtype != net.module_spec.params[beside].dtype
        state[name] = _expanded_buffer(net, name, parameter.device, parameter.dtype if cast else None)
    return state


def _check_no_random_buffers(net: Network) -> None:
    if net.module_spec.random_buffers:
        raise StructureError(
            f"state: the factory samples the buffers {list(net.module_spec.random_buffers)}; "
            "give fm.init_state(net, key), or state= where apply is called"
        )
