"""``torch.export``, strict and not, equals the plain loop; parameters are inputs of the program, not constants."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

import functional_marl as fm
from tests.integration.compose_cases import CASES, SHARINGS, N, Subject, extra_of, floats, numbers, same, subject

SOME = [(name, SHARINGS[k % 4]) for k, name in enumerate(CASES)]
OTHERS = [(name, SHARINGS[(k + 2) % 4]) for k, name in enumerate(CASES)]


class Applied(nn.Module):
    """A module without parameters: ``torch.export`` takes modules only."""

    def __init__(self, s: Subject) -> None:
        super().__init__()
        self.s = s

    def forward(self, params: dict[str, Tensor], inputs: tuple[Tensor, ...], extra: dict[str, Any]) -> Any:
        return self.s.call(params, inputs, extra)


# Strict export warns that functional_call sets tensors on the module and removes them again.
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize(
    ("name", "sharing", "strict"), [*((n, s, True) for n, s in SOME), *((n, s, False) for n, s in OTHERS)]
)
def test_export(name: str, sharing: str, strict: bool) -> None:
    s = subject(name, sharing)
    program = torch.export.export(Applied(s), s.args, strict=strict)
    same(program.module()(*s.args), s.oracle(*s.args))
    # other values: the program keeps none of the first ones
    params = fm.init_params(s.net, 1, dtype=torch.float64)
    args = params, tuple(x + 1 for x in s.inputs), extra_of(s.case, s.net, 1)
    same(program.module()(*args), s.oracle(*args))
    assert not program.state_dict
    assert not floats(program.constants)
    kinds = {spec.kind.name for spec in program.graph_signature.input_specs}
    assert kinds <= {"USER_INPUT", "CONSTANT_TENSOR"}


# Not in training: torch's batching rules for batch_norm, and a keyed mask, depend on the sizes.
@pytest.mark.parametrize(
    ("name", "sharing"),
    [(n, s) for n, s in [*OTHERS, ("mlp", "shared"), ("mlp", "per_leaf")] if not CASES[n].flags.get("train")],
)
def test_export_any_batch_size(name: str, sharing: str) -> None:
    s = subject(name, sharing)
    batch = torch.export.Dim("batch", min=2)
    shapes: Any = tree_map(lambda _: None, s.args)
    shapes[2].update(tree_map(lambda _: {0: batch}, {k: v for k, v in s.extra.items() if k == "kwargs"}))
    inputs = tuple(None if k in s.case.whole else {0: batch} for k in range(len(s.inputs)))
    program = torch.export.export(Applied(s), s.args, strict=False, dynamic_shapes=(shapes[0], inputs, shapes[2]))
    for size in (2, 5, 19):
        args = resized(s, size)
        same(program.module()(*args), s.oracle(*args))


def resized(s: Subject, batch: int) -> tuple[Any, Any, Any]:
    """The arguments with another batch size and new values."""
    sized = lambda x: numbers(batch, *x.shape[1:], seed=batch)
    inputs = tuple(x if k in s.case.whole else sized(x) for k, x in enumerate(s.inputs))
    return s.params, inputs, {k: tree_map(sized, v) if k == "kwargs" else v for k, v in s.extra.items()}


def test_export_saves() -> None:
    s = subject("dropout", "clusters")
    file = io.BytesIO()
    torch.export.save(torch.export.export(Applied(s), s.args, strict=False), file)
    file.seek(0)
    same(torch.export.load(file).module()(*s.args), s.oracle(*s.args))


def test_export_of_one_agent_for_a_robot() -> None:
    s = subject("batchnorm_eval", "clusters")
    for i in range(N):
        module = fm.agent_module(s.net, s.params, i, s.extra["state"])
        program = torch.export.export(module, (s.inputs[0][:, i],))
        same(program.module()(s.inputs[0][:, i]), s.oracle(*s.args)[:, i])


# Tracing uses fake tensors, and the library must not cache one of them for later calls. Each test below has a sharing
# that no other test uses, so that the traced call is the first to need its indices.


def clusters(*slots: int) -> tuple[fm.Network, dict[str, Tensor], Tensor]:
    net = fm.network(fm.nets.mlp(4, 5, 2), len(slots), sharing=slots)
    return net, fm.init_params(net, 0, dtype=torch.float64), numbers(2, len(slots), 4)


def by_hand(net: fm.Network, params: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.stack([fm.agent_module(net, params, i)(x[:, i]) for i in range(net.n_agents)], 1)


def test_export_leaves_nothing_behind() -> None:
    net, params, x = clusters(3, 0, 1, 2, 1)

    class Plain(nn.Module):
        def forward(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
            return fm.apply(net, params, x)

    program = torch.export.export(Plain(), (params, x), strict=False)
    found = fm.apply(net, params, x)
    assert type(found) is Tensor
    same(found, by_hand(net, params, x))
    same(program.module()(params, x), found)


def test_fake_tensors_leave_nothing_behind() -> None:
    net, params, x = clusters(3, 1, 1, 2, 0)
    for _ in range(2):
        with FakeTensorMode() as mode:
            fake = fm.apply(net, {k: mode.from_tensor(v) for k, v in params.items()}, mode.from_tensor(x))
        assert fake.shape == (2, 5, 2)
        found = fm.apply(net, params, x)
        assert type(found) is Tensor
        same(found, by_hand(net, params, x))


@pytest.mark.parametrize(("mode", "slots"), [("real", (3, 1, 2, 1, 0)), ("fake", (0, 3, 1, 2, 1))])
def test_make_fx(mode: Any, slots: tuple[int, ...]) -> None:
    net, params, x = clusters(*slots)
    traced = make_fx(lambda p, x: fm.apply(net, p, x), tracing_mode=mode)(params, x)
    other = {k: v + 1 for k, v in params.items()}
    same(traced(other, x), by_hand(net, other, x))
    same(fm.apply(net, params, x), by_hand(net, params, x))


class Called(nn.Module):
    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


class Passes(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return y, x, x * y


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("strict", [True, False])
def test_inputs_may_be_outputs(strict: bool, dim: int) -> None:
    net = fm.network(Passes, N, agent_dim=dim, strategy="vmap")
    x = numbers(*(N if k == dim else 2 + k for k in range(3)))
    program = torch.export.export(Called(lambda x: fm.apply(net, {}, x, 2 * x)), (x,), strict=strict)
    same(program.module()(x), (2 * x, x, 2 * x * x))


def test_a_traced_loop_samples_nothing_under_same() -> None:
    """Each agent's random operation would be a node of its own."""
    x = torch.ones(2, N, 4)
    for build in (lambda: nn.Dropout(0.5), lambda: nn.Softsign()):
        net = fm.network(build, N, randomness="same", strategy="loop")
        module = Called(lambda x, net=net: fm.apply(net, {}, x, train=True))
        if build().__class__ is nn.Softsign:
            same(torch.export.export(module, (x,), strict=False).module()(x), x / 2)
            continue
        with pytest.raises(fm.RandomnessError, match=r'randomness="same": a traced loop .*give apply a key='):
            torch.export.export(module, (x,), strict=False)
        with pytest.raises(fm.RandomnessError, match=r'randomness="same": a traced loop .*give apply a key='):
            make_fx(module)(x)


def test_inference_mode_leaves_nothing_behind() -> None:
    net, params, x = clusters(2, 1, 3, 1, 0)
    with torch.inference_mode():
        fm.apply(net, params, x)
    leaves = {k: v.requires_grad_() for k, v in params.items()}
    slopes = torch.autograd.grad(fm.apply(net, leaves, x).sum(), list(leaves.values()))
    same(slopes, torch.autograd.grad(rows(net, leaves, x).sum(), list(leaves.values())))


def rows(net: fm.Network, params: dict[str, Tensor], x: Tensor) -> Tensor:
    agents = fm.unstack_agents(net, params)
    hidden = [torch.tanh(x[:, i] @ p["0.weight"].T + p["0.bias"]) for i, p in enumerate(agents)]
    return torch.stack([h @ p["2.weight"].T + p["2.bias"] for h, p in zip(hidden, agents, strict=True)], 1)
