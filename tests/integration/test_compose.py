"""Every transform of ``torch.func``, over a table of modules, equals the plain loop."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_map

import functional_marl as fm
from tests.integration.compose_cases import (
    CASES,
    SHARINGS,
    B,
    Bare,
    N,
    Params,
    Subject,
    Tied,
    extra_of,
    floats,
    numbers,
    per_agent,
    same,
    subject,
    weighed,
)

every = pytest.mark.parametrize(("name", "sharing"), [(name, sharing) for name in CASES for sharing in SHARINGS])
# For these "auto" uses the plan, so vmap is tested in addition; for the others it uses vmap.
PLANNED = ("mlp", "convnet", "batchnorm_eval", "layernorm", "dropout", "grucell", "centralized")
each_strategy = pytest.mark.parametrize(
    ("name", "sharing", "strategy"),
    [
        (name, sharing, strategy)
        for name in CASES
        for sharing in SHARINGS
        for strategy in ("auto", *(("vmap",) if name in PLANNED else ()))
    ],
)


def losses(s: Subject) -> tuple[Any, Any]:
    """The loss as a function of the parameters: through the library, and by the loop."""
    return (lambda p: weighed(s.call(p, s.inputs, s.extra))), (lambda p: weighed(s.oracle(p, s.inputs, s.extra)))


def gradient(loss: Any, params: Params) -> Params:
    """By autograd, without ``torch.func``."""
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    return dict(
        zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True), strict=True)
    )


def test_plan_and_vmap_are_both_tested() -> None:
    for name, case in CASES.items():
        mode = "training" if case.flags.get("train") else "evaluation"
        assert (f"plan in {mode}" in fm.tabulate(subject(name).net)) == (name in PLANNED), name


@each_strategy
def test_outputs_and_state(name: str, sharing: str, strategy: str) -> None:
    s = subject(name, sharing, strategy=strategy)
    same(s.call(*s.args), s.oracle(*s.args))


@each_strategy
def test_grad(name: str, sharing: str, strategy: str) -> None:
    s = subject(name, sharing, strategy=strategy)
    ours, plain = losses(s)
    found, value = grad_and_value(ours)(s.params)
    same(found, gradient(plain, s.params))
    same(value, plain(s.params))
    # autograd through the library, and gradients of the inputs
    same(gradient(ours, s.params), found)
    by_input = grad(lambda xs: weighed(s.call(s.params, xs, s.extra)))(s.inputs)
    same(by_input, grad(lambda xs: weighed(s.oracle(s.params, xs, s.extra)))(s.inputs))


@each_strategy
def test_vjp(name: str, sharing: str, strategy: str) -> None:
    s = subject(name, sharing, strategy=strategy)
    outputs, pull, *_ = vjp(lambda p: floats(s.call(p, s.inputs, s.extra)), s.params)
    cotangents = [numbers(*y.shape, seed=k) for k, y in enumerate(outputs)]
    dot = lambda p: sum((y * c).sum() for y, c in zip(floats(s.oracle(p, s.inputs, s.extra)), cotangents, strict=True))
    same(pull(cotangents)[0], gradient(dot, s.params))


@each_strategy
def test_jvp(name: str, sharing: str, strategy: str) -> None:
    s = subject(name, sharing, strategy=strategy)
    tangents = {k: numbers(*v.shape, seed=k_) for k_, (k, v) in enumerate(s.params.items())}
    ours, plain = losses(s)
    value, slope, *_ = jvp(ours, (s.params,), (tangents,))
    same(value, plain(s.params))
    same(slope, sum((g * tangents[k]).sum() for k, g in gradient(plain, s.params).items()))


@each_strategy
def test_jacrev(name: str, sharing: str, strategy: str) -> None:
    s = subject(name, sharing, strategy=strategy)
    found = jacrev(lambda p: floats(s.call(p, s.inputs, s.extra)))(s.params)
    wanted = jacrev(lambda p: floats(s.oracle(p, s.inputs, s.extra)))(s.params)
    same(found, wanted)


# torch.func computes d2/d(weight)d(input) of layer_norm wrongly without vmap: see the test below.
TORCH_IS_WRONG = {("layernorm", "shared"): ("1.weight", "0.")}


@every
def test_hessian(name: str, sharing: str) -> None:
    s = subject(name, sharing)
    ours, plain = losses(s)
    names = list(s.params)
    rows = torch.autograd.functional.hessian(
        lambda *leaves: plain(dict(zip(names, leaves, strict=True))), tuple(s.params.values())
    )
    found = hessian(ours)(s.params)
    skipped = 0
    for a, row in zip(names, rows, strict=True):
        for b, wanted in zip(names, row, strict=True):
            weight, before = TORCH_IS_WRONG.get((name, sharing), ("", ""))
            if a == weight and b.startswith(before):
                skipped += 1
            else:
                same(found[a][b], wanted)
    assert skipped == (2 if (name, sharing) in TORCH_IS_WRONG else 0)


def test_torch_computes_the_hessian_of_layer_norm_wrongly() -> None:
    """If this fails, torch has repaired it: empty ``TORCH_IS_WRONG``. Without ``torch.func`` it is right."""
    x, w = numbers(5, seed=1), numbers(5, seed=2)
    fused = lambda w, x: torch.nn.functional.layer_norm(x, (5,), w).pow(2).sum()
    plain = lambda w, x: (((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()) * w).pow(2).sum()
    mixed = jacrev(jacrev(plain, 0), 1)(w, x)
    assert not torch.allclose(jacrev(jacrev(fused, 0), 1)(w, x), mixed)
    same(torch.autograd.functional.hessian(fused, (w, x))[0][1], mixed)


@each_strategy
def test_gradients_of_each_agent(name: str, sharing: str, strategy: str) -> None:
    """``[n, S, *leaf]``: an agent's loss has a gradient for its own slot only, unless outputs or norms mix agents."""
    s = subject(name, sharing, strategy=strategy)
    ours = lambda p: per_agent(s.call(p, s.inputs, s.extra))
    plain = lambda p: per_agent(s.oracle(p, s.inputs, s.extra))
    each = [gradient(lambda p, i=i: plain(p)[i], s.params) for i in range(N)]
    wanted = {k: torch.stack([g[k] for g in each]) for k in s.params}
    same(jacrev(ours)(s.params), wanted)
    pick = torch.eye(N, dtype=torch.float64)
    same(vmap(grad(lambda p, w: (w * ours(p)).sum()), (None, 0))(s.params, pick), wanted)
    for k, slots in s.net.sharing.items():
        for i in range(N):
            others = [slot for slot in range(slots.n_slots) if slot != slots[i]]
            assert not wanted[k][i, others].any()


