"""Benchmarks of recurrent and convolutional networks, and of clusters of agents that share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.modules import MultiAgentConvNet

import functional_marl as fm
from benchmarks.baselines import FEATURES, OUTPUTS, hand_weights, leaves_of
from benchmarks.memory import peak_bytes
from benchmarks.setup import Setup, inference, leaf_copies
from benchmarks.timing import Claim, Contest, fastest

__all__ = ["clusters", "clusters_memory", "convnet", "gru"]


def _gradients(function: Callable[..., Tensor], leaves: list[Tensor], *args: Any) -> Callable[[], list[Tensor]]:
    def variant() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        function(*args).square().mean().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    return variant


def gru(setup: Setup) -> Iterator[Contest]:
    """``fm.nets.gru`` for 64 agents, hidden size 8, batch 16, against a loop over one ``nn.GRU`` for each agent."""
    agents, hidden, batch = (3, 4, 2) if setup.tiny else (64, 8, 16)
    for steps in (2,) if setup.tiny else (10, 32):
        net = fm.network(fm.nets.gru(hidden, hidden), n_agents=agents, agent_dim=1)
        values = {k: v.to(setup.device) for k, v in fm.init_params(net, 0).items()}
        params = leaf_copies(values)
        x = setup.randn(batch, agents, steps, hidden)
        modules = [nn.GRU(hidden, hidden, batch_first=True).to(setup.device) for _ in range(agents)]
        for agent, module in enumerate(modules):
            module.load_state_dict({f"{k}_l0": leaf[agent] for k, leaf in values.items()})
        theirs = [list(leaves) for leaves in zip(*[module.parameters() for module in modules], strict=True)]

        def loop(x: Tensor, modules: list[nn.GRU] = modules) -> Tensor:
            return torch.stack([module(x[:, agent])[0] for agent, module in enumerate(modules)], 1)

        def ours(params: dict[str, Tensor], x: Tensor, net: fm.Network = net) -> Tensor:
            return fm.apply(net, params, x)[0]

        flat = [leaf for leaves in theirs for leaf in leaves]

        def stacked(output: Any, agents: int = agents) -> Any:
            if not isinstance(output, list) or len(output) == 4:
                return output
            return [torch.stack(output[k : k + agents]) for k in range(0, len(output), agents)]

        name = f"{agents},{hidden},{batch}, {steps} steps"
        yield Contest(
            f"forward {name}",
            {"loop of nn.GRU": inference(loop, x), "ours": inference(ours, values, x)},
            [Claim("ours", "loop of nn.GRU")],
        )
        yield Contest(
            f"forward and backward {name}",
            {"loop of nn.GRU": _gradients(loop, flat, x), "ours": _gradients(ours, list(params.values()), params, x)},
            [Claim("ours", "loop of nn.GRU", 3.0)],
            outputs=stacked,
        )


def convnet(setup: Setup) -> Iterator[Contest]:
    """Two convolutions of kernel 3, against torchrl's ``MultiAgentConvNet``."""
    image, channels = (6, 2) if setup.tiny else (16, 16)
    for agents, batch in ((2, 2),) if setup.tiny else ((8, 32), (64, 32)):
        reference: Any = MultiAgentConvNet(
            agents,
            centralized=False,
            share_params=False,
            in_features=3,
            num_cells=[channels, channels],
            kernel_sizes=3,
            strides=1,
            device=torch.device(setup.device),
        )
        net = fm.network(fm.nets.convnet([3, channels, channels]), n_agents=agents, agent_dim=-4, out_agent_dim=-2)
        ours = partial(fm.apply, net)
        names = list(net.param_shapes)
        values = dict(zip(names, leaves_of(reference).values(), strict=True))
        params = leaf_copies(values)
        x = setup.randn(batch, agents, 3, image, image)
        leaves = [leaf for _, leaf in reference.params.flatten_keys(".").items()]
        bounds = (1.7, 1.5) if agents == 8 else (None, None)
        yield Contest(
            f"forward, {agents} agents, batch {batch}",
            {"torchrl": inference(reference, x), "ours": inference(ours, values, x)},
            [Claim("ours", "torchrl", bounds[0])],
        )
        yield Contest(
            f"forward and backward, {agents} agents, batch {batch}",
            {"torchrl": _gradients(reference, leaves, x), "ours": _gradients(ours, list(params.values()), params, x)},
            [Claim("ours", "torchrl", bounds[1])],
            tolerance=1e-3,
        )


# --- clusters ------------------------------------------------------------------------------------------


def _slot_maps(agents: int, slots: int) -> dict[str, list[int]]:
    """Equal clusters, and ragged clusters of about 1/2, 1/4, 1/8, ... of the agents. The agents are shuffled."""
    order = torch.randperm(agents, generator=torch.Generator().manual_seed(0)).tolist()
    equal, ragged = [0] * agents, [0] * agents
    for place, agent in enumerate(order):
        equal[agent] = place * slots // agents
        ragged[agent] = min(
            slots - 1, next(k for k in range(agents) if place < agents - agents / 2 ** (k + 1) or k == slots - 1)
        )
    return {"equal": equal, "ragged": ragged}


