"""Snapshots: every module is afterwards what it was, to the bit, whatever its forward did."""

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

import functional_marl as fm
from functional_marl.laws._network_module import as_module
from functional_marl.laws._restore import Snapshot, kept
from tests.laws.check_cases import X, ours, torchrl_mlp

NAN = float("nan")


class Plain:
    """An object that is no module."""

    def __init__(self) -> None:
        self.h, self.seen = torch.zeros(2), [1]


class Slotted:
    __slots__ = ("h", "later")

    def __init__(self) -> None:
        self.h = torch.zeros(2)


class Keeper(nn.Module):
    """Holds one of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.gain = nn.Parameter(torch.ones(2))
        self.register_buffer("state", torch.tensor([0.0, -0.0, NAN]))
        self.register_buffer("nothing", None)
        self.last: Any = None
        self.plain, self.slotted, self.hidden = Plain(), Slotted(), [nn.Linear(2, 2)]
        self.h, self.table = torch.zeros(3), {"x": torch.zeros(2), "deep": {"list": [[1], {2}]}}
        self.array, self.queue, self.names = np.zeros(3), deque([1, 2], maxlen=2), {"a"}
        self.counts, self.order, self.many = Counter("aab"), OrderedDict(a=1, b=2), defaultdict(list[int], a=[1])
        self.pair = (torch.zeros(2), [3])
        self.rng, self.python, self.numpy = torch.Generator(), random.Random(0), np.random.default_rng(0)
        self.old = np.random.RandomState(0)
        self.td = TensorDict({"h": torch.zeros(2), "sub": {"i": torch.zeros(1, dtype=torch.int64)}}, [])


def write(tensor: Tensor) -> None:
    tensor.data.add_(1)


CHANGES: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "a parameter's numbers": (lambda m: write(m.gain), ["parameter gain"]),
    "a parameter of a part": (lambda m: write(m.net[0].weight), ["parameter net.0.weight"]),
    "another parameter": (lambda m: setattr(m, "gain", nn.Parameter(torch.zeros(2))), ["parameter gain"]),
    "no parameter": (lambda m: delattr(m.net[0], "bias"), ["parameter net.0.bias"]),
    "a parameter more": (lambda m: m.register_parameter("w", nn.Parameter(torch.ones(1))), ["parameter w"]),
    "a parameter without storage": (lambda m: m.gain.untyped_storage().resize_(0), ["parameter gain"]),
    "other data": (lambda m: setattr(m.gain, "data", torch.zeros(2)), ["parameter gain"]),
    "double": (lambda m: m.double(), ["parameter net.0.weight", "buffer state"]),
    "another shape": (lambda m: m.net[0].weight.data.t_(), []),
    "a resized buffer": (lambda m: m.state.resize_(100), ["buffer state"]),
    "not a number": (lambda m: m.gain.data.fill_(NAN), ["parameter gain"]),
    "the sign of zero": (lambda m: m.state.neg_(), ["buffer state"]),
    "frozen": (lambda m: m.gain.requires_grad_(False), ["requires_grad of gain"]),
    "a gradient": (lambda m: m.gain.sum().backward(), ["gradient of gain"]),
    "a buffer": (lambda m: m.net[1].running_mean.add_(1), ["buffer net.1.running_mean"]),
    "another buffer": (lambda m: setattr(m, "state", torch.ones(3)), ["buffer state"]),
    "a buffer of a graph": (lambda m: m.state.add_(m.gain.sum()), ["buffer state", "requires_grad of state"]),
    "a buffer for None": (lambda m: setattr(m, "nothing", torch.ones(3)), ["buffer nothing"]),
    "a buffer more": (lambda m: m.net[0].register_buffer("b", torch.ones(1)), ["buffer net.0.b"]),
    "training": (lambda m: m.eval(), ["attribute training", "attribute net.1.training"]),
    "another submodule": (lambda m: setattr(m, "net", nn.Identity()), ["submodule net"]),
    "a submodule more": (lambda m: m.add_module("other", nn.Identity()), ["submodule other"]),
    "a hook": (lambda m: m.net.register_forward_hook(print), ["hooks net._forward_hooks"]),
    "an attribute": (lambda m: setattr(m, "last", 0.1 * m.gain.mean()), ["attribute last"]),
    "a new attribute": (lambda m: setattr(m.net[0], "new", 1), ["attribute net.0.new"]),
    "no attribute": (lambda m: delattr(m, "h"), ["attribute h"]),
    "a plain tensor": (lambda m: m.h.add_(1), ["attribute h"]),
    "a dict": (lambda m: m.table.update(y=1), ["attribute table['y']"]),
    "a tensor in a dict": (lambda m: m.table["x"].add_(1), ["attribute table['x']"]),
    "a set in depth": (lambda m: m.table["deep"]["list"][1].add(9), ["attribute table['deep']['list'][1]"]),
    "a list in depth": (lambda m: m.table["deep"]["list"][0].clear(), ["attribute table['deep']['list'][0]"]),
    "a deque": (lambda m: m.queue.append(3), ["attribute queue"]),
    "a set": (lambda m: m.names.add("b"), ["attribute names"]),
    "a counter": (lambda m: m.counts.update("a"), ["attribute counts['a']"]),
    "an ordered dict": (lambda m: m.order.move_to_end("a"), []),
    "a default dict": (lambda m: m.many["b"], ["attribute many['b']"]),
    "a list in a tuple": (lambda m: m.pair[1].append(4), ["attribute pair[1]"]),
    "a tensor in a tuple": (lambda m: m.pair[0].add_(1), ["attribute pair[0]"]),
    "an object": (lambda m: setattr(m.plain, "h", torch.ones(2)), ["attribute plain.h"]),
    "a list of an object": (lambda m: m.plain.seen.append(2), ["attribute plain.seen"]),
    "a slot": (lambda m: setattr(m.slotted, "h", torch.ones(2)), ["attribute slotted.h"]),
    "an empty slot": (lambda m: setattr(m.slotted, "later", 1), ["attribute slotted.later"]),
    "a tensor of a slot": (lambda m: m.slotted.h.add_(1), ["attribute slotted.h"]),
    "a hidden module": (lambda m: write(m.hidden[0].bias), ["parameter hidden[0].bias"]),
    "a list of modules": (lambda m: m.hidden.append(nn.Identity()), ["attribute hidden"]),
    "an array": (lambda m: m.array.__iadd__(1), ["attribute array"]),
    "torch's generator": (lambda m: torch.rand(1, generator=m.rng), ["generator rng (torch)"]),
    "Python's generator": (lambda m: m.python.random(), ["generator python (random)"]),
    "NumPy's generator": (lambda m: m.numpy.random(), ["generator numpy (numpy)"]),
    "NumPy's old generator": (lambda m: m.old.normal(), ["generator old (numpy)"]),
    "a TensorDict": (lambda m: m.td["sub", "i"].add_(1), ["attribute td._tensordict['sub']._tensordict['i']"]),
    "an entry of a TensorDict": (lambda m: m.td.set("new", torch.ones(1)), ["attribute td._tensordict['new']"]),
}


def fingerprint(module: Any) -> dict[str, Any]:
    """What the module holds, read in another way: by a deep copy, to compare bit by bit."""
    leaves = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {k: (id(v), v.detach().clone().view(torch.uint8 if v.ndim else v.dtype)) for k, v in leaves.items()}
    flags = {
        k: (v.requires_grad, v.is_leaf, v.stride(), v.data_ptr(), id(v.grad), v._version) for k, v in leaves.items()
    }
    names = [(path, list(part.__dict__), sorted(part._modules)) for path, part in module.named_modules()]
    others = {k: repr(v) for k, v in module.__dict__.items() if k not in {"plain", "slotted", "rng"}}
    objects = repr([module.plain.__dict__, module.slotted.h, hasattr(module.slotted, "later"), module.hidden[0].bias])
    generators = repr((module.rng.get_state().tolist(), module.python.getstate(), module.numpy.bit_generator.state))
    old = repr(module.old.get_state())
    nested = repr(module.td.to_dict())
    hooks = [len(part._forward_hooks) for part in module.modules()]
    found = {"state": state, "flags": flags, "names": names, "others": others, "objects": objects, "hooks": hooks}
    return {**found, "generators": generators, "old": old, "nested": nested}


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where} {key}")
    elif isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b, where)
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_named_and_undone(name: str) -> None:
    change, names = CHANGES[name]
    module = Keeper()
    expected, snapshot = fingerprint(module), Snapshot(module)
    assert snapshot.changed() == []
    change(module)
    found = snapshot.changed()
    assert set(names) <= set(found)
    if name not in {"double", "training"} and names:
        assert found == names
    snapshot.restore()
    again = fingerprint(module)
    if name in {"a resized buffer", "a parameter without storage"}:  # the storage has another address now
        for one in (expected, again):
            one["flags"] = {k: v[:3] for k, v in one["flags"].items()}
    if name in {"a buffer of a graph", "the sign of zero", "a buffer", "a resized buffer", "double"}:
        for one in (expected, again):  # the forward itself counted a write
            one["flags"] = {k: v[:-1] for k, v in one["flags"].items()}
    assert_equal(again, expected)
    assert snapshot.changed() == []


def test_many_changes_at_once() -> None:
    module = Keeper()
    expected, snapshot = fingerprint(module), Snapshot(module)
    for name, (change, _) in CHANGES.items():
        if name not in {"no parameter", "another submodule", "no attribute", "a parameter without storage", "frozen"}:
            change(module)
    snapshot.restore()
    again = fingerprint(module)
    for one in (expected, again):
        one["flags"] = {k: v[:3] for k, v in one["flags"].items()}
    assert_equal(again, expected)


def test_values_that_are_equal_are_no_change() -> None:
    module = Keeper()
    snapshot, h = Snapshot(module), module.h
    module.h, module.table = module.h.clone(), copy.deepcopy(module.table)
    module.last = None
    assert snapshot.changed() == []
    snapshot.restore()
    assert module.h is h


def test_writes_count_no_version_and_a_graph_survives() -> None:
    layer, x = nn.Linear(2, 1), torch.ones(1, 2)
    version, wanted = layer.weight._version, layer(x).detach()
    with kept(layer):
        loss = layer(x).square().sum()
        layer.weight.data.add_(1)
    assert layer.weight._version == version
    assert layer.weight.grad is None
    loss.backward()
    grad: Any = layer.weight.grad
    torch.testing.assert_close(grad, 2 * wanted.expand(1, 2))
    before = grad.clone()
    with kept(layer):
        grad.add_(1)
        layer.zero_grad()
    assert layer.weight.grad is grad
    assert torch.equal(grad, before)


def test_kept_restores_after_an_exception_and_gives_the_snapshot() -> None:
    class Last(nn.Module):
        last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = 0.1 * x.mean()
            raise ZeroDivisionError

    module = Last()
    with pytest.raises(ZeroDivisionError), kept(module):
        module(torch.full((2,), NAN))
    assert "last" not in module.__dict__
    with kept(module) as before:
        module.last = 1
        assert before.changed() == ["attribute last"]
    assert before.changed() == []


def test_others_are_held_too() -> None:
    rng, x, table = torch.Generator(), torch.zeros(2), {"x": 1}
    before = Snapshot(nn.Identity(), rng, x, table)
    torch.rand(1, generator=rng)
    x.add_(1)
    table["x"] = 2
    assert before.changed() == ["attribute others[1]", "attribute others[2]['x']", "generator others[0] (torch)"]
    before.restore()
    assert (before.changed(), x.tolist(), table) == ([], [0.0, 0.0], {"x": 1})


def test_cycles_aliases_and_expanded_tensors() -> None:
    module: Any = nn.Linear(2, 2)
    module.me, module.alias, module.loop = module, [module.weight], []
    module.loop.append(module.loop)
    module.wide = torch.zeros(1).expand(5)
    module.view = module.weight.data[0]
    module.complex, module.double_complex = (
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.complex128),
    )
    module.empty, module.number, module.flag = torch.zeros(0, 3), torch.tensor(3), torch.tensor(True)
    module.sparse, module.meta = torch.eye(2).to_sparse(), torch.zeros(2, device="meta")
    before = Snapshot(module)
    weight = module.weight.detach().clone()
    module.weight.data = module.weight.data + 1
    module.wide.as_strided((1,), (1,)).add_(1)
    for leaf in (module.complex, module.double_complex, module.number):
        leaf.add_(1)
    module.flag.logical_not_()
    names = ["attribute complex", "attribute double_complex", "attribute flag", "attribute number", "attribute wide"]
    assert before.changed() == [*names, "parameter weight"]
    before.restore()
    assert before.changed() == []
    assert torch.equal(module.weight, weight)
    assert torch.equal(module.view, weight[0])
    module.weight.data.add_(1)  # the view still is a view
    assert torch.equal(module.view, module.weight.data[0])


def test_what_a_lazy_module_makes_at_its_first_call_stays() -> None:
    module: Any = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    module[1].last = None
    module[3].seen = []
    with kept(module):
        module.eval()
        module(torch.ones(2, 3))
        module[1].last = 1
        module[3].seen.append(1)
        module[3].weight.data.zero_()
    assert module[0].weight.shape == (4, 3)
    assert all(part.training for part in module.modules())
    assert (module[1].last, module[3].seen, bool(module[3].weight.any())) == (None, [], True)
    with kept(module) as before:
        module(torch.ones(2, 3))
        assert before.changed() == [
            f"buffer 2.{name}" for name in ("num_batches_tracked", "running_mean", "running_var")
        ]
    assert module[2].num_batches_tracked == 0


def test_a_lazy_module_that_is_not_called_is_as_before() -> None:
    module: Any = nn.Sequential(nn.LazyLinear(4))
    with kept(module):
        module.last = module[0].last = 1
    assert not hasattr(module, "last")
    assert not hasattr(module[0], "last")
    assert module(torch.ones(2, 3)).shape == (2, 4)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("build", [torchrl_mlp, ours])
def test_facades_hide_their_template(build: Any, share: bool) -> None:
    module = build(share_params=share)
    wanted = module(X + 1)
    before = Snapshot(module)
    module(X + 1)
    assert before.changed() == []
    for leaf in module.parameters():
        leaf.data.add_(1)
    assert len(before.changed()) >= 4
    before.restore()
    assert before.changed() == []
    assert torch.equal(module(X + 1), wanted)
    with kept(module):
        module._empty_net[0].__dict__["last"] = 1
    assert not hasattr(module._empty_net[0], "last")


def test_a_lazy_facade_is_called_again() -> None:
    for build in (torchrl_mlp, ours):
        lazy = (
            build(n_agents=3)
            if False
            else type(build())(None, 2, 3, centralized=False, share_params=False, depth=1, num_cells=8)
        )
        with kept(lazy):
            first = lazy(X + 1)
        with kept(lazy) as before:
            assert torch.equal(lazy(X + 1), first)
            assert before.changed() == []


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_functional_networks_and_scripts() -> None:
    net = fm.network(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), 3)
    module = as_module((net, fm.init_params(net, 0)))
    wanted = {name: leaf.clone() for name, leaf in module.named_buffers()}
    with kept(module) as before:
        module.train()(torch.randn(5, 3, 6))
        assert before.changed() == [f"buffer 1.{n}" for n in ("num_batches_tracked", "running_mean", "running_var")]
    assert all(torch.equal(leaf, wanted[name]) for name, leaf in module.named_buffers())
    script: Any = torch.jit.trace(nn.BatchNorm1d(3).eval(), torch.ones(2, 3))
    with kept(script) as before:
        for leaf in script.buffers():
            leaf.add_(1)
        assert before.changed() == ["buffer num_batches_tracked", "buffer running_mean", "buffer running_var"]
    assert script.running_mean.tolist() == [0, 0, 0]
