"""Wrong calls of every public name of ``functional_marl.nn``, and the name that each error must contain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import functional_marl as fm
import functional_marl.nn

__all__ = ["CALLS", "Call"]

Call = tuple[str, Callable[[dict[str, Any]], Any], str]
CALLS: list[Call] = []
fmnn: Any = functional_marl.nn  # the types are wrong on purpose

X = torch.zeros(5, 3, 4)
MLP: dict[str, Any] = {
    "n_agent_inputs": 4,
    "n_agent_outputs": 2,
    "n_agents": 3,
    "centralized": False,
    "share_params": False,
    "depth": 1,
    "num_cells": 4,
}
CNN: dict[str, Any] = {
    "n_agents": 3,
    "centralized": False,
    "share_params": False,
    "in_features": 2,
    "num_cells": [3, 4],
    "kernel_sizes": 3,
    "strides": 1,
}


def wrong(name: str, call: Callable[[dict[str, Any]], Any], names: str) -> None:
    """Add a call of one of ``objects()``; the error must contain ``names``."""
    CALLS.append((name, call, names))


def each(what: str, make: Callable[..., Any], usual: dict[str, Any], table: dict[str, list[Any]]) -> None:
    """Add one wrong value of one argument after the other."""
    for argument, values in table.items():
        for value in values:
            given = {**usual, argument: value}
            shown = f"{what}({argument}={value!r})"
            wrong(shown, lambda _, make=make, given=given: make(**given), argument.split("_class")[0])


class Own(fmnn.MultiAgentNetBase):
    """A subclass as users write it, with hooks that return given values."""

    def __init__(self, one: Any = None, checked: Any = "inputs", **how: Any) -> None:
        self.one, self.checked = one, checked
        usual: dict[str, Any] = {"n_agents": 3, "centralized": False, "share_params": True, "agent_dim": -2}
        super().__init__(**{**usual, "device": None, **how})

    def _build_single_net(self, *, device: Any, **kwargs: Any) -> Any:
        return nn.Linear(4, 2) if self.one is None else self.one

    def _pre_forward_check(self, inputs: Any) -> Any:
        return inputs if self.checked == "inputs" else self.checked


class OwnMixer(fmnn.Mixer):
    def __init__(self, out: Any = "mean", **how: Any) -> None:
        usual: dict[str, Any] = {"n_agents": 3, "needs_state": False, "state_shape": (), "device": None}
        super().__init__(**{**usual, **how})
        self.out = out

    def mix(self, chosen_action_value: Any, state: Any) -> Any:
        return chosen_action_value.mean(-2) if self.out == "mean" else self.out


def objects() -> dict[str, Any]:
    """The objects to call, new for each call; the test compares them before and after."""
    torch.manual_seed(0)
    net = fm.network(nn.Linear(4, 2), n_agents=3)
    mlp = fmnn.MultiAgentMLP(**MLP)
    return {
        "mlp": mlp,
        "shared": fmnn.MultiAgentMLP(**{**MLP, "share_params": True}),
        "joint": fmnn.MultiAgentMLP(**{**MLP, "centralized": True}),
        "lazy": fmnn.MultiAgentMLP(**{**MLP, "n_agent_inputs": None}),
        "cnn": fmnn.MultiAgentConvNet(**CNN),
        "own": Own(),
        "saved": dict(mlp.state_dict()),
        "net": net,
        "params": fm.init_params(net, 0),
        "vdn": fmnn.VDNMixer(3, "cpu"),
        "qmix": fmnn.QMixer((4,), 8, 3, "cpu"),
        "critic": fmnn.CrossGroupCritic(groups(), d_model=4, trunk_depth=1, trunk_cells=4),
    }


def groups(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"obs_dim": 4, "n_agents": 2, "obs_key": ("a", "observation"), "value_key": ("a", "value")}
    return {"a": fmnn.CrossCriticGroupSpec(**{**spec, **changes})}


# --- constructors -------------------------------------------------------------------------------------------

SIZES: list[Any] = [-1, 2.5, "4", [4], True, np.float64(4)]
CLASSES: list[Any] = ["relu", 3, nn.ReLU()]
FLAGS: list[Any] = ["yes", 2, [], torch.ones(2)]
each(
    "MultiAgentMLP",
    fmnn.MultiAgentMLP,
    MLP,
    {
        "n_agent_inputs": SIZES,
        "n_agent_outputs": [-1, 2.5, "4", True, np.float64(4)],
        "n_agents": [0, None, *SIZES],
        "centralized": [None, *FLAGS],
        "share_params": [None, 3, 1, "none", [0, 0], [0, 0, -1], {"9.*": "shared"}, [0.0, 1.0, 2.0], 0.5, {}],
        "depth": SIZES,
        "num_cells": [-1, 2.5, "8", [8, 8], [-1], ["8"], {8}],
        "activation_class": CLASSES,
        "norm_class": CLASSES,
        "layer_class": CLASSES,
        "norm_kwargs": ["a", [{}, {}], [3], 3],
        "activation_kwargs": ["a", [{}, {}], 3],
        "layer_kwargs": [[{}], 3],
        "dropout": [1.5, -1, "a", True],
        "device": ["nowhere", 1.5],
        "use_td_params": FLAGS,
        "vmap_randomness": ["maybe", None, 3],
        "sharing": ["shared"],
        "hidden": [3],
    },
)
each(
    "MultiAgentConvNet",
    fmnn.MultiAgentConvNet,
    CNN,
    {
        "n_agents": [0, None, *SIZES],
        "centralized": [None, *FLAGS],
        "share_params": [None, 3, "none", [0, 0]],
        "in_features": [0, *SIZES],
        "num_cells": [4, [-1, 2], ["3", 4], 2.5, "34"],
        "kernel_sizes": [0, -1, 2.5, "33", [3], [3, (3, "3")]],
        "strides": [0, -1, 1.5, [1], "11"],
        "paddings": [-1, 1.5, [1], "no"],
        "activation_class": CLASSES,
        "aggregator_class": CLASSES,
        "aggregator_kwargs": [3, "a"],
        "device": ["nowhere"],
        "vmap_randomness": ["maybe"],
        "hidden": [3],
    },
)
each(
    "MLP",
    fmnn.MLP,
    {"in_features": 4, "out_features": 2, "depth": 1},
    {
        "in_features": SIZES,
        "out_features": [None, -1, 2.5, "4", (2, -1), (2, "a")],
        "depth": SIZES,
        "num_cells": [[3, 4], "8", [2.5]],
        "activation_class": [None, *CLASSES],
        "layer_class": [None, "Linear"],
        "device": ["nowhere"],
    },
)
each(
    "ConvNet",
    fmnn.ConvNet,
    {"in_features": 4, "num_cells": [2]},
    {
        "in_features": [0, *SIZES],
        "depth": [0, 2, *SIZES],
        "kernel_sizes": [0, 2.5, "3"],
        "norm_class": CLASSES,
        "norm_kwargs": [[], 3],
        "activation_class": [None, *CLASSES],
    },
)
each("SquashDims", fmnn.SquashDims, {}, {"ndims_in": [0, *SIZES]})
each(
    "MultiAgentNetBase",
    Own,
    {},
    {"agent_dim": [None, 1.5, "a", True, [1]], "n_agents": [0, *SIZES], "centralized": [None, "no"]},
)
each(
    "Mixer", OwnMixer, {}, {"n_agents": [0, None, *SIZES], "needs_state": FLAGS, "state_shape": [-1, "4", (2, -1), 2.5]}
)
each("VDNMixer", fmnn.VDNMixer, {"n_agents": 3, "device": "cpu"}, {"n_agents": [0, None, *SIZES]})
each(
    "QMixer",
    fmnn.QMixer,
    {"state_shape": 4, "mixing_embed_dim": 8, "n_agents": 3, "device": "cpu"},
    {
        "state_shape": [0, -1, 2.5, "4", (4, -1), None],
        "mixing_embed_dim": [0, None, *SIZES],
        "n_agents": [0, None, *SIZES],
        "device": ["nowhere"],
    },
)
each(
    "CrossCriticGroupSpec",
    fmnn.CrossCriticGroupSpec,
    {"obs_dim": 4, "n_agents": 2, "obs_key": "a", "value_key": "b"},
    {"obs_dim": [0, *SIZES], "n_agents": [0, *SIZES], "obs_key": [None, 3, (), ("a", 1)], "value_key": [None, ["a"]]},
)
each(
    "CrossGroupCritic",
    fmnn.CrossGroupCritic,
    {"group_map": groups()},
    {
        "group_map": [None, {}, [1], {"a": 3}, {3: groups()["a"]}, {"a.b": groups()["a"]}, "a"],
        "d_model": [0, *SIZES],
        "trunk_depth": SIZES,
        "trunk_cells": [0, *SIZES],
        "activation_class": CLASSES,
        "share_params": FLAGS,
        "detach_groups": ["a", ["b"], 3],
        "device": ["nowhere"],
    },
)
for one in (None, 3, "net", nn.Linear, [nn.Linear(4, 2)]):
    if one is not None:
        wrong(f"_build_single_net -> {one!r}", lambda _, one=one: Own(one), "_build_single_net")
wrong(
    "the base alone",
    lambda _: fmnn.MultiAgentNetBase(n_agents=3, centralized=False, share_params=True, agent_dim=-2, device=None),
    "_build_single_net",
)

# --- calls ----------------------------------------------------------------------------------------------------

for which in ("mlp", "shared", "joint", "lazy", "own"):
    for label, inputs, names in (
        ("nothing", (), "inputs"),
        ("None", (None,), "inputs"),
        ("a list", ([[1.0]],), "inputs"),
        ("an array", (np.zeros((5, 3, 4)),), "inputs"),
        ("a dict", ({"x": X},), "inputs"),
        ("2 agents", (X[:, :2],), "3"),
        ("one axis", (torch.zeros(4),), "4"),
        ("unequal batches", (X[..., :2], X[:4, :, 2:]), "inputs"),
        ("a tensor and a number", (X, 3), "inputs"),
        ("no axis", (torch.tensor(1.0), torch.tensor(1.0)), "inputs"),
        ("a keyword", "keyword", "extra"),
    ):
        wrong(
            f"{which}({label})",
            lambda o, which=which, inputs=inputs: o[which](X, extra=1) if inputs == "keyword" else o[which](*inputs),
            names,
        )
for which in ("mlp", "shared", "joint", "own"):
    wrong(f"{which}(5 features)", lambda o, which=which: o[which](torch.zeros(5, 3, 5)), "5")
wrong("cnn(3 axes)", lambda o: o["cnn"](torch.zeros(2, 9, 9)), "3 agents")
wrong("cnn(2 agents)", lambda o: o["cnn"](torch.zeros(2, 2, 9, 9)), "3 agents")
wrong("cnn(None)", lambda o: o["cnn"](None), "inputs")
wrong("_pre_forward_check -> None", lambda _: Own(checked=None)(X), "_pre_forward_check")
wrong("_pre_forward_check -> 3", lambda _: Own(checked=3)(X), "_pre_forward_check")
wrong("agent_dim=5", lambda _: Own(agent_dim=5)(X), "5")
wrong("agent_dim=-7", lambda _: Own(agent_dim=-7)(X), "-7")
wrong("MLP()(no tensor)", lambda _: fmnn.MLP(in_features=4, out_features=2)(), "inputs")

# --- parameters, checkpoints, functional ----------------------------------------------------------------------

for given in (None, {}, 3, "net"):
    wrong(f"from_stateful_net({given!r})", lambda o, given=given: o["mlp"].from_stateful_net(given), "stateful_net")
wrong("from_stateful_net(another)", lambda o: o["mlp"].from_stateful_net(nn.Linear(4, 2)), "stateful_net")
wrong("from_stateful_net(shared)", lambda o: o["mlp"].from_stateful_net(o["shared"].get_stateful_net()), "[3, 4, 4]")
wrong("from_stateful_net(slots)", lambda o: o["shared"].from_stateful_net(o["mlp"].get_stateful_net()), "[4, 4]")
wrong("functional() of a lazy one", lambda o: o["lazy"].functional(), "lazy")
wrong("vmap_func_module(None)", lambda o: o["mlp"].vmap_func_module(None), "module")
wrong("load_state_dict(shared)", lambda o: o["mlp"].load_state_dict(o["shared"].state_dict()), "convert_state_dict")
wrong("load_state_dict(less)", lambda o: o["mlp"].load_state_dict({}), "params.0.weight")
for net in (None, nn.Linear(4, 2), {}, 3):
    wrong(f"from_functional({net!r})", lambda o, net=net: fmnn.from_functional(net, o["params"]), "net")
for params in (None, {}, [], {"weight": None}, {"weight": torch.zeros(3, 2, 4)}, {"bias": 3}):
    wrong(f"from_functional(params={params!r})", lambda o, p=params: fmnn.from_functional(o["net"], p), "params")
wrong("from_functional(state=)", lambda o: fmnn.from_functional(o["net"], o["params"], {"a": X}), "state")
wrong("from_functional(state=3)", lambda o: fmnn.from_functional(o["net"], o["params"], 3), "state")
wrong(
    "from_functional(use_td_params=)",
    lambda o: fmnn.from_functional(o["net"], o["params"], use_td_params="no"),
    "use_td_params",
)
for state in (None, 3, [], "a", {}, {3: X}, {"weight": X}, {"params.0.weight": X}, {"params.0.weight": None}):
    wrong(f"convert_state_dict({state!r:.30})", lambda o, s=state: fmnn.convert_state_dict(s, o["mlp"]), "state_dict")
for module in (None, nn.Linear(4, 2), "net", fmnn.MultiAgentMLP):
    wrong(
        f"convert_state_dict(module={module!r:.30})",
        lambda o, m=module: fmnn.convert_state_dict(o["saved"], m),
        "module",
    )
for key, values in {"merge": ["sum", None], "prefix": [None, 3, "other."], "sharing": ["none", 3, [0, 0]]}.items():
    for value in values:
        wrong(
            f"convert_state_dict({key}={value!r})",
            lambda o, k=key, v=value: fmnn.convert_state_dict(o["saved"], o["shared"], **{k: v}),
            key,
        )
wrong(
    "convert_state_dict(merge=, nothing to merge)",
    lambda o: fmnn.convert_state_dict(o["saved"], o["mlp"], merge="sum"),
    "merge",
)
wrong("convert_state_dict(lazy)", lambda o: fmnn.convert_state_dict(o["saved"], o["lazy"]), "lazy")
wrong("convert_state_dict(unequal)", lambda o: fmnn.convert_state_dict(o["saved"], o["shared"]), "merge")

# --- mixers, critics, groups ----------------------------------------------------------------------------------

V = torch.zeros(5, 3, 1)
for which, label, inputs, names in (
    ("vdn", "nothing", (), "values"),
    ("vdn", "None", (None,), "inputs"),
    ("vdn", "a list", ([1.0],), "inputs"),
    ("vdn", "a state too", (V, X), "state"),
    ("vdn", "2 agents", (V[:, :2],), "3"),
    ("vdn", "no last axis", (V[..., 0],), "3"),
    ("qmix", "nothing", (), "state"),
    ("qmix", "no state", (V,), "state"),
    ("qmix", "None", (V, None), "inputs"),
    ("qmix", "another state", (V, torch.zeros(5, 3)), "state"),
    ("qmix", "another batch", (V, torch.zeros(4, 4)), "batch"),
    ("qmix", "2 agents", (V[:, :2], torch.zeros(5, 4)), "3"),
):
    wrong(f"{which}({label})", lambda o, which=which, inputs=inputs: o[which](*inputs), names)
wrong("Mixer.mix not given", lambda _: fmnn.Mixer(3, False, (), None)(V), "mix")
wrong("Mixer.mix -> 3", lambda _: OwnMixer(3)(V), "mix")
wrong("Mixer.mix -> another shape", lambda _: OwnMixer(torch.zeros(5, 3))(V), "mix")
for label, inputs, names in (
    ("nothing", (), "groups"),
    ("3 agents", (torch.zeros(5, 3, 4),), "'a'"),
    ("5 features", (torch.zeros(5, 2, 5),), "'a'"),
    ("None", (None,), "'a'"),
):
    wrong(f"critic({label})", lambda o, inputs=inputs: o["critic"].module(*inputs), names)
for given, agents in (
    (None, ["a"]),
    ([], ["a"]),
    ({"g": "a"}, ["a"]),
    ({"g": ["a"]}, None),
    ({"g": ["a"]}, "a"),
    ({"g": ["a"]}, []),
    ({"g": ["a", "b"]}, ["a"]),
    ({"g": ["a"], "h": []}, ["a", "b"]),
    ({3: ["a"]}, ["a"]),
    ({"g": [3]}, ["a"]),
    ({"g": {"a"}}, ["a"]),
    ({"g": ["a", "a"]}, ["a", "b"]),
):
    wrong(
        f"check_marl_grouping({given}, {agents})",
        lambda _, g=given, n=agents: fmnn.check_marl_grouping(g, n),
        "group|names",
    )
for kind in fmnn.MarlGroupMapType:
    for names in (None, "ab", {"a"}, [1, 2], 3):
        wrong(f"{kind.name}.get_group_map({names!r})", lambda _, k=kind, n=names: k.get_group_map(n), "names")
for value in (0, 3, "all", None):
    wrong(f"MarlGroupMapType({value!r})", lambda _, v=value: fmnn.MarlGroupMapType(v), "MarlGroupMapType")
