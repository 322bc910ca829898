"""The zoo: each network is what its entry says."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from functional_marl._errors import StructureError
from functional_marl._pytrees import Tree, flatten, tree_map
from functional_marl.laws import zoo, zoo_subject
from functional_marl.laws._compare import agree
from functional_marl.laws._zoo_subject import example_of, leaf_names_of
from functional_marl.laws.zoo import ZOO, Bools, Entry, Floats, Ints

every = pytest.mark.parametrize("entry", ZOO.values(), ids=list(ZOO))


def drawn(entry: Entry, lead: tuple[int, ...], seed: int = 0) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
    generator = torch.Generator().manual_seed(seed)
    return tree_map(lambda spec: spec.draw(lead, generator, torch.float32), (entry.inputs, dict(entry.kwargs)))


def built(entry: Entry, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = entry.build()
        if any(nn.parameter.is_lazy(p) for p in module.parameters()):
            module.eval()(*example_of(entry))
        return module


def batches(entry: Entry) -> list[tuple[int, ...]]:
    least, most = entry.batch_dims
    return [(max(entry.batch_size, 2),) * k for k in range(least, most + 1)]


@every
def test_takes_all_batches_that_it_says(entry: Entry) -> None:
    for lead in batches(entry):
        args, kwargs = drawn(entry, lead)
        with torch.random.fork_rng(devices=[]):
            for module in (built(entry).eval(), built(entry).train()):
                for leaf in flatten(module(*args, **kwargs))[0]:
                    assert leaf.shape[: len(lead)] == lead


@every
def test_random_or_not(entry: Entry) -> None:
    args, kwargs = drawn(entry, batches(entry)[-1])
    outputs: list[Tree] = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            module = built(entry).train()
            torch.manual_seed(seed)
            outputs.append(tree_map(torch.detach, module(*args, **kwargs)))
    same = all(torch.equal(a, b) for a, b in zip(*(flatten(output)[0] for output in outputs), strict=True))
    assert same is not entry.random


@every
def test_rows_apart(entry: Entry) -> None:
    lead = batches(entry)[-1]
    module, (args, kwargs) = built(entry).eval(), drawn(entry, lead)
    least = entry.batch_dims[0]

    def row(tree: Tree) -> Tree:
        return tree_map(lambda leaf: leaf[:1] if len(lead) == least else leaf[0], tree)

    found, want = module(*row(args), **row(kwargs)), row(module(*args, **kwargs))
    close = [torch.allclose(a, b, atol=1e-6) for a, b in zip(flatten(found)[0], flatten(want)[0], strict=True)]
    assert all(close) is entry.rows_apart


@every
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_or_not(entry: Entry) -> None:
    module, (args, kwargs) = built(entry).train(), drawn(entry, (3, *batches(entry)[0]))
    params = {name: leaf.detach() for name, leaf in module.named_parameters()}
    buffers = {name: leaf.expand(3, *leaf.shape).clone() for name, leaf in module.named_buffers()}

    def call(buffers: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        return functional_call(module, {**params, **buffers}, args, kwargs)

    with torch.random.fork_rng(devices=[]):
        if entry.vmap:
            vmap(call, randomness="different")(buffers, args, kwargs)
        else:
            with pytest.raises(RuntimeError):
                vmap(call, randomness="different")(buffers, args, kwargs)


@every
def test_joint(entry: Entry) -> None:
    if entry.joint is None:
        return
    for k in (1, 3):
        module = entry.joint(k)
        with torch.no_grad():
            module.eval()(*example_of(entry, k), **drawn(entry, (entry.batch_size,) * entry.batch_dims[0])[1])


@every
def test_factories_pickle(entry: Entry) -> None:
    module = pickle.loads(pickle.dumps(entry.build))()
    assert isinstance(module, nn.Module)


@every
def test_outputs_depend_on_inputs(entry: Entry) -> None:
    """What the trait "responds" says."""
    s = zoo_subject(entry.name, n_agents=1, batch=batches(entry)[0], seed=3)
    numbers: list[Tensor] = []
    for one in (s, *map(s.redrawn, range(8))):
        leaves: list[Tensor] = flatten(one.outputs()[0])[0]
        numbers.append(torch.cat([leaf.flatten() for leaf in leaves]))
    outputs = torch.unique(torch.stack(numbers), dim=0)
    assert ("responds" in s.traits) is (len(outputs) > 1)


@every
def test_subjects_are_functions_of_their_arguments(entry: Entry) -> None:
    batch = batches(entry)[0]
    one, other = (zoo_subject(entry.name, n_agents=2, batch=batch, seed=5) for _ in range(2))
    agree(one.params, other.params, "params", exact=True)
    agree(one.inputs, other.inputs, "inputs", exact=True)
    assert sorted(one.params | one.state) == sorted(leaf_names_of(entry))
    assert all(leaf.dtype == torch.float64 for leaf in one.params.values())


KINDS: dict[str, type[nn.Module] | str] = {
    "a convolution": nn.Conv2d,
    "batch statistics": nn.BatchNorm1d,
    "layer statistics": nn.LayerNorm,
    "a dropout": nn.Dropout,
    "attention": nn.MultiheadAttention,
    "a recurrent cell": nn.GRUCell,
    "a recurrent layer": nn.GRU,
    "an embedding": nn.Embedding,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_has(kind: type[nn.Module]) -> None:
    assert any(isinstance(part, kind) for entry in ZOO.values() for part in entry.build().modules())


def test_has_what_is_not_a_layer() -> None:
    tied = built(ZOO["tied"]).state_dict(keep_vars=True)
    assert tied["first.weight"] is tied["second.weight"]
    assert any(nn.parameter.is_lazy(p) for p in ZOO["lazy"].build().parameters())
    assert [k for k, e in ZOO.items() if any("parametrizations" in n for n in leaf_names_of(e))] == [
        "orthogonal",
        "weight norm",
        "spectral norm",
    ]
    assert len(ZOO["trees"].inputs) == 2
    assert ZOO["trees"].kwargs
    assert not hasattr(ZOO["bare"].build(), "reset_parameters")


@pytest.mark.parametrize("name", ["pooled", "masked", "mlp"])
def test_pooled_or_not(name: str) -> None:
    entry, k = ZOO[name], 3
    assert entry.joint is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = entry.joint(k).eval()
    first = drawn(entry, (5, k))[0][0]  # leaves [5, k, F]

    def output(order: list[int]) -> Tensor:
        return module(tree_map(lambda leaf: leaf[:, order].flatten(1), first))

    assert torch.allclose(output([0, 1, 2]), output([2, 0, 1]), atol=1e-6) is entry.pooled


def test_masks_agents() -> None:
    entry = ZOO["masked"]
    assert entry.masks_agents
    module, seen = built(entry), drawn(entry, (40,))[0][0]
    other = {**seen, "obs": seen["obs"] + 1}
    same = (module(seen) == module(other)).all(-1)
    assert torch.equal(same, ~seen["alive"].squeeze(-1))


def test_specs_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    assert Floats(3).draw((2,), generator, torch.float32).dtype == torch.float32
    drawn_ints = Ints(100, high=7).draw((), generator, torch.float64)
    assert (int(drawn_ints.min()), int(drawn_ints.max())) == (0, 6)
    assert Bools(4).draw((), generator, torch.float64).dtype == torch.bool


def test_register_refuses() -> None:
    with pytest.raises(StructureError, match="expected a new name, got 'mlp'"):
        zoo.register("mlp", lambda: nn.Linear(1, 1), Floats(1))
    with pytest.raises(StructureError, match="'nothing': expected build="):
        zoo.register("nothing", None, Floats(1))
    with pytest.raises(StructureError, match="'no input': expected build="):
        zoo.register("no input", lambda: nn.Linear(1, 1))
    assert not {"nothing", "no input"} & ZOO.keys()


def test_a_subject_takes_operations() -> None:
    s = zoo_subject("mlp", n_agents=2)
    other = replace(s, ops=replace(s.ops, apply=lambda *args, **how: "called"))
    assert other.call() == "called"