@every
def test_populations(name: str, sharing: str) -> None:
    """Seeds x minibatches x agents x batch: two vmaps around apply, and around its gradient."""
    s = subject(name, sharing)
    params = fm.init_params(s.net, fm.split(5, 2), dtype=torch.float64)  # [P, S, *leaf]
    inputs = tree_map(lambda x: torch.stack([torch.stack([x + p - k for k in range(3)]) for p in range(2)]), s.inputs)
    extras = [[extra_of(s.case, s.net, 10 * p + k) for k in range(3)] for p in range(2)]
    extra: Any = tree_map(lambda *leaves: torch.stack(leaves).unflatten(0, (2, 3)), *[e for row in extras for e in row])
    row = lambda tree, *at: tree_map(lambda leaf: leaf[at], tree)

    found = vmap(vmap(s.call, (None, 0, 0)), (0, 0, 0))(params, inputs, extra)
    slope = grad(lambda p, xs, e: weighed(s.call(p, xs, e)))
    slopes = vmap(vmap(slope, (None, 0, 0)), (0, 0, 0))(params, inputs, extra)
    for p in range(2):
        own = fm.init_params(s.net, fm.split(5, 2)[p], dtype=torch.float64)
        same(own, row(params, p), rtol=0, atol=0)
        for k in range(3):
            args = row(inputs, p, k), extras[p][k]
            same(row(found, p, k), s.oracle(own, *args))
            same(row(slopes, p, k), gradient(lambda q, args=args: weighed(s.oracle(q, *args)), own))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", ["mlp", "layernorm", "dropout", "tied", "bare", "centralized"])
def test_vmap_over_the_batch_too(name: str, sharing: str) -> None:
    """The call has one observation ``[n, F]``; vmap adds seeds and batch."""
    s = subject(name, sharing)
    params = fm.init_params(s.net, fm.split(5, 2), dtype=torch.float64)
    keys = fm.split(6, 2 * B).unflatten(0, (2, B))
    extra: Any = {"key": keys} if s.case.keyed else {}
    found = vmap(vmap(lambda p, x, e: s.call(p, (x,), e), (None, 0, 0)), (0, None, 0))(params, s.inputs[0], extra)
    for p in range(2):
        for b in range(B):
            own = {k: v[p] for k, v in params.items()}
            x = s.inputs[0][b : b + 1]
            one = {"key": keys[p, b]} if s.case.keyed else {}
            same(found[p, b], s.oracle(own, (x,), one)[0])


