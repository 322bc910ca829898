"""Wrong calls of every public name of the core: a right call of each, whose arguments are replaced one at a time.

``CALLS`` has the right calls; ``right`` of a call says which of ``tests/wrong_arguments.py`` are no mistake there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import functional_marl as fm
from functional_marl import nets, random
from tests.core.wrong_arguments import INTS, Call

# --- the right calls -------------------------------------------------------------------------------------


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))


class TwoInputs(nn.Module):
    """One agent's module with a second, keyword, input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.layer(x) if scale is None else self.layer(x) * scale


NET = fm.network(build, 3, sharing=[0, 0, 1])
NORMED = fm.network(normed, 3, agent_dim=1)
BY_NAME = fm.network(TwoInputs, 3)
GROUPS = {"wolf": ["wolf_0", "wolf_1", "wolf_2"], "sheep": ["sheep_0"]}
NETS = {"wolf": NET, "sheep": fm.network(build, 1)}


def params(net: fm.Network = NET) -> dict[str, Tensor]:
    return fm.init_params(net, 0)


def of_groups() -> dict[str, Any]:
    return {group: params(net) for group, net in NETS.items()}


def net_and(**more: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {"net": NET, "params": params(), **{name: make() for name, make in more.items()}}


def group_data() -> dict[str, Any]:
    return {name: torch.ones(5, 4) for members in GROUPS.values() for name in members}


SPARSE = {"sparse numbers"}  # as inputs they are evaluated by the loop
KINDS_OF_LEAVES = {"meta as leaf", "sparse as leaf", "integers as leaf"}  # any leaf has rows
FLAGS = {"True", "zero", "bool_"}
KEYS = {"zero", "int64", "negative"}
NONE = {"None"}
SHARED = ("shared", "independent")
FLOATS = ("float32", "float64", "float16", "bfloat16")
SETTINGS: dict[str, Any] = {
    "n_agents": 3,
    "sharing": "shared",
    "centralized": False,
    "agent_dim": -2,
    "out_agent_dim": -2,
    "randomness": "error",
    "strategy": "auto",
}
FINE: dict[str, set[str]] = {  # wrong dims are found when there are inputs
    "centralized": FLAGS,
    "agent_dim": {"None", "zero", "negative", "huge", "int64", "tuple", "empty list", "empty dict", "dict"},
    "out_agent_dim": {"None", "zero", "negative", "huge", "int64", "tuple", "empty list", "empty dict", "dict"},
    "n_agents": INTS,
}
DRAW = {"key": KEYS, "shape": {"tuple", "empty list"}, "site": {"zero", *INTS}, "agent": {"zero", *INTS}, "p": {"zero"}}
SIZES: dict[str, set[str]] = {"inputs": INTS, "hidden": INTS}


def shape_calls() -> dict[str, Call]:
    key: Callable[[], Any] = lambda: {"key": fm.key(0), "shape": (3,)}
    return {
        "random.uniform": Call(random.uniform, lambda: {**key(), "dtype": torch.float32}, DRAW),
        "random.normal": Call(random.normal, lambda: {**key(), "dtype": torch.float32}, DRAW),
        "random.bernoulli": Call(random.bernoulli, lambda: {**key(), "p": 0.5, "site": 0, "agent": 0}, DRAW),
    }


CALLS: dict[str, Call] = {
    # sharing
    "Sharing": Call(
        fm.Sharing,
        lambda: {"slots": [0, 1], "n_slots": 2},
        {"n_slots": {"None", "huge", *INTS}},
        words={"slots": "sharing"},
    ),
    "Sharing.shared": Call(fm.Sharing.shared, lambda: {"n_agents": 3}, {"n_agents": INTS}),
    "Sharing.independent": Call(fm.Sharing.independent, lambda: {"n_agents": 3}, {"n_agents": INTS}),
    "Sharing.members": Call(fm.Sharing([0, 1, 1, 2]).members, lambda: {"slot": 1}, {"slot": {"zero", *INTS}}),
    "Sharing.same_partition": Call(fm.Sharing([0, 1]).same_partition, lambda: {"other": fm.Sharing([0, 1])}),
    "Sharing.refines": Call(fm.Sharing([0, 1]).refines, lambda: {"other": fm.Sharing([0, 1])}),
    # network
    "network": Call(
        fm.network,
        lambda: {"build": build, **SETTINGS, "example": torch.ones(5, 4)},
        {
            **FINE,
            "build": {"module"},
            "example": {"None", "empty dict", "empty list", "tensor", "scalar", "bools", "meta", "sparse"},
        },
        theirs={"build": {"function"}},
    ),
    "network of lazy layers": Call(
        fm.network,
        lambda: {"build": lambda: nn.LazyLinear(2), "n_agents": 3, "example": torch.ones(5, 4)},
        {"n_agents": INTS, "build": {"module"}, "example": {"tensor", "sparse"}},
        theirs={"build": {"function"}},
    ),
    "Network.replace": Call(NET.replace, lambda: dict(SETTINGS), FINE),
    "Network.__call__": Call(NET, lambda: {"params": params()}, words={"params": "params"}),
    "tabulate": Call(fm.tabulate, lambda: {"net": NET}),
    # parameters
    "init_params": Call(
        fm.init_params,
        lambda: {"net": NET, "key": fm.key(0), "device": "cpu", "dtype": torch.float64},
        {"key": KEYS, "device": NONE, "dtype": NONE},
    ),
    "init_state": Call(
        fm.init_state,
        lambda: {"net": NORMED, "key": fm.key(0), "device": "cpu", "dtype": torch.float64},
        {"key": KEYS | NONE, "device": NONE, "dtype": NONE},
    ),
    "agent_params": Call(
        fm.agent_params,
        net_and(agent=lambda: 1),
        {"agent": {"zero", *INTS}, "params": {"empty dict", *KINDS_OF_LEAVES}},
        ("params",),
    ),
    "agent_module": Call(
        fm.agent_module,
        lambda: {"net": NORMED, "params": params(NORMED), "agent": 1, "state": fm.init_state(NORMED)},
        {"agent": {"zero", *INTS}, "params": KINDS_OF_LEAVES, "state": NONE | KINDS_OF_LEAVES},
        ("params", "state"),
    ),
    "unstack_agents": Call(fm.unstack_agents, net_and(), {"params": {"empty dict", *KINDS_OF_LEAVES}}, ("params",)),
    "stack_agents": Call(
        fm.stack_agents,
        lambda: {"trees": fm.unstack_agents(NET, params()), "n_agents": 3, "sharing": [0, 0, 1], "merge": "error"},
        {"n_agents": NONE, "trees": {"empty dict", "module"}},
    ),
    "stack_agents of one": Call(
        fm.stack_agents,
        lambda: {"trees": fm.unstack_agents(NET, params())[0], "n_agents": 2, "sharing": [0, 0], "merge": "mean"},
        {"n_agents": INTS, "trees": {"empty dict", "module"}, "sharing": set()},
    ),
    "reshare": Call(
        fm.reshare,
        net_and(sharing=lambda: [0, 1, 1], merge=lambda: "mean", agents=lambda: [0, 1, 2]),
        {"agents": NONE, "params": {"empty dict", "meta as leaf", "integers as leaf"}},
        ("params",),
    ),
    "partition": Call(
        fm.partition,
        lambda: {"params": params(), "patterns": {"0.*": "a", "*": "b"}},
        {"params": {"empty dict"}},
        words={"patterns": "pattern"},
    ),
    "combine": Call(
        lambda part: fm.combine({"w": 1}, part), lambda: {"part": {"v": 2}}, {"part": {"empty dict", "dict"}}
    ),
    "to_tensordict": Call(fm.to_tensordict, lambda: {"params": params()}, {"params": {"empty dict"}}),
    "from_tensordict": Call(fm.from_tensordict, lambda: {"td": fm.to_tensordict(params())}),
    # apply
    "apply": Call(
        lambda inputs, **given: fm.apply(given.pop("net"), given.pop("params"), inputs, **given),
        net_and(inputs=lambda: torch.ones(5, 3, 4), key=lambda: fm.key(0), train=lambda: False, mutable=lambda: False),
        {"key": KEYS | NONE, "train": FLAGS, "mutable": FLAGS, "inputs": SPARSE},
        ("params",),
        ("inputs",),
    ),
    "apply directly": Call(
        lambda net, params, inputs: fm.apply(net, params, inputs),
        net_and(inputs=lambda: torch.ones(5, 3, 4)),
        {"inputs": SPARSE},
        ("params",),
        ("inputs",),
    ),
    "apply with a state": Call(
        lambda inputs, **given: fm.apply(given.pop("net"), given.pop("params"), inputs, **given),
        lambda: {
            "net": NORMED,
            "params": params(NORMED),
            "inputs": torch.ones(5, 3, 4),
            "state": fm.init_state(NORMED),
            "train": True,
            "mutable": True,
        },
        {"state": NONE, "train": FLAGS, "mutable": {"True", "bool_"}, "inputs": SPARSE},
        ("params", "state"),
        ("inputs",),
    ),
    "apply with keywords": Call(
        lambda kwargs: fm.apply(BY_NAME, fm.init_params(BY_NAME, 0), torch.ones(5, 3, 4), kwargs=kwargs),
        lambda: {"kwargs": {"scale": torch.ones(5, 3, 2)}},
        {"kwargs": {"None", "empty dict"}},
    ),
    "with_agent_ids": Call(
        fm.with_agent_ids,
        lambda: {"x": torch.ones(5, 3, 4), "agent_dim": -2},
        {"x": {"tensor", "meta"}, "agent_dim": {"zero"}},
    ),
    # keys and random numbers
    "key": Call(fm.key, lambda: {"seed": 3}, {"seed": {"zero", "negative", *INTS}}),
    "split": Call(fm.split, lambda: {"key": fm.key(0), "n": 2}, {"key": KEYS, "n": {"zero", *INTS}}),
    "fold_in": Call(
        fm.fold_in, lambda: {"key": fm.key(0), "data": 3}, {"key": KEYS, "data": {"zero", "negative", *INTS}}
    ),
    "random.as_key": Call(
        random.as_key,
        lambda: {"given": fm.key(0), "batch": True},
        {"given": KEYS, "batch": FLAGS},
        words={"given": "key"},
    ),
    **shape_calls(),
    "random.philox4x32": Call(random.philox4x32, lambda: {"key": fm.key(0), "counter": (0, 0, 0, 0)}, {"key": KEYS}),
    # groups
    "group_map": Call(
        fm.group_map,
        lambda: {"names": ["wolf_0", "sheep_0"], "grouping": fm.by_prefix},
        words={"grouping": "group"},
        theirs={"grouping": {"module"}},
    ),
    "check_group_map": Call(fm.check_group_map, lambda: {"groups": {"a": ["x"]}, "names": ["x"]}),
    "MarlGroupMapType.get_group_map": Call(
        fm.MarlGroupMapType.ALL_IN_ONE_GROUP.get_group_map,
        lambda: {"agent_names": ["x", "y"]},
        {"agent_names": {"empty list", "empty dict"}},
    ),
    "by_prefix": Call(fm.by_prefix, lambda: {"name": "wolf_0"}, {"name": {"text"}}),
    "by_spec": Call(fm.by_spec, lambda: {"specs": {"wolf_0": 1, "wolf_1": 2}}, {"specs": {"empty dict"}}),
    "the grouping of by_spec": Call(
        fm.by_spec({"text": 1}), lambda: {"name": "text"}, {"name": {"text"}}, words={"name": "spec"}
    ),
    "group_agents": Call(
        fm.group_agents,
        lambda: {"groups": GROUPS, "per_agent": group_data(), "batch_dims": 1, "squeeze_singletons": False},
        {"batch_dims": {"zero", *INTS}, "squeeze_singletons": FLAGS},
    ),
    "ungroup_agents": Call(
        fm.ungroup_agents,
        lambda: {
            "groups": GROUPS,
            "grouped": fm.group_agents(GROUPS, group_data(), 1),
            "batch_dims": 1,
            "squeeze_singletons": False,
        },
        {"squeeze_singletons": FLAGS},
    ),
    "apply_groups": Call(
        fm.apply_groups,
        lambda: {
            "nets": NETS,
            "params": of_groups(),
            "inputs": fm.group_agents(GROUPS, group_data(), 1),
            "key": fm.key(0),
            "state": None,
            "train": False,
            "mutable": False,
            "kwargs": None,
        },
        {"key": KEYS | NONE, "state": NONE, "train": FLAGS, "mutable": FLAGS, "kwargs": NONE},
    ),
    # one-agent networks
    "nets.mlp": Call(
        lambda sizes, activation: nets.mlp(4, sizes, 2, activation=activation),
        lambda: {"sizes": 3, "activation": nn.ReLU},
        {"sizes": INTS},
    ),
    "nets.convnet": Call(
        nets.convnet,
        lambda: {"channels": [3, 4], "kernel": 3, "stride": 1, "padding": 0, "activation": nn.ReLU},
        {"channels": {"tuple"}, "kernel": INTS, "stride": INTS, "padding": {"zero", *INTS}},
    ),
    "nets.gru": Call(nets.gru, lambda: {"inputs": 4, "hidden": 5}, SIZES),
    "nets.lstm": Call(nets.lstm, lambda: {"inputs": 4, "hidden": 5}, SIZES),
    "nets.GRU": Call(nets.GRU, lambda: {"inputs": 4, "hidden": 5}, SIZES),
    "nets.LSTM": Call(nets.LSTM, lambda: {"inputs": 4, "hidden": 5}, SIZES),
    "a call of nets.GRU": Call(
        nets.GRU(4, 5),
        lambda: {"x": torch.ones(2, 7, 4), "h": torch.ones(2, 5), "reset": torch.zeros(2, 7)},
        {"h": NONE, "reset": {"None", "tensor"}},
    ),
    "a call of nets.LSTM": Call(
        nets.LSTM(4, 5),
        lambda: {"x": torch.ones(2, 7, 4), "state": (torch.ones(2, 5), torch.ones(2, 5)), "reset": torch.zeros(2, 7)},
        {"state": NONE, "reset": {"None", "tensor"}},
    ),
}
