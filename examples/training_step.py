"""Fast training steps on explicit parameters, in three recipes that give the same numbers.

1. **Eager**: ``loss.backward()``, and torch's fused Adam as a function, ``torch.optim.adam.adam``. At 3 agents
   ``Optimizer.step`` takes 100 us more for the same kernel, a third of the whole step. Gradients come from
   ``.backward()``, which gives them the memory layout of their leaves, and not from ``torch.autograd.grad`` or
   ``torch.func.grad``. Some of those are not contiguous (that of a weight used transposed), and the fused Adam on
   the CPU then updates the wrong numbers without an error. If you pass gradients yourself, make them
   ``.contiguous()``.
2. **Compiled**: forward, gradient and Adam in one ``torch.compile(fullgraph=True)`` call. ``.backward()`` and
   ``torch.optim`` do not compile into one graph, so Adam is written over the dict in plain operations. The step
   count is a tensor: a Python number would be compiled into the graph, again at each step.
3. **Population**: several seeds at once. Their agents are the slots of one larger network (24 agents for 8 seeds of
   3), whose products are large enough for a kernel. The losses of the seeds are summed, so that each seed has the
   gradient, and therefore the Adam update, that it would have alone; a mean would divide it.

    python examples/training_step.py
    python examples/training_step.py --agents 64 --rounds 50
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam as torch_adam

import functional_marl as fm

Params = dict[str, Tensor]
Loss = Callable[[Params, Tensor, Tensor], Tensor]
Step = Callable[[Tensor, Tensor], Tensor]  # one step on a batch: x [B, n, F], y [B, n, F_out] -> the loss

FEATURES, WIDTH, OUTPUTS = 16, 64, 4
RATE = 1e-3


class AdamState(NamedTuple):
    """The state of Adam: the number of steps, and the running means of gradients and of their squares."""

    steps: Tensor
    mean: Params
    square: Params


def adam_init(params: Params) -> AdamState:
    """The state before the first step."""
    some = next(iter(params.values()))
    zeros = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    return AdamState(some.new_zeros(()), zeros, {name: leaf.clone() for name, leaf in zeros.items()})


def adam(
    params: Params, grads: Params, state: AdamState, rate: float, beta1: float = 0.9, beta2: float = 0.999
) -> tuple[Params, AdamState]:
    """One step of Adam (Kingma & Ba, 2015) as in ``torch.optim.Adam``; nothing is written in place."""
    steps = state.steps + 1
    mean = {k: torch.lerp(m, grads[k], 1 - beta1) for k, m in state.mean.items()}
    square = {k: beta2 * s + (1 - beta2) * grads[k] * grads[k] for k, s in state.square.items()}
    size, root = rate / (1 - beta1**steps), (1 - beta2**steps).sqrt()
    new = {k: leaf - size * mean[k] / (square[k].sqrt() / root + 1e-8) for k, leaf in params.items()}
    return new, AdamState(steps, mean, square)


def plain_step(loss: Loss, params: Params, rate: float = RATE) -> Step:
    """The usual code: ``torch.optim.Adam`` on copies of ``params``."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=rate)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(leaves, x, y)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def eager_step(loss: Loss, params: Params, rate: float = RATE) -> Step:
    """A step on copies of ``params`` by torch's fused Adam, called as a function."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    values = list(leaves.values())
    means, squares = ([torch.zeros_like(leaf) for leaf in values] for _ in range(2))
    steps = [torch.zeros((), device=leaf.device) for leaf in values]
    rule = partial(torch_adam, lr=rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)

    def step(x: Tensor, y: Tensor) -> Tensor:
        for leaf in values:
            leaf.grad = None
        value = loss(leaves, x, y)
        value.backward()
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in values]
        with torch.no_grad():
            rule(values, grads, means, squares, [], steps, fused=True, amsgrad=False, maximize=False)
        return value.detach()

    return step


def compiled_step(loss: Loss, params: Params, rate: float = RATE) -> Step:
    """A step in one graph: the parameters and Adam's state are inputs and outputs."""

    def pure(params: Params, state: AdamState, x: Tensor, y: Tensor) -> tuple[Params, AdamState, Tensor]:
        grads, value = torch.func.grad_and_value(loss)(params, x, y)
        return *adam(params, grads, state, rate), value

    compiled = torch.compile(pure, fullgraph=True)
    params, state = dict(params), adam_init(params)

    def step(x: Tensor, y: Tensor) -> Tensor:
        nonlocal params, state
        params, state, value = compiled(params, state, x, y)
        return value

    return step


