"""The JAX side, run by its own interpreter. It reads commands from stdin and answers, one JSON object per line.

It imports nothing of this project. ``{"set": file.npz}`` gives parameters and input and answers with
``{"out": file.npz}``; ``{"time": name, "calls": n}`` answers ``{"seconds": per call}``, where name is ``forward``,
``gradient``, or ``tanh`` or ``product`` of the second weights alone, ``[n, H, H]``.
"""

import json
import os
import sys
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"
if hasattr(os, "sched_setaffinity"):  # one thread: XLA starts one for each core that it sees
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np


def mlp(params, x):
    """One agent's network: ``[B, F] -> [B, F_out]``."""
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight.T + bias)
    weight, bias = params[-1]
    return x @ weight.T + bias


forward = jax.vmap(mlp, in_axes=(0, 1), out_axes=1)  # [B, n, F] -> [B, n, F_out]


def loss(params, x):
    """The mean of squares."""
    return jnp.mean(forward(params, x) ** 2)


def main():
    """Answer until stdin ends."""
    functions = {
        "forward": jax.jit(forward),
        "gradient": jax.jit(jax.grad(loss)),
        "tanh": jax.jit(lambda params, x: jnp.tanh(params[1][0])),
        "product": jax.jit(lambda params, x: params[1][0] @ params[1][0]),
    }
    params = x = None
    for line in sys.stdin:
        command = json.loads(line)
        if "set" in command:
            given = np.load(command["set"])
            leaves = [jnp.asarray(given[f"p{k}"]) for k in range(len(given.files) - 1)]
            params, x = list(zip(leaves[::2], leaves[1::2], strict=True)), jnp.asarray(given["x"])
            outputs = {name: jax.tree.leaves(function(params, x)) for name, function in functions.items()}
            arrays = {f"{name}{k}": np.asarray(leaf) for name, out in outputs.items() for k, leaf in enumerate(out)}
            path = command["set"] + ".out.npz"
            np.savez(path, **arrays)
            answer = {"out": path, "jax": jax.__version__}
        else:
            function = functions[command["time"]]
            jax.block_until_ready(function(params, x))
            began = time.process_time()
            for _ in range(command["calls"]):
                jax.block_until_ready(function(params, x))
            answer = {"seconds": (time.process_time() - began) / command["calls"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
