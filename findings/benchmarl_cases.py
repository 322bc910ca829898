"""The models of BenchMARL, built from their own configurations, each with the claims that BenchMARL makes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from benchmarl.models import CnnConfig, DeepsetsConfig, GnnConfig, GruConfig, LstmConfig, MlpConfig, SequenceModelConfig
from case import Case, checked
from tensordict import TensorDict
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, GraphConv
from torchrl.data import Composite, Unbounded

N, B, T = 3, 2, 2

MLP = {"mlp_num_cells": [8], "mlp_layer_class": nn.Linear, "mlp_activation_class": nn.Tanh}
RNN = {"hidden_size": 5, "bias": True, "compile": False, **MLP}
CONV = {
    "cnn_num_cells": [4],
    "cnn_kernel_sizes": 3,
    "cnn_strides": 1,
    "cnn_paddings": 0,
    "cnn_activation_class": nn.Tanh,
}
DEEP = {
    "aggr": "sum",
    "local_nn_num_cells": [8],
    "local_nn_activation_class": nn.Tanh,
    "out_features_local_nn": 6,
    "global_nn_num_cells": [8],
    "global_nn_activation_class": nn.Tanh,
}


def _model(config: Any, shape: tuple[int, ...], share: bool, joint: bool) -> nn.Module:
    """A model for observations of this shape for one agent."""
    whole = joint and share
    return config.get_model(
        input_spec=Composite(agents=Composite(observation=Unbounded(shape=(N, *shape)), shape=(N,))),
        output_spec=Composite(value=Unbounded(shape=(2,)))
        if whole
        else Composite(agents=Composite(action=Unbounded(shape=(N, 2)), shape=(N,))),
        agent_group="agents",
        input_has_agent_dim=True,
        n_agents=N,
        centralised=joint,
        share_params=share,
        device="cpu",
        action_spec=Composite(),
    )


def _example(lead: tuple[int, ...], shape: tuple[int, ...], more: dict[Any, Tensor]) -> TensorDict:
    given = {("agents", "observation"): torch.zeros(*lead, N, *shape), **more}
    return TensorDict(given, batch_size=lead[:1])  # pyright: ignore


class Pair(nn.Module):
    """Two agents: two models, of which the first shares its parameters with the second by ``share_params_with``."""

    def __init__(self, share: bool) -> None:
        super().__init__()
        self.models = nn.ModuleList(_model(_configs()["Mlp"][0], (6,), share, False) for _ in range(2))
        first: Any = self.models[0]
        first.share_params_with(self.models[1])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 2, n, F]``: one model for each of the two."""
        rows = [
            model(_example((len(x),), (6,), {}).set(("agents", "observation"), x[:, k]))["agents", "action"]
            for k, model in enumerate(self.models)
        ]
        return torch.stack(rows, 1)


def _configs() -> dict[str, tuple[Any, tuple[int, ...]]]:
    mlp = MlpConfig(num_cells=[8], layer_class=nn.Linear, activation_class=nn.Tanh)
    return {
        "Mlp": (mlp, (6,)),
        "Cnn": (CnnConfig(**CONV, **MLP), (5, 5, 2)),
        "Deepsets": (DeepsetsConfig(**DEEP), (4, 3)),
        "Deepsets, without sets": (DeepsetsConfig(**DEEP), (6,)),
        "Gru": (GruConfig(n_layers=1, dropout=0.0, **RNN), (6,)),
        "Gru, two layers, dropout": (GruConfig(n_layers=2, dropout=0.5, **RNN), (6,)),
        "Lstm": (LstmConfig(n_layers=1, dropout=0.0, **RNN), (6,)),
        "Lstm, two layers, dropout": (LstmConfig(n_layers=2, dropout=0.5, **RNN), (6,)),
    }


