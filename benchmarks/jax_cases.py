"""Comparison with jitted JAX: ``vmap`` of the same MLP, in an environment of its own (``make bench-jax``).

JAX runs in a child process that waits while ours is timed, and times itself at a command: the two take
turns a block of calls at a time, as all variants do.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import functional_marl as fm
from benchmarks.baselines import FEATURES, OUTPUTS, hand_batch_major, hand_weights
from benchmarks.setup import ROOT, Setup, compiled, inference
from benchmarks.timing import Claim, Contest, Measured

__all__ = ["NoJax", "contests", "geometric_means"]

_SIZES = ((3, 64, 1), (3, 64, 32), (64, 64, 1), (64, 64, 32), (512, 64, 256), (64, 256, 32))


class NoJax(Exception):
    """There is no environment with JAX."""


class _Worker:
    """The child process, and what was last sent to it."""

    def __init__(self) -> None:
        python = Path(os.environ.get("BENCH_JAX_PYTHON", ROOT / ".venv-jax" / "bin" / "python"))
        if not python.exists():
            raise NoJax(f"no {python}; make bench-jax creates it")
        self.folder = tempfile.TemporaryDirectory()
        command = [str(python), str(Path(__file__).with_name("jax_worker.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, **command: Any) -> dict[str, Any]:
        """Send one command and wait for the reply."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError("the JAX process ended; its error is above")
        return json.loads(answer)

    def give(self, params: dict[str, Tensor], x: Tensor) -> dict[str, list[Tensor]]:
        """Parameters and input; the outputs and the gradients by JAX."""
        path = Path(self.folder.name) / "given.npz"
        np.savez(path, x=x.numpy(), **{f"p{k}": leaf.numpy() for k, leaf in enumerate(params.values())})
        out = np.load(self.send(set=str(path))["out"])
        names = ("forward", "gradient", "tanh", "product")
        return {n: [torch.from_numpy(out[k]) for k in out.files if k.startswith(n)] for n in names}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.folder.cleanup()


class _Remote:
    """A variant that times itself in the child process."""

    def __init__(self, worker: _Worker, what: str, outputs: list[Tensor]) -> None:
        self.worker, self.what, self.outputs = worker, what, outputs

    def __call__(self) -> list[Tensor]:
        """JAX's outputs for the input."""
        return self.outputs

    def seconds(self, calls: int) -> float:
        """Seconds per call, by the child's clock."""
        return self.worker.send(time=self.what, calls=calls)["seconds"]


def contests(setup: Setup) -> Iterator[Contest]:
    """Forward and gradient at six sizes."""
    worker = _Worker()
    try:
        for size in setup.sizes(*_SIZES):
            yield from _at(setup, worker, size)
    finally:
        worker.close()


def _at(setup: Setup, worker: _Worker, size: tuple[int, int, int]) -> Iterator[Contest]:
    torch._dynamo.reset()
    agents, width, batch = size
    net = fm.network(fm.nets.mlp(FEATURES, width, width, OUTPUTS), n_agents=agents)
    params, x = fm.init_params(net, 0), torch.randn(batch, agents, FEATURES)
    theirs = worker.give(params, x)
    name = ",".join(map(str, size))

    def ours(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return fm.apply(net, params, x)

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return fm.apply(net, params, x).square().mean()

    def gradient(params: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return torch.func.grad(loss)(params, x)

    whole: Any = torch.compile(ours, fullgraph=True, dynamic=False)
    with torch.no_grad():
        ready = whole.aot_compile(((params, x), {}))
    variants: dict[str, Any] = {
        "jax": _Remote(worker, "forward", theirs["forward"]),
        "ours, eager": inference(ours, params, x),
        "ours, compiled": inference(whole, params, x),
        "ours, ahead of time": inference(ready, params, x),
        "hand, compiled": inference(compiled(hand_batch_major), hand_weights(params), x),
    }
    claims = [Claim(ours, "jax", kind="at most") for ours in list(variants)[1:]]
    yield Contest(f"forward {name}", variants, claims, size=size)
    gradients = compiled(gradient)
    variants = {
        "jax": _Remote(worker, "gradient", theirs["gradient"]),
        "ours, compiled": lambda: list(gradients(params, x).values()),
    }
    yield Contest(f"gradient {name}", variants, [Claim("ours, compiled", "jax", kind="at most")], size=size)
    # Single operations without this library: torch's compared with XLA's.
    weight = list(params.values())[2]
    parts = {"tanh": torch.tanh, "product": lambda weight: weight @ weight}
    for part, operation in parts.items() if size == (64, 64, 32) else ():
        variants = {"jax": _Remote(worker, part, theirs[part]), "torch": inference(operation, weight)}
        yield Contest(f"{part} of {list(weight.shape)}", variants, [Claim("torch", "jax", kind="at most")])


def geometric_means(results: Sequence[Measured]) -> list[Measured]:
    """Over the sizes: the gradient by plain compile, and the forward by its best variant (one for all sizes)."""
    means: list[Measured] = []
    variants = list(dict.fromkeys((m.contest.split()[0], m.claim.ours) for m in results if m.size))
    for what, ours in variants:
        own = [m for m in results if m.size and m.contest.startswith(what) and m.claim.ours == ours]
        mean, low, high = (
            math.exp(statistics.fmean(math.log(v) for v in values))
            for values in zip(*[(m.ratio, m.low, m.high) for m in own], strict=True)
        )
        bound = 1.0 if what == "gradient" else None
        means.append(
            Measured("jax", f"{what}, geometric mean", Claim(ours, "jax", bound, "at most"),
                     statistics.fmean(m.ours for m in own), statistics.fmean(m.other for m in own),
                     mean, low, high, min(m.rounds for m in own), "s", ())
        )  # fmt: skip
    forwards = [m for m in means if m.contest.startswith("forward") and m.claim.ours.startswith("ours")]
    if forwards:
        best = min(forwards, key=lambda m: m.ratio)
        index = means.index(best)
        means[index] = Measured(**{**vars(best), "claim": Claim(best.claim.ours, "jax", 1.0, "at most")})
    return means
