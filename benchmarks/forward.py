"""Forward passes, forward and backward, and the memory that a forward takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import functional_marl as fm
from benchmarks.baselines import (
    FEATURES,
    OUTPUTS,
    OneMLP,
    TorchrlNet,
    hand_batch_major,
    hand_feature_major,
    hand_plain,
    hand_weights,
    leaves_of,
    loop_of_modules,
    torchrl_mlp,
)
from benchmarks.memory import peak_bytes
from benchmarks.setup import Setup, Size, compiled, graphed, inference, leaf_copies
from benchmarks.timing import Claim, Contest, fastest

__all__ = ["backward", "facade", "forward", "forward_compiled", "large", "memory", "shared", "unlowered"]


def _net(agents: int, width: int, sharing: Any = "independent") -> fm.Network:
    return fm.network(fm.nets.mlp(FEATURES, width, width, OUTPUTS), n_agents=agents, sharing=sharing)


def _name(size: Size) -> str:
    return ",".join(map(str, size))


def _claims(ours: str, other: str, *bounds: float | None) -> list[Claim]:
    return [Claim(ours, other, bound) for bound in bounds]


# --- forward -------------------------------------------------------------------------------------------

# size -> (lower bound of the speed over torchrl's, upper bound of the time over that of kernels by hand)
_FORWARD: dict[Size, tuple[float, float | None]] = {
    (3, 64, 1): (11.0, 1.2),
    (64, 64, 1): (4.0, 1.1),
    (3, 64, 32): (5.0, None),
    (64, 64, 32): (1.5, None),
    (512, 64, 256): (2.5, None),
}


def _best_hand(params: dict[str, Tensor], x: Tensor, device: str) -> Callable[[], Any]:
    weights = hand_weights(params)
    return fastest([inference(hand, weights, x) for hand in (hand_batch_major, hand_feature_major)], device)


def forward(setup: Setup) -> Iterator[Contest]:
    """``no_grad``, each agent with its own parameters."""
    for size in setup.sizes(*_FORWARD):
        agents, width, batch = size
        reference, net = torchrl_mlp(agents, width, device=setup.device), _net(agents, width)
        params, x = leaves_of(reference), setup.randn(batch, agents, FEATURES)
        run = partial(fm.apply, net)
        variants = {
            "torchrl": inference(reference, x),
            "ours": inference(run, params, x),
            "hand": _best_hand(params, x, setup.device),
            "loop": inference(loop_of_modules(params, width), x),
        }
        times, hand = _FORWARD.get(size, (None, None))
        claims = [Claim("ours", "torchrl", times), Claim("ours", "hand", hand, "at most"), Claim("ours", "loop")]
        if size == (512, 64, 256):  # here new memory pages cost as much as the products
            variants["plain hand"] = inference(hand_plain, hand_weights(params), x)
            claims.append(Claim("ours", "plain hand", 0.5, "at most"))
        if setup.cuda:
            variants["ours, graph"] = graphed(variants["ours"])
            variants["torchrl, graph"] = graphed(variants["torchrl"])
            claims += [Claim("ours, graph", "torchrl, graph"), Claim("ours, graph", "torchrl")]
        yield Contest(_name(size), variants, claims, size=size)


def _ahead_of_time(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """One compiled artifact for fixed shapes: no guards at the call except those of the artifact."""
    loose: Any = torch.compile(function, fullgraph=True, dynamic=False)
    return loose.aot_compile((args, {}))


def forward_compiled(setup: Setup) -> Iterator[Contest]:
    """The same under ``torch.compile``, and compiled ahead of time."""
    for size in setup.sizes(*_FORWARD):
        torch._dynamo.reset()
        agents, width, batch = size
        reference, net = torchrl_mlp(agents, width, device=setup.device), _net(agents, width)
        params, x = leaves_of(reference), setup.randn(batch, agents, FEATURES)
        weights = hand_weights(params)

        def ours(params: dict[str, Tensor], x: Tensor, net: fm.Network = net) -> Tensor:
            return fm.apply(net, params, x)

        with torch.no_grad():
            ready = _ahead_of_time(ours, params, x)
        candidates = [compiled(hand_batch_major), compiled(hand_feature_major)]
        for candidate in candidates:
            inference(candidate, weights, x)()
        variants = {
            "torchrl": inference(reference, x),
            "ours": inference(partial(fm.apply, net), params, x),
            "ours, compiled": inference(compiled(ours), params, x),
            "ours, ahead of time": inference(ready, params, x),
            "hand, compiled": fastest([inference(c, weights, x) for c in candidates], setup.device),
            "torchrl, compiled": inference(torch.compile(reference, dynamic=False), x),
        }
        claims = [
            Claim("ours, compiled", "hand, compiled", kind="at most"),
            Claim("ours, compiled", "torchrl, compiled", 0.95),
            Claim("ours, compiled", "torchrl"),
            Claim("ours, compiled", "ours"),
            Claim("ours, ahead of time", "ours, compiled"),
        ]
        if setup.cuda:
            variants["ours, compiled, graph"] = graphed(variants["ours, compiled"])
            claims.append(Claim("ours, compiled, graph", "torchrl"))
        yield Contest(_name(size), variants, claims, size=size)


def facade(setup: Setup) -> Iterator[Contest]:
    """The same through ``fm.nn.MultiAgentMLP``, with both storages of parameters."""
    for size in setup.sizes((3, 64, 1), (3, 64, 32)):
        agents, width, batch = size
        reference = torchrl_mlp(agents, width, device=setup.device)
        nets = {
            name: fm.nn.MultiAgentMLP(
                FEATURES, OUTPUTS, agents, centralized=False, share_params=False, depth=2, num_cells=width,
                device=setup.device, use_td_params=td,
            )
            for name, td in (("ours", True), ("ours, use_td_params=False", False))
        }  # fmt: skip
        nets["ours"].load_state_dict(reference.state_dict())
        flat = leaves_of(reference)
        nets["ours, use_td_params=False"].load_state_dict({f"_empty_net.{k}": leaf for k, leaf in flat.items()})
        x = setup.randn(batch, agents, FEATURES)
        variants = {"torchrl": inference(reference, x)} | {k: inference(net, x) for k, net in nets.items()}
        bound = 9.0 if size == (3, 64, 1) else None
        yield Contest(_name(size), variants, [Claim(k, "torchrl", bound) for k in nets], size=size)


def shared(setup: Setup) -> Iterator[Contest]:
    """All agents share one network: ``no_grad``."""
    for size in setup.sizes((3, 64, 1), (64, 64, 32)):
        agents, width, batch = size
        reference, net = torchrl_mlp(agents, width, True, setup.device), _net(agents, width, "shared")
        params, x = leaves_of(reference), setup.randn(batch, agents, FEATURES)
        weights = [(w[0], b[0]) for w, b in hand_weights(params)]

        def hand(x: Tensor, weights: list[tuple[Tensor, Tensor]] = weights) -> Tensor:
            h = x
            for weight, bias in weights[:-1]:
                h = torch.nn.functional.linear(h, weight, bias).tanh_()
            return torch.nn.functional.linear(h, *weights[-1])

        variants = {
            "torchrl": inference(reference, x),
            "ours": inference(partial(fm.apply, net), params, x),
            "hand": inference(hand, x),
        }
        bound = 5.0 if size == (3, 64, 1) else None
        yield Contest(
            _name(size), variants, [Claim("ours", "torchrl", bound), Claim("ours", "hand", kind="at most")], size=size
        )


def unlowered(setup: Setup) -> Iterator[Contest]:
    """A module with a forward of its own: no plan, ``vmap`` over the functional call."""
    for size in setup.sizes((3, 64, 1), (3, 64, 32)):
        agents, width, batch = size
        reference = TorchrlNet(partial(OneMLP, width), agents).to(setup.device)
        net = fm.network(partial(OneMLP, width), n_agents=agents)
        params, x = leaves_of(reference), setup.randn(batch, agents, FEATURES)
        variants = {"torchrl": inference(reference, x), "ours": inference(partial(fm.apply, net), params, x)}
        bound = 3.0 if size == (3, 64, 1) else None
        yield Contest(_name(size), variants, [Claim("ours", "torchrl", bound)], size=size)


# --- forward and backward ------------------------------------------------------------------------------

_BACKWARD: dict[Size, float] = {(3, 64, 32): 3.0, (64, 64, 32): 1.5, (512, 64, 256): 1.7}


def _gradients(function: Callable[..., Any], leaves: list[Tensor], *args: Any) -> Callable[[], list[Tensor]]:
    """Forward, mean of squares, ``.backward()``: the gradients."""

    def variant() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        function(*args).square().mean().backward()
        grads = [leaf.grad for leaf in leaves]
        return [grad for grad in grads if grad is not None]

    return variant


def _torchrl_leaves(reference: Any) -> list[Tensor]:
    return [leaf for _, leaf in reference.params.flatten_keys(".").items()]


def _backward_contest(setup: Setup, size: Size, bound: float | None) -> Contest:
    agents, width, batch = size
    reference, net = torchrl_mlp(agents, width, device=setup.device), _net(agents, width)
    values, x = leaves_of(reference), setup.randn(batch, agents, FEATURES)
    params, own = leaf_copies(values), leaf_copies(values)
    weights = hand_weights(own)
    candidates = [_gradients(hand, list(own.values()), weights, x) for hand in (hand_batch_major, hand_feature_major)]
    variants = {
        "torchrl": _gradients(reference, _torchrl_leaves(reference), x),
        "ours": _gradients(partial(fm.apply, net), list(params.values()), params, x),
        "hand": fastest(candidates, setup.device),
    }
    claims = [Claim("ours", "torchrl", bound), Claim("ours", "hand", kind="at most")]
    return Contest(_name(size), variants, claims, size=size)


def backward(setup: Setup) -> Iterator[Contest]:
    """Forward and ``.backward()`` to the parameters."""
    for size in setup.sizes(*_BACKWARD):
        yield _backward_contest(setup, size, _BACKWARD.get(size))


# --- large sizes and memory ----------------------------------------------------------------------------


def large(setup: Setup) -> Iterator[Contest]:
    """Sizes at which the products take nearly all the time, in every mode."""
    for size in setup.sizes((8, 512, 512), (64, 256, 512), (3, 1024, 1024), (512, 256, 64)):
        torch._dynamo.reset()
        agents, width, batch = size
        reference, net = torchrl_mlp(agents, width, device=setup.device), _net(agents, width)
        params, x = leaves_of(reference), setup.randn(batch, agents, FEATURES)
        variants = {"torchrl": inference(reference, x), "ours": inference(partial(fm.apply, net), params, x)}
        claims = [Claim("ours", "torchrl", 0.95)]
        if not setup.quick:

            def ours(params: dict[str, Tensor], x: Tensor, net: fm.Network = net) -> Tensor:
                return fm.apply(net, params, x)

            variants["ours, compiled"] = inference(compiled(ours), params, x)
            variants["torchrl, compiled"] = inference(torch.compile(reference, dynamic=False), x)
            claims += [Claim("ours, compiled", "torchrl, compiled", 0.95), Claim("ours, compiled", "torchrl", 0.95)]
        yield Contest(f"forward {_name(size)}", variants, claims, size=size)
        contest = _backward_contest(setup, size, 0.95)
        contest.name = f"forward and backward {_name(size)}"
        yield contest


def memory(setup: Setup) -> Iterator[Contest]:
    """The largest amount that a forward holds besides its input and parameters."""
    for size in setup.sizes((512, 256, 256)):
        agents, width, batch = size
        reference, net = torchrl_mlp(agents, width, device=setup.device), _net(agents, width)
        params, x = leaves_of(reference), setup.randn(batch, agents, FEATURES)
        calls = {"torchrl": inference(reference, x), "ours": inference(partial(fm.apply, net), params, x)}
        variants = {name: partial(peak_bytes, call, setup.device) for name, call in calls.items()}
        for call in calls.values():
            call()
        yield Contest(_name(size), variants, _claims("ours", "torchrl", 30.0), unit="B", size=size)