def _graphs() -> Iterator[Case]:
    """Graph networks over all agents or over none, and sequences of models with and without one."""
    mlp = MlpConfig(num_cells=[8], layer_class=nn.Linear, activation_class=nn.Tanh)
    full, empty = ({"topology": kind, "self_loops": True} for kind in ("full", "empty"))
    gat, conv = GnnConfig(gnn_class=GATv2Conv, **full), GnnConfig(gnn_class=GraphConv, **full)
    configs: list[tuple[str, str, Any, bool]] = [
        ("Gnn", "topology='full', GATv2Conv", gat, True),
        ("Gnn", "topology='full', GraphConv", conv, True),
        ("Gnn", "topology='empty', GATv2Conv", GnnConfig(gnn_class=GATv2Conv, **empty), False),
        ("SequenceModel", "Mlp, Mlp", SequenceModelConfig([mlp, mlp], [5]), False),
        ("SequenceModel", "Mlp, Gnn, Mlp", SequenceModelConfig([mlp, conv, mlp], [5, 4]), True),
    ]
    for (name, about, config, talks), share, joint in itertools.product(configs, (True, False), (False, True)):
        if name == "SequenceModel" and joint and talks:
            continue  # after a centralised first model there are no agents for a graph
        # An agent's own graph network sees all agents: it is centralized. In a shared one agents exchange messages, and
        # between the networks of a sequence messages pass, too.
        own = talks and not share and name == "Gnn"
        yield (
            name,
            f"{about}, share_params={share}{', centralised' if joint else ''}",
            checked(
                lambda config=config, share=share, joint=joint: _model(config, (6,), share, joint),
                _example((B,), (6,), {}),
                n_agents=N,
                sharing="shared" if share else "independent",
                centralized=joint or own,
                communication=talks and not joint and not own,
                agent_dim={"agents": {"observation": -2}},
                out_agent_dim=None if share and joint else -2,
                examples=4,
            ),
        )


def cases() -> Iterator[Case]:
    """Every case: the class, a description, and a function that runs the check."""
    for (name, (config, shape)), share, joint in itertools.product(_configs().items(), (True, False), (False, True)):
        if name.startswith("Deepsets,") and not joint:
            continue  # without centralised=True, deep sets need sets
        recurrent = config.is_rnn
        example = _example((B, T), shape, {"is_init": torch.zeros(B, T, 1, dtype=torch.bool)}) if recurrent else None
        dims: Any = {"agents": {"observation": -1 - len(shape)}} | ({"is_init": None} if recurrent else {})
        sharing: Any = "shared" if share else "independent"
        if name == "Deepsets" and joint and not share:
            # Documented: with sets, a centralised model is two deep sets. Each agent has its own first one, which
            # reads that agent's sets; the second pools their outputs over agents. So each agent trains all first ones.
            sharing = {"local_deepsets.*": "shared", "*": "independent"}
        how: dict[str, Any] = {
            "n_agents": N,
            "sharing": sharing,
            "centralized": joint,
            "agent_dim": dims,
            "out_agent_dim": None if share and joint else -2,
            "example": _example((B,), shape, {}) if example is None else example,
            "randomness": "different" if "dropout" in name else None,
            "examples": 4,
        }
        words = f"share_params={share}{', centralised' if joint else ''}{', with dropout' if 'dropout' in name else ''}"
        build = lambda config=config, shape=shape, share=share, joint=joint: _model(config, shape, share, joint)  # noqa: E731
        yield (
            name.split(",")[0],
            words + (", without sets" if "without" in name else ""),
            checked(build, **how),
        )
        if recurrent and not (share and joint) and "dropout" not in name:
            layers = config.n_layers
            names = ["_hidden_gru_0"] if name.startswith("Gru") else ["_hidden_lstm_c_0", "_hidden_lstm_h_0"]
            hidden = {("agents", key): torch.zeros(B, N, layers, 5) for key in names}
            step = _example((B,), shape, {"is_init": torch.zeros(B, 1, dtype=torch.bool), **hidden})
            at = {"agents": {"observation": 1, **dict.fromkeys(names, 1)}, "is_init": None}
            one = {**how, "example": step, "agent_dim": at}
            yield name.split(",")[0], f"{words}, one step", checked(build, **one)
    yield from _graphs()
    for share in (True, False):
        yield (
            "Model",
            f"share_params_with, share_params={share}",
            checked(
                lambda share=share: Pair(share),
                torch.zeros(B, 2, N, 6),
                n_agents=2,
                sharing="shared",
                agent_dim=1,
                examples=4,
            ),
        )