def test_per_sample_and_nested_transforms() -> None:
    s = subject("mlp", "clusters")
    x = numbers(4, N, 4, seed=3)
    per_sample = vmap(grad(lambda p, x: weighed(s.call(p, (x,), {}))), (None, 0))(s.params, x)
    for b in range(4):
        plain = gradient(lambda p, b=b: weighed(s.oracle(p, (x[b : b + 1],), {})), s.params)
        same({k: v[b] for k, v in per_sample.items()}, plain)
    # the Jacobian of the agents' outputs by their inputs is block-diagonal, in forward and reverse mode
    of_x = lambda x: s.call(s.params, (x,), {})
    blocks = jacfwd(of_x)(x[:1])[0, :, :, 0]  # [n, out, n, in]
    same(blocks, jacrev(of_x)(x[:1])[0, :, :, 0])
    for i in range(N):
        one = jacrev(lambda row, i=i: fm.agent_module(s.net, s.params, i)(row))(x[0, i])
        same(blocks[i, :, i], one)
        assert not blocks[i][:, [j for j in range(N) if j != i]].any()


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
@every
def test_without_autograd(name: str, sharing: str, context: Any) -> None:
    s = subject(name, sharing)
    with context():
        found = s.call(*s.args)
        inside = subject(name, sharing)
        again = inside.call(*inside.args)
    wanted = s.oracle(*s.args)
    same(found, wanted)
    same(again, wanted)
    assert not any(leaf.requires_grad for leaf in floats(found))
    assert all(leaf.is_inference() == (context is torch.inference_mode) for leaf in floats(found))


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@every
def test_autocast(name: str, sharing: str, strategy: str) -> None:
    """Equal to the plain loop under autocast, up to the eight bits of bfloat16, with the same dtypes."""
    s = subject(name, sharing, dtype=torch.float32, strategy=strategy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = s.call(*s.args), s.oracle(*s.args)
    same(found, wanted, rtol=0.05, atol=0.05)
    slope = grad(lambda p: weighed(s.call(p, s.inputs, s.extra)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = slope(s.params)
    assert {leaf.dtype for leaf in found.values()} == {torch.float32}


@every
def test_pickle_and_deepcopy(name: str, sharing: str) -> None:
    s = subject(name, sharing)
    wanted = s.oracle(*s.args)
    for net in (pickle.loads(pickle.dumps(s.net)), copy.deepcopy(s.net)):
        twin = Subject(s.case, net, *s.args)
        same(twin.call(*s.args), wanted)
        ours, plain = losses(twin)
        same(grad(ours)(s.params), gradient(plain, s.params))
    net = pickle.loads(pickle.dumps(s.net))
    if "<lambda>" in repr(s.case.build):
        with pytest.raises(fm.StructureError, match="factory could not be pickled"):
            fm.init_params(net, 0)
    else:
        same(fm.init_params(net, 0, dtype=torch.float64), s.params, rtol=0, atol=0)


def test_it_is_the_loop_over_ordinary_modules() -> None:
    """The oracle of these tests, and ``fm.agent_module``, equal plain modules in a handwritten loop."""
    for build in (Tied, Bare):
        net = fm.network(build, N, sharing=[1, 0, 1])
        params = fm.init_params(net, 0)
        x = numbers(B, N, 4, dtype=torch.float32)
        modules = [fm.agent_module(net, params, i) for i in range(N)]
        by_hand = torch.stack([module(x[:, i]) for i, module in enumerate(modules)], 1)
        same(fm.apply(net, params, x), by_hand, rtol=1e-5, atol=1e-6)
        rows = [functional_call(build(), fm.agent_params(net, params, i), x[:, i]) for i in range(N)]
        same(torch.stack(rows, 1), by_hand, rtol=1e-6, atol=1e-7)
    wrong: list[Tensor] = [modules[0](x[:, i]) for i in range(N)]
    with pytest.raises(AssertionError):
        same(fm.apply(net, params, x), torch.stack(wrong, 1), rtol=1e-5, atol=1e-6)
