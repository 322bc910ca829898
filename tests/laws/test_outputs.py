"""What laws look at in outputs: words of select=, and trees of tensors from what modules return."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tensordict import TensorClass, TensorDict, lazy_stack
from tensordict.nn import CompositeDistribution, TensorDictModule  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, distributions, nn
from torch.distributions import transforms

from functional_marl._pytrees import flatten, leaf_names
from functional_marl.laws._outputs import as_tree, selector, written
from functional_marl.laws._subject import CheckError

X = torch.rand(4, 3, 2) + 0.5
EYE = torch.eye(2)


class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: keys, attributes and indices lead to the same entries."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else list(self.values())[key]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


class Pair(NamedTuple):
    action: Tensor
    hidden: Tensor | None = None


@dataclass
class Step:
    action: Any
    value: Any = None


class Held(TensorClass):
    action: Tensor
    note: str | None = None


def same(one: Any, other: Any) -> bool:
    return leaf_names(one) == leaf_names(other) and all(map(torch.equal, flatten(one)[0], flatten(other)[0]))


# --- select= ----------------------------------------------------------------------------------------------

NORMAL = distributions.Normal(X, 1.0)


@pytest.mark.parametrize(
    ("select", "output"),
    [
        (None, X),
        ("logits", {"logits": X}),
        ("0", (X, 1)),
        (0, [X, 1]),
        ("-1", [1, X]),
        ("dist.loc", {"dist": NORMAL}),
        ("dist.loc", {"dist": {"loc": X}}),
        ("out.0.loc", {"out": [NORMAL]}),
        ("1.action", (0, Pair(X))),
        ("1", Pair(torch.zeros(1), X)),
        ("value.action", Step(0, Step(X))),
        ("agents.logits", TensorDict({"agents": {"logits": X}}, [4])),
        ("agents.logits", TensorDict({"agents.logits": X}, [4])),
        ("agents.logits", {("agents", "logits"): X}),
        ("held.action", {"held": Held(action=X, batch_size=[4])}),
        ("logits", ModelOutput(loss=1, logits=X)),
        ("1", ModelOutput(loss=1, logits=X)),
        ("3", {3: X}),
        (lambda output: output[1], (0, X)),
    ],
)
def test_words_lead_to_a_part(select: Any, output: Any) -> None:
    assert torch.equal(selector(select)(output), X)


def test_a_key_comes_before_an_attribute() -> None:
    assert selector("values")({"values": 1}) == 1


def test_selectors_are_pickled_and_compared() -> None:
    assert pickle.loads(pickle.dumps(selector("a.0"))) == selector("a.0") != selector("a.1")


@pytest.mark.parametrize(
    ("select", "output", "match"),
    [
        ("logits", {"probs": X}, r"select='logits': output has no 'logits'; it is a dict with the keys \['probs'\]"),
        ("out.2", {"out": (X, X)}, r"output.out has no '2'; it is a tuple of 2"),
        ("-3", (X, X), "output has no '-3'"),
        ("dist.mu", {"dist": NORMAL}, r"output.dist has no 'mu'; it is a Normal with the attributes \['loc', 'scale'"),
        ("0", X, r"it is a tensor of shape \[4, 3, 2\]"),
        ("actions", Pair(X), r"it is a Pair with the attributes \['action', 'hidden'\]"),
        ("a.c", TensorDict({"a": {"b": X}}, [4]), r"output.a has no 'c'; it is a TensorDict with the keys \['b'\]"),
        ("dist.sample", {"dist": NORMAL}, "output.dist.sample is a method; give a function"),
        ("a", None, "it is a NoneType"),
    ],
)
def test_what_is_not_found_says_what_there_is(select: str, output: Any, match: str) -> None:
    with pytest.raises(CheckError, match=match):
        selector(select)(output)


@pytest.mark.parametrize("select", ["", "a..b", ".a", 1.5, True])
def test_what_no_word_is(select: Any) -> None:
    with pytest.raises(CheckError, match="select: expected"):
        selector(select)


# --- containers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "tree"),
    [
        (X, X),
        ((X, [X, None]), (X, [X, None])),
        ({"a": X, "step": 3, "text": "no", "on": True}, {"a": X}),
        ((X, 1.5, "no"), (X,)),
        (OrderedDict(b=X, a={"c": X}), {"b": X, "a": {"c": X}}),
        (ModelOutput(logits=X, hidden=(X, X)), {"logits": X, "hidden": (X, X)}),
        (Pair(X), {"action": X, "hidden": None}),
        (Step(X, Step(X)), {"action": X, "value": {"action": X, "value": None}}),
        (torch.max(X, -1), (X.amax(-1), X.argmax(-1))),
        (TensorDict({"a": {"b": X}, "c": X, "note": "text"}, [4]), {"a": {"b": X}, "c": X}),
        (lazy_stack([TensorDict({"a": X[0]}, [3])] * 4), {"a": X[:1].expand(4, 3, 2)}),
        (Held(action=X, note="text", batch_size=[4]), {"action": X}),
        ((X, NORMAL), (X, {"loc": X, "scale": torch.ones(4, 3, 2)})),
        (np.ones((4, 3)), torch.ones(4, 3, dtype=torch.float64)),
        ({"a": 1, "b": 2.5, "c": True}, {"a": torch.tensor(1), "b": torch.tensor(2.5), "c": torch.tensor(True)}),
        ([np.float32(2)], [torch.tensor(2.0)]),
    ],
)
def test_trees(output: Any, tree: Any) -> None:
    assert same(as_tree(output), tree)


def test_tensors_are_not_copied_and_keep_their_graphs() -> None:
    loc = X.clone().requires_grad_()
    tree = as_tree(Step(loc, distributions.Normal(loc * 2, 1.0)))
    assert tree["action"] is loc
    tree["value"]["loc"].sum().backward()
    assert torch.equal(loc.grad, torch.full_like(X, 2.0)) if loc.grad is not None else False


def test_a_read_only_array_is_copied() -> None:
    array = np.ones(3)
    array.flags.writeable = False
    as_tree(array).zero_()
    assert array.sum() == 3


class Opaque:
    def __init__(self) -> None:
        self.loc = X


@pytest.mark.parametrize(
    ("output", "match"),
    [
        (None, "expected tensors, got a NoneType"),
        ({}, "expected tensors"),
        ("text", "expected tensors"),
        (
            {"a": [Opaque()]},
            r"output\['a'\]\[0\]: expected tensors, got a Opaque with the attributes \['loc'\]; .*select=",
        ),
        (lambda: X, "expected tensors, got a function"),
        ({X}, "got a set"),
        (
            torch.nested.nested_tensor([X[0], X[0, :2]], layout=torch.jagged),
            "nested tensor .*to_padded_tensor.*select=",
        ),
        ({"a": X[0].to_sparse()}, r"output\['a'\]: a sparse tensor .*to_dense.*select="),
        (nn.utils.rnn.pack_sequence([X[0], X[1]]), "pad_packed_sequence"),
        (np.array(["a"]), "expected numbers, got an array of <U1"),
        (distributions.Distribution(validate_args=False), "Distribution has no tensors as parameters; .*select="),
    ],
)
def test_what_cannot_be_read(output: Any, match: str) -> None:
    with pytest.raises(CheckError, match=match):
        as_tree(output)


# --- distributions ----------------------------------------------------------------------------------------

ONES = torch.ones(4, 3, 2)
EYES = EYE.expand(4, 3, 2, 2)


@pytest.mark.parametrize(
    ("dist", "tree"),
    [
        (NORMAL, {"loc": X, "scale": ONES}),
        (distributions.Independent(NORMAL, 1), {"loc": X, "scale": ONES}),
        (distributions.Beta(X, X + 1), {"concentration1": X, "concentration0": X + 1}),
        (distributions.Uniform(X, X + 1), {"low": X, "high": X + 1}),
        (distributions.MultivariateNormal(X, scale_tril=EYE), {"loc": X, "scale_tril": EYES}),
        (distributions.MultivariateNormal(X, EYE), {"loc": X, "covariance_matrix": EYES}),
        (distributions.MultivariateNormal(X, precision_matrix=EYE), {"loc": X, "precision_matrix": EYES}),
        (distributions.TransformedDistribution(NORMAL, [transforms.TanhTransform()]), {"loc": X, "scale": ONES}),
        (distributions.LogNormal(X, X), {"loc": X, "scale": X}),
        (
            distributions.TransformedDistribution(
                distributions.Independent(NORMAL, 1), [transforms.AffineTransform(torch.zeros(2), X, event_dim=1)]
            ),
            {"loc": X, "scale": ONES, "transforms[0].loc": ONES * 0, "transforms[0].scale": X},
        ),
        (
            distributions.MixtureSameFamily(
                distributions.Categorical(logits=X),
                distributions.Independent(distributions.Normal(X[..., None].expand(4, 3, 2, 5), 1.0), 1),
            ),
            {
                "mixture": {"logits": X - X.logsumexp(-1, True)},
                "components": {"loc": X[..., None].expand(4, 3, 2, 5), "scale": torch.ones(4, 3, 2, 5)},
            },
        ),
    ],
)
def test_distributions(dist: Any, tree: Any) -> None:
    found = as_tree(dist)
    assert same(found, tree)
    for leaf in flatten(found)[0]:  # agents are where samples have them
        assert leaf.shape[:2] == dist.sample().shape[:2] == (4, 3)


@pytest.mark.parametrize("name", ["probs", "logits"])
@pytest.mark.parametrize(
    "kind",
    [
        distributions.Categorical,
        distributions.Bernoulli,
        distributions.OneHotCategorical,
        distributions.Geometric,
        distributions.Multinomial,
        distributions.ContinuousBernoulli,
        lambda **given: distributions.RelaxedBernoulli(torch.tensor(1.0), **given),
        lambda **given: distributions.Independent(distributions.Bernoulli(**given), 1),
    ],
)
def test_of_probs_and_logits_the_given_one(kind: Any, name: str) -> None:
    dist = kind(**{name: X / 2})
    source = getattr(dist, "base_dist", dist)
    source = getattr(source, "_categorical", source)
    held = set(vars(source))
    assert list(as_tree(dist)) == [name]
    assert set(vars(source)) == held, "the other was computed"
    assert isinstance(source.probs, Tensor)
    assert isinstance(source.logits, Tensor)
    assert list(as_tree(dist)) == [name], "once both are there, the given one still"


def test_every_distribution_of_torch_has_parameters() -> None:
    z = X
    dists: list[Any] = [
        distributions.StudentT(z, z, z),
        distributions.Gumbel(z, z),
        distributions.Pareto(z, z),
        distributions.Weibull(z, z),
        distributions.InverseGamma(z, z),
        distributions.LowRankMultivariateNormal(z, z[..., None], z),
        distributions.Wishart(z[..., 0] + 2, EYE),
        distributions.LKJCholesky(3, z),
        distributions.LogisticNormal(z, z),
        distributions.Binomial(3, logits=z),
        distributions.RelaxedOneHotCategorical(torch.tensor(1.0), logits=z),
    ]
    for dist in dists:
        for leaf in flatten(as_tree(dist))[0]:
            assert leaf.shape[:2] == (4, 3), type(dist).__name__


class Point(distributions.Distribution):
    """A distribution that does not say what its parameters are."""

    def __init__(self, point: Tensor) -> None:
        super().__init__(point.shape[:2], point.shape[2:], validate_args=False)
        self.point, self._cache, self.tolerance = point, point * 0, 1e-3


def test_transforms_inside_transforms() -> None:
    inner = transforms.AffineTransform(X, torch.ones(2))
    both = transforms.ComposeTransform([transforms.TanhTransform(), transforms.IndependentTransform(inner, 1)])
    found = as_tree(distributions.TransformedDistribution(distributions.Normal(X, 1.0), [both]))
    assert torch.equal(found["transforms[0][1].base[0].loc"], X)


def test_distributions_of_other_libraries() -> None:
    assert same(as_tree(Point(X)), {"point": X})
    entries = TensorDict({"a": {"loc": X, "scale": X}, "b": {"logits": X}}, [4])
    both = CompositeDistribution(entries, {"a": distributions.Normal, "b": distributions.Categorical})
    assert same(as_tree(both), {"a": {"loc": X, "scale": X}, "b": {"logits": X - X.logsumexp(-1, True)}})


# --- what TensorDictModules write -------------------------------------------------------------------------


def test_what_was_written() -> None:
    td = TensorDict({"obs": X, "agents": {"mask": X}}, [4])
    given = flatten(td)[0]
    module = TensorDictModule(nn.Linear(2, 2), in_keys=["obs"], out_keys=[("agents", "logits")])
    output = module(td)
    assert same(written(module, output, given), {"agents.logits": module.module(X)})
    assert same(written(nn.Identity(), output, given), {"agents": {"logits": output["agents", "logits"]}})
    assert same(written(nn.Identity(), (X, NORMAL)), as_tree((X, NORMAL)))
    with pytest.raises(CheckError, match="expected tensors"):
        written(nn.Identity(), td.exclude(("agents", "logits")), given)