def _gathering(params: dict[str, Tensor], x: Tensor, index: Tensor, feature_major: bool, plain: bool = False) -> Tensor:
    """Copy the weights of its slot to every agent, then compute one batched product for each layer.

    ``plain``: copy by ``weight[index]``, the usual code, which is slower than ``index_select``.
    """
    h = x.permute(1, 2, 0) if feature_major else x.transpose(0, 1)
    weights = hand_weights(params)
    for k, (weight, bias) in enumerate(weights):
        w, b = (weight[index], bias[index]) if plain else (weight.index_select(0, index), bias.index_select(0, index))
        h = torch.baddbmm(b.unsqueeze(2), w, h) if feature_major else torch.baddbmm(b.unsqueeze(1), h, w.mT)
        h = h.tanh_() if k + 1 < len(weights) else h
    return h.permute(2, 0, 1) if feature_major else h.transpose(0, 1)


def _one_product_a_slot(params: dict[str, Tensor], x: Tensor, order: Tensor, slots: int) -> Tensor:
    """The necessary products alone, for equal clusters: agents sorted by slot, one product for each slot and layer."""
    h = x.transpose(0, 1).index_select(0, order)  # [n, B, F]
    agents, batch, _ = h.shape
    h = h.reshape(slots, agents // slots * batch, -1)
    weights = hand_weights(params)
    for k, (weight, bias) in enumerate(weights):
        h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
        h = h.tanh_() if k + 1 < len(weights) else h
    return h.reshape(agents, batch, -1).index_select(0, order.argsort()).transpose(0, 1)


def clusters(setup: Setup) -> Iterator[Contest]:
    """128 agents in 4 slots, width 256, batch 8, against copying the weights to every agent."""
    agents, slots, width, batch = (6, 2, 4, 2) if setup.tiny else (128, 4, 256, 8)
    for name, sharing in _slot_maps(agents, slots).items():
        net = fm.network(fm.nets.mlp(FEATURES, width, width, OUTPUTS), n_agents=agents, sharing=sharing)
        values = {k: v.to(setup.device) for k, v in fm.init_params(net, 0).items()}
        index, x = torch.tensor(sharing, device=setup.device), setup.randn(batch, agents, FEATURES)
        gather = [partial(_gathering, index=index, feature_major=major) for major in (False, True)]
        plain = partial(_gathering, index=index, feature_major=False, plain=True)
        ours = partial(fm.apply, net)
        params, own = leaf_copies(values), leaf_copies(values)
        sizes = "+".join(str(sharing.count(slot)) for slot in range(slots))
        variants = {
            "gather": fastest([inference(g, values, x) for g in gather], setup.device),
            "gather by [index]": inference(plain, values, x),
            "ours": inference(ours, values, x),
        }
        claims = [Claim("ours", "gather", 9.0), Claim("ours", "gather by [index]")]
        if name == "equal":  # compare with the products alone
            order = index.argsort(stable=True)
            variants["hand"] = inference(partial(_one_product_a_slot, order=order, slots=slots), values, x)
            claims.append(Claim("ours", "hand", kind="at most"))
        yield Contest(f"forward, {name} ({sizes})", variants, claims)
        leaves = list(own.values())
        yield Contest(
            f"forward and backward, {name} ({sizes})",
            {
                "gather": fastest([_gradients(g, leaves, own, x) for g in gather], setup.device),
                "gather by [index]": _gradients(plain, leaves, own, x),
                "ours": _gradients(ours, list(params.values()), params, x),
            },
            [Claim("ours", "gather", 7.0), Claim("ours", "gather by [index]")],
        )


def clusters_memory(setup: Setup) -> Iterator[Contest]:
    """Memory of the weights and of a forward, against one shared network on the same rows: no weights are copied."""
    agents, slots, width, batch = (6, 2, 4, 2) if setup.tiny else (128, 4, 256, 8)
    build = fm.nets.mlp(FEATURES, width, width, OUTPUTS)
    alone = fm.network(build, n_agents=agents, sharing="shared")
    for name, sharing in _slot_maps(agents, slots).items():
        net = fm.network(build, n_agents=agents, sharing=sharing)
        params, x = fm.init_params(net, 0), torch.randn(batch, agents, FEATURES)
        one = {k: leaf[:1].clone() for k, leaf in params.items()}
        stored = sum(leaf.nbytes for leaf in params.values())
        index = torch.tensor(sharing)
        forwards = {
            "ours": inference(partial(fm.apply, net), params, x),
            "one network": inference(partial(fm.apply, alone), one, x),
            "gather": inference(partial(_gathering, index=index, feature_major=False), params, x),
        }
        for forward in forwards.values():
            forward()
        variants = {
            key: partial(lambda forward, stored: stored + peak_bytes(forward), forward, stored)
            for key, forward in forwards.items()
        }
        claims = [Claim("ours", "one network", 1.1, "at most"), Claim("ours", "gather")]
        yield Contest(name, variants, claims, unit="B")