def squared_error(net: fm.Network) -> Loss:
    """Mean over batch, agents and outputs."""
    return lambda params, x, y: F.mse_loss(fm.apply(net, params, x), y)


def summed_over_seeds(net: fm.Network, seeds: int) -> Loss:
    """The sum over seeds of each seed's mean loss: ``[B, seeds * n, F]``, with a seed's agents side by side."""

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        error = (fm.apply(net, params, x) - y).square()
        return error.unflatten(1, (seeds, -1)).mean((0, 2, 3)).sum()

    return loss


def network(agents: int) -> fm.Network:
    """The network of the example: three linear layers per agent."""
    return fm.network(fm.nets.mlp(FEATURES, WIDTH, WIDTH, OUTPUTS), n_agents=agents)


def folded(populations: Sequence[Params]) -> Params:
    """The slots of several independent networks, one after the other: ``[S, *leaf]`` each to ``[P * S, *leaf]``."""
    return {name: torch.cat([params[name] for params in populations]) for name in populations[0]}


def batch_of(agents: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random inputs ``[B, n, F]`` and targets ``[B, n, F_out]``."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, agents, FEATURES, generator=generator),
        torch.randn(size, agents, OUTPUTS, generator=generator),
    )


def compare(first: Step, second: Step, batch: tuple[Tensor, Tensor], steps: int) -> None:
    """Check that two recipes give the same losses. Each loss after the first depends on all updates before it."""
    for number in range(steps):
        ours, other = second(*batch), first(*batch)
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5, msg=lambda m, n=number: f"step {n}: {m}")


def median_ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """How many times longer ``first`` takes: both run in turns, and the median ratio of the rounds counts."""
    ratios: list[float] = []
    for turn in range(rounds):
        seconds = dict[Callable[[], object], float]()
        for step in (first, second) if turn % 2 else (second, first):
            began = time.process_time()  # does not count waiting for a busy core
            for _ in range(10):
                step()
            seconds[step] = time.process_time() - began
        ratios.append(seconds[first] / seconds[second])
    return statistics.median(ratios)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the recipes against each other, time them, and return the exit code."""
    parser = argparse.ArgumentParser(description="Fast training steps on explicit parameters.")
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=8, help="seeds in the population (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of timing (default: %(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # faster for small networks

    net, batch = network(options.agents), batch_of(options.agents, options.batch, seed=0)
    params, loss = fm.init_params(net, 0), squared_error(net)
    plain, eager = plain_step(loss, params), eager_step(loss, params)
    compiled = compiled_step(loss, params)
    compare(plain, eager, batch, steps=5)
    compare(eager_step(loss, params), compiled, batch, steps=5)
    print(f"{options.agents} agents, batch {options.batch}: the same losses over 5 steps by every recipe")
    for name, step in (("eager, fused Adam as a function", eager), ("compiled", compiled)):
        ratio = median_ratio(lambda: plain(*batch), lambda step=step: step(*batch), options.rounds)
        print(f"  {name}: {ratio:.2f} times as fast as eager with torch's default Adam")

    # Each seed has its own parameters and data; the joint network has the same numbers.
    starts = [fm.init_params(net, seed) for seed in range(options.seeds)]
    batches = [batch_of(options.agents, options.batch, seed) for seed in range(options.seeds)]
    apart = [eager_step(loss, start) for start in starts]
    many = network(options.seeds * options.agents)
    together = compiled_step(summed_over_seeds(many, options.seeds), folded(starts))
    x, y = (torch.cat(parts, 1) for parts in zip(*batches, strict=True))

    def one_by_one(x: Tensor, y: Tensor) -> Tensor:
        steps = zip(apart, batches, strict=True)
        return torch.stack([step(*own) for step, own in steps]).sum()

    compare(one_by_one, together, (x, y), steps=5)
    ratio = median_ratio(lambda: one_by_one(x, y), lambda: together(x, y), options.rounds)
    print(f"{options.seeds} seeds: the same losses over 5 steps, at once and one by one")
    print(f"  at once: {ratio:.2f} times as fast as one by one, eager with fused Adam")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
