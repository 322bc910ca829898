"""Initialization, construction of the facade, and importing the library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import functional_marl as fm
from benchmarks.baselines import FEATURES, OUTPUTS, OneMLP, TorchrlNet, torchrl_mlp
from benchmarks.memory import peak_bytes
from benchmarks.setup import Setup
from benchmarks.timing import Claim, Contest

__all__ = ["facade_construction", "import_time", "initialization"]


def initialization(setup: Setup) -> Iterator[Contest]:
    """Keyed parameters of 512 agents compared with torchrl's constructor, which samples them too."""
    agents, width = (3, 4) if setup.tiny else (512, 64)
    known = fm.network(fm.nets.mlp(FEATURES, width, width, OUTPUTS), n_agents=agents)
    variants = {
        "torchrl": lambda: torchrl_mlp(agents, width),
        "ours": lambda: fm.init_params(known, 0),
        "ours, with fm.network": lambda: fm.init_params(
            fm.network(fm.nets.mlp(FEATURES, width, width, OUTPUTS), n_agents=agents), 0
        ),
    }
    claims = [Claim("ours", "torchrl", 8.0), Claim("ours, with fm.network", "torchrl")]
    yield Contest(f"{agents} agents, known layers", variants, claims, compared=False, seconds=1.5)

    nets = {"known layers": known}
    for init, bound in (("scaled", 1.5), ("orthogonal", None)):
        build = partial(OneMLP, width, init)
        net = nets[f"arbitrary factory ({init})"] = fm.network(build, n_agents=agents)
        variants = {
            "torchrl": partial(TorchrlNet, build, agents),
            "n modules": lambda build=build: [build() for _ in range(agents)],
            "ours": partial(fm.init_params, net, 0),
        }
        claims = [Claim("ours", "torchrl", bound), Claim("ours", "n modules")]
        name = f"{agents} agents, arbitrary factory ({init})"
        yield Contest(name, variants, claims, compared=False, seconds=1.5)

    for name, net in nets.items():
        size = sum(leaf.nbytes for leaf in fm.init_params(net, 0).values())
        figures = {"ours": partial(peak_bytes, partial(fm.init_params, net, 0)), "parameters": partial(float, size)}
        yield Contest(f"peak, {name}", figures, [Claim("ours", "parameters", 1.05, "at most")], unit="B")


def facade_construction(setup: Setup) -> Iterator[Contest]:
    """``MultiAgentMLP(...)`` under the same seed: bitwise torchrl's parameters."""
    for agents, bound in ((3, None),) if setup.tiny else ((512, 12.0), (3, None)):
        width = 4 if setup.tiny else 64

        def ours(agents: int = agents, width: int = width) -> Any:
            torch.manual_seed(0)
            return fm.nn.MultiAgentMLP(
                FEATURES, OUTPUTS, agents, centralized=False, share_params=False, depth=2, num_cells=width
            )

        def theirs(agents: int = agents, width: int = width) -> Any:
            torch.manual_seed(0)
            return torchrl_mlp(agents, width)

        yield Contest(
            f"{agents} agents",
            {"torchrl": theirs, "ours": ours},
            [Claim("ours", "torchrl", bound)],
            tolerance=0.0,
            seconds=1.5,
            outputs=lambda module: list(module.state_dict().values()),
        )


def _import_seconds(name: str) -> float:
    code = f"import time; began = time.process_time(); import {name}; print(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def import_time(setup: Setup) -> Iterator[Contest]:
    """``import functional_marl`` compared with ``import torch``, each in a new process."""
    variants = {"torch": partial(_import_seconds, "torch"), "ours": partial(_import_seconds, "functional_marl")}
    _import_seconds("functional_marl")  # files are in the page cache from here on
    rounds = 1 if setup.tiny else 5 if setup.quick else 11
    yield Contest(
        "fresh process", variants, [Claim("ours", "torch", 1.1, "at most")], rounds=rounds, unit="s, own clock"
    )
