"""More laws for modules from anywhere: shapes, structure, purity and compilation."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._pytrees import flatten
from functional_marl.laws.asking import alone, asked
from functional_marl.laws.foreign_subject import Foreign
from functional_marl.laws.host import CheckError, Host, kept, seeded
from functional_marl.laws.law import Broken, agree, broken, differ
from functional_marl.laws.threads import agree_in_threads, agree_in_turns

__all__: list[str] = []


# --- shapes -----------------------------------------------------------------------------------------------


@asked(37, "runs", "a batch", "evaluation", "nothing random")
def batch_is_a_loop(s: Foreign) -> None:
    """y(x)[b] = y(x[b]).

    In evaluation a row of the batch is computed by itself. Not so along time: then say batch_dims=0.
    """
    whole = replace(s, rows=None, leaves=())
    outputs = whole.outputs(seed=0)
    for axis in range(s.host.rows):
        for b in range(min(s.host.batch[axis], 4)):
            index = (*(slice(None),) * axis, slice(b, b + 1))
            try:
                row = whole.at(*index).outputs(seed=0)
            except Exception as error:
                raise CheckError(f"the module takes no batch of one: {type(error).__name__}: {error}") from None
            for i in range(s.n):
                want = [leaf[index] for leaf in outputs[i]]
                try:
                    agree(row[i], want, f"row {b} of batch axis {axis}, agent {i}: output")
                except Broken:
                    if _mixes_rows(whole, index):
                        raise CheckError("one agent's network itself mixes the rows of a batch") from None
                    raise


def _mixes_rows(s: Foreign, index: tuple[slice, ...]) -> bool:
    """Whether the network of one agent, where it is known, already mixes rows."""
    if not s.answers("local") or not s.answers("one agent's network"):
        return False
    try:
        agree(alone(s.at(*index), 0), [leaf[index] for leaf in alone(s, 0)], "")
    except (Broken, CheckError):
        return True
    return False


@asked(37, "runs", "any batch axes", "evaluation", "nothing random")
def batch_axes_are_free(s: Foreign) -> None:
    """y([x, x'])[k] = y of the k-th.

    One more batch axis in front is a loop over it.
    """
    other, host = s.redrawn(s.seed + 1), s.host
    wanted = [host.run(one.leaves, train=False, seed=0) for one in (s, other)]
    try:
        both = host.run([torch.stack(pair) for pair in zip(s.leaves, other.leaves, strict=True)], train=False, seed=0)
    except Exception as error:
        raise CheckError(f"the module takes no further batch axis: {type(error).__name__}: {error}") from None
    for k, want in enumerate(wanted):
        for got, leaf in zip(flatten(both)[0], flatten(want)[0], strict=True):
            agree(got[k], leaf, f"row {k} of one more batch axis: output")


@asked(39, "runs", "a batch", "evaluation")
def empty_batches(s: Foreign) -> None:
    """shape(y(x)) has |B| = 0 where shape(x) has.

    A batch without rows gives outputs without rows, where the module takes it.
    """
    try:
        outputs = s.at(slice(0)).outputs()
    except Exception as error:
        raise CheckError(f"the module takes no empty batch: {type(error).__name__}: {error}") from None
    for i, (got, want) in enumerate(zip(outputs, s.outputs(), strict=True)):
        for leaf, row in zip(got, want, strict=True):
            if list(leaf.shape) != [0, *row.shape[1:]]:
                broken(f"no rows, agent {i}: expected shape {[0, *row.shape[1:]]}, got {list(leaf.shape)}")


@asked(40, "runs", "float inputs", "copies", "evaluation")
def kinds_are_kept(s: Foreign) -> None:
    """dtype(y) = dtype(P) = dtype(x), device(y) = device(x).

    Parameters and inputs in double precision give outputs in double precision.
    """
    host = copy.copy(s.host)
    host.module = copy.deepcopy(s.host.module).double()
    leaves = [leaf.double() if leaf.is_floating_point() else leaf for leaf in s.leaves]
    try:
        output = host.run(leaves, train=False, seed=0)
    except Exception as error:
        raise CheckError(f"the module does not run in float64: {type(error).__name__}: {error}") from None
    for place, leaf in zip(host.out_places, flatten(output)[0], strict=True):
        if leaf.is_floating_point() and leaf.dtype != torch.float64:
            broken(f"{place.name}: expected torch.float64 for inputs and parameters in it, got {leaf.dtype}")
        if leaf.device != leaves[0].device:
            broken(f"{place.name}: expected {leaves[0].device}, got {leaf.device}")


# --- structure --------------------------------------------------------------------------------------------


@asked(33, "runs", "gradients", "evaluation", "nothing random", default=False)
def copies_are_whole(s: Foreign) -> None:
    """y of deepcopy(f) follows the parameters of the copy, and load_state_dict(f.state_dict()) gives y of f.

    A copy computes with its own parameters and with nobody else's.
    """
    wanted = s.outputs()
    host = copy.copy(s.host)
    try:
        host.module = copy.deepcopy(s.host.module)
    except Exception as error:
        broken(f"deepcopy: {type(error).__name__}: {error}")
    twin = replace(s, host=host)
    with torch.no_grad():
        for leaf in host.module.parameters():
            leaf.mul_(0.5).add_(0.25)
    differ(twin.outputs(), wanted, "parameters of a deepcopy changed: its outputs")
    agree(s.outputs(), wanted, "parameters of a deepcopy changed: outputs of the original", exact=True)
    host.module.load_state_dict(s.host.module.state_dict())
    agree(twin.outputs(), wanted, "state_dict loaded into a deepcopy: outputs", exact=True)


@asked(35, "runs", "its factory", "one claim", default=False)
def number_of_parameters(s: Foreign) -> None:
    """|P| = S · |f|.

    A parameter is stored once a slot, a tied weight once for all its names.
    """
    one, slots = _single(s.host), len(set(next(iter(s.claims.values()))))
    sizes = {name: leaf.numel() for name, leaf in one.named_parameters()}
    found = {name: leaf.numel() for name, leaf in s.host.module.named_parameters()}
    if sum(found.values()) != slots * sum(sizes.values()):
        broken(
            f"expected {slots} x {sum(sizes.values())} numbers, for {slots} slots of {sizes}, "
            f"got {sum(found.values())}: {found}"
        )


def _single(host: Host, seed: int = 0) -> nn.Module:
    assert host.single is not None
    with seeded(seed), torch.no_grad():
        net = host.single()
        if any(map(nn.parameter.is_lazy, net.parameters())):
            if host.centralized:
                raise CheckError("one agent's network is lazy, and what it would see is not known")
            args, kwargs = host.rebuild(Foreign(host).seen_by(0))
            net(*args, **kwargs)
        return net


@asked(43, "runs", "its factory", "a reset", default=False)
def a_reset_redraws(s: Foreign) -> None:
    """reset under two seeds gives different P[ℓ] for every ℓ that the network of one agent draws.

    ``reset_parameters`` reaches all that was drawn at the start.
    """
    module, was = s.host.module, [dict(_single(s.host, seed).named_parameters()) for seed in (0, 1)]
    drawn = [name for name, leaf in was[0].items() if not torch.equal(leaf, was[1][name])]
    rows: list[dict[str, Tensor]] = []
    with kept(module):
        for seed in (0, 1):
            with seeded(seed):
                reset: Any = module.reset_parameters
                reset()
            rows.append({name: leaf.detach().clone() for name, leaf in module.named_parameters()})
    for name, leaf in rows[0].items():
        if any(name == one or name.endswith(f".{one}") for one in drawn) and torch.equal(leaf, rows[1][name]):
            broken(f"{name}: drawn at the start, and reset_parameters leaves it as it is")


# --- purity -----------------------------------------------------------------------------------------------


@asked(48, "runs", default=False)
def nothing_is_changed(s: Foreign) -> None:
    """f(x) leaves x, P and, in evaluation, B as they are; an exception in training leaves f as it is.

    Calls write into nothing that was given, and break nothing.
    """
    module, wanted = s.host.module, s.outputs(train=False)
    names = [name for name, _ in module.named_parameters()]
    for train in (False, True):
        with kept(module), seeded(s.seed):
            module.train(train)
            watched = {"inputs": list(s.leaves), "parameters": list(module.parameters())}
            watched |= {} if train else {"buffers": list(module.buffers())}
            watched = {what: [leaf for leaf in some if not leaf.is_meta] for what, some in watched.items()}
            before = {what: [leaf.detach().clone() for leaf in some] for what, some in watched.items()}
            args, kwargs = s.host.rebuild(s.leaves)
            with contextlib.suppress(Exception):
                module(*args, **kwargs)
            for what, some in watched.items():
                agree([leaf.detach() for leaf in some], before[what], f"train={train}: {what}", exact=True)
    try:
        after = s.outputs(train=False)
    except Exception as error:
        broken(f"evaluation after an exception in training: {type(error).__name__}: {error}")
    else:
        agree(after, wanted, "evaluation after training: outputs")
    lost = sorted(set(names) - {name for name, _ in module.named_parameters()})
    if lost:
        broken(f"after an exception in training: the parameters {lost} are gone from the module")


@asked(50, "runs", "evaluation", "nothing random", default=False, cost=4)
def threads_agree(s: Foreign) -> None:
    """y in any thread = y alone.

    Threads that call one module at once get what they would get alone.
    """
    module = s.host.module
    cases = [s.redrawn(s.seed + t) for t in range(4)]
    with kept(module), torch.no_grad():
        module.eval()

        def call(case: Foreign) -> list[Tensor]:
            args, kwargs = s.host.rebuild(case.leaves)
            output = module(*args, **kwargs)
            return flatten(s.host.select(output) if s.host.select else output)[0]

        wanted = [call(case) for case in cases]

        def alone(case: Foreign) -> list[Tensor]:
            with torch.no_grad():
                return call(case)

        calls = [partial(alone, case) for case in cases]
        agree_in_turns(calls[:2])
        agree_in_threads(calls, wanted, rounds=50)


@asked(51, "runs", "evaluation", "nothing random", default=False, cost=100)
def compile_is_eager(s: Foreign) -> None:
    """compile(y) = y.

    ``torch.compile`` (backend aot_eager) gives what eager gives, for these inputs and for others.
    """
    module = s.host.module
    with kept(module), torch.no_grad():
        module.eval()
        torch.compiler.reset()
        compiled: Any = torch.compile(module, backend="aot_eager")
        for case in (s, s.redrawn(s.seed + 1)):
            args, kwargs = s.host.rebuild(case.leaves)
            wanted = flatten(module(*args, **kwargs))[0]
            try:
                got = flatten(compiled(*args, **kwargs))[0]
            except Exception as error:
                broken(f"compiled: expected outputs, got {type(error).__name__}: {' '.join(str(error).split())[:160]}")
            else:
                agree(got, wanted, "compiled: outputs")
