"""One network for each group: evaluate all of them, each on the data of its group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

from functional_marl._apply import apply
from functional_marl._arguments import as_flag, short_repr
from functional_marl._errors import GroupingError
from functional_marl._groups.checks import check_keys
from functional_marl._network import Network
from functional_marl._pytrees import Params, Tree
from functional_marl.random import Key, fold_in

__all__ = ["apply_groups"]


@overload
def apply_groups(
    nets: Mapping[str, Network],
    params: Tree,
    inputs: Tree,
    *,
    key: Key | None = None,
    state: Mapping[str, Tree] | None = None,
    train: bool = False,
    mutable: Literal[True],
    kwargs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, tuple[Any, Params]]: ...
@overload
def apply_groups(
    nets: Mapping[str, Network],
    params: Tree,
    inputs: Tree,
    *,
    key: Key | None = None,
    state: Mapping[str, Tree] | None = None,
    train: bool = False,
    mutable: bool | Mapping[str, bool] = False,
    kwargs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]: ...
def apply_groups(
    nets: Mapping[str, Network],
    params: Tree,
    inputs: Tree,
    *,
    key: Key | None = None,
    state: Mapping[str, Tree] | None = None,
    train: bool = False,
    mutable: bool | Mapping[str, bool] = False,
    kwargs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate one network with its own params for each group, as :func:`functional_marl.apply` does.

    Equivalent to ``{group: apply(nets[group], params[group], *inputs[group], ...) for group in nets}``.

    Args:
        nets: group -> network.
        params: group -> the parameters of that network.
        inputs: group -> its input ``[*B, n, F]``, or a tuple of several inputs (a named tuple is one input).
        key: group ``i``, in the order of ``nets``, has the key ``fold_in(key, i)``.
        state: group -> buffers, or ``None`` for a network without any.
        train: for all groups.
        mutable: for all groups, or group -> bool. The entry of a group with ``True`` is ``(output, new_state)``.
        kwargs: group -> keyword inputs.

    Raises:
        GroupingError: ``nets`` is no mapping, or another mapping has other groups.

    >>> import torch
    >>> import functional_marl as fm
    >>> nets = {"wolf": fm.network(lambda: torch.nn.Linear(4, 2), n_agents=3, sharing="shared"),
    ...         "sheep": fm.network(lambda: torch.nn.Linear(5, 1), n_agents=1)}
    >>> params = {group: fm.init_params(net, fm.key(0)) for group, net in nets.items()}
    >>> y = apply_groups(nets, params, {"wolf": torch.zeros(7, 3, 4), "sheep": torch.zeros(7, 1, 5)})
    >>> {group: list(out.shape) for group, out in y.items()}
    {'wolf': [7, 3, 2], 'sheep': [7, 1, 1]}
    """
    if not isinstance(nets, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise GroupingError(f"nets: expected a mapping from group to network, got {short_repr(nets)}")
    mutable_of: Any = mutable if hasattr(mutable, "keys") else dict.fromkeys(nets, as_flag(mutable, "mutable"))
    no_state: dict[str, Tree] = dict.fromkeys(nets)
    states, keywords = no_state if state is None else state, no_state if kwargs is None else kwargs
    given = {"params": params, "inputs": inputs, "state": states, "mutable": mutable_of, "kwargs": keywords}
    for what, mapping in given.items():
        check_keys(what, "group", mapping, nets, "give one entry for each group of nets")
    outputs: dict[str, Any] = {}
    for i, (group, net) in enumerate(nets.items()):
        x = inputs[group]
        several = isinstance(x, tuple) and not hasattr(x, "_fields")  # pyright: ignore[reportUnknownArgumentType]
        try:
            outputs[group] = apply(
                net,
                params[group],
                *(x if several else (x,)),
                key=None if key is None else fold_in(key, i),
                state=states[group],
                train=train,
                mutable=mutable_of[group],
                kwargs=keywords[group],
            )
        except Exception as error:
            error.add_note(f"in group {group!r} of apply_groups")
            raise
    return outputs
