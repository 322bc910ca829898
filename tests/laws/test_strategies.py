"""The strategies themselves: what they reach, what they keep to, how they shrink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample, Unsatisfiable

from functional_marl._errors import SharingError
from functional_marl._network import Network
from functional_marl._sharing import Sharing, resolve
from functional_marl.laws import LAWS, Capability, Critics, Facade, Law, LawViolation, NetworkSubject, zoo, zoo_subject
from functional_marl.laws import strategies as drawn
from functional_marl.laws._capabilities import (
    A_BATCH,
    APART,
    CLUSTER,
    INDEPENDENT,
    NO_SPARE_SLOTS,
    ONE_AGENT,
    SEVERAL_AGENTS,
    SHARED,
    SPARE_SLOTS,
)
from functional_marl.laws._compare import agree
from properties.mutants import applied, next_slot, slots
from properties.test_laws import GENERATED

QUICK = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list[Any](HealthCheck)
)
# Without the phase that explains: it runs other cases after the smallest, and find would return those.
HUNT = settings(QUICK, max_examples=1000, phases=[Phase.generate, Phase.shrink])


def smallest(strategy: st.SearchStrategy[Any], true: Callable[[Any], bool] = lambda _: True) -> Any:
    return find(strategy, true, settings=HUNT)


# --- sharings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "true"),
    [
        ("shared", lambda s: s.is_shared),
        ("independent", lambda s: s.is_independent),
        ("slots in another order", lambda s: len(set(s)) == 3 and not s.is_independent),
        ("a cluster", lambda s: len(set(s)) == 2 and not s.unused()),
        ("a spare slot in front", lambda s: 0 in s.unused()),
        ("a spare slot behind", lambda s: s.n_slots - 1 in s.unused()),
        ("a spare slot between", lambda s: 1 in s.unused() and 0 not in s.unused()),
    ],
)
def test_sharings_reach(kind: str, true: Callable[[Sharing], bool]) -> None:
    assert true(smallest(drawn.sharings(3), true))


def test_sharings_start_with_the_simplest() -> None:
    assert smallest(drawn.sharings(2)) == Sharing([0, 0])
    assert smallest(drawn.sharings(3), lambda s: len(set(s)) > 1) in (Sharing([0, 0, 1]), Sharing([1, 0, 0]))


@pytest.mark.parametrize("where", [SHARED, INDEPENDENT, CLUSTER, APART], ids=lambda where: where.name)
@pytest.mark.parametrize("spare", [None, True, False])
def test_sharings_keep_to_the_capabilities(where: Capability, spare: bool | None) -> None:
    @QUICK
    @given(drawn.sharings(3, where=[where], spare=spare))
    def check(sharing: Sharing) -> None:
        sizes = {SHARED: (1,), INDEPENDENT: (3,), CLUSTER: (1, 2), APART: (2, 3)}[where]
        assert len(set(sharing)) in sizes
        assert spare is None or bool(sharing.unused()) is spare

    check()


@pytest.mark.parametrize("kind", ["shared", "independent", Sharing, dict])
def test_sharing_specs_reach_and_resolve(kind: Any) -> None:
    names = ["0.weight", "0.bias", "2.weight"]
    strategy = drawn.sharing_specs(3, names)
    found = smallest(strategy, lambda spec: spec == kind if isinstance(kind, str) else isinstance(spec, kind))
    assert list(resolve(found, 3, names)) == names

    @QUICK
    @given(strategy)
    def fits(spec: Any) -> None:
        resolve(spec, 3, names)

    fits()


# --- subjects ---------------------------------------------------------------------------------------------


def test_the_smallest_subject() -> None:
    assert repr(smallest(drawn.subjects())) == "zoo_subject('mlp', n_agents=1, sharing='shared')"


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_subjects_reach_every_entry(name: str) -> None:
    smallest(drawn.subjects(), lambda s: s.name.startswith(f"zoo_subject({name!r},"))


@pytest.mark.parametrize(
    "true",
    [
        lambda s: s.n == 4,
        lambda s: s.net.centralized and s.n > 1,
        lambda s: len(s.batch) == 2 and s.batch[0] != s.batch[1],
        lambda s: isinstance(s.net.agent_dim, int) and s.net.agent_dim < 0,
        lambda s: isinstance(s.net.agent_dim, tuple) and len(s.inputs) > 1,
        lambda s: None in s.dims,
        lambda s: s.out_dim != s.dims[0],
        lambda s: s.net.strategy == "loop",
        lambda s: s.net.randomness == "same",
        lambda s: "plan" in s.strategies,
        lambda s: len(set(s.slots.values())) > 1,
        lambda s: s.state and SPARE_SLOTS.holds(s),
    ],
)
def test_subjects_reach(true: Callable[[NetworkSubject], bool]) -> None:
    smallest(drawn.subjects(), true)


@pytest.mark.parametrize("law", GENERATED, ids=lambda law: law.name)
def test_cases_are_what_the_law_is_about(law: Law) -> None:
    @QUICK
    @given(drawn.cases(law))
    def applies(case: Any) -> None:
        assert not law.why_not(case)

    applies()


@QUICK
@given(drawn.subjects())
def test_a_printed_subject_makes_itself_again(s: NetworkSubject) -> None:
    again = eval(repr(s), {"zoo_subject": zoo_subject, "Sharing": Sharing})
    assert repr(again) == repr(s)
    assert again.net.sharing_spec == s.net.sharing_spec
    agree(
        (again.inputs, dict(again.kwargs), again.params, again.state), (s.inputs, dict(s.kwargs), s.params, s.state), ""
    )


@QUICK
@given(drawn.subjects((NO_SPARE_SLOTS, SEVERAL_AGENTS)))
def test_no_two_slots_of_a_subject_agree(s: NetworkSubject) -> None:
    for leaf in (*s.params.values(), *s.state.values()):
        rows = leaf.flatten(1) if leaf.is_floating_point() else leaf[:0, None]
        assert len(torch.unique(rows, dim=0)) == len(rows)


@QUICK
@given(drawn.networks())
def test_networks_are_networks(net: Network) -> None:
    assert isinstance(net, Network)


def test_capabilities_that_exclude_each_other_have_no_subjects() -> None:
    with pytest.raises(NoSuchExample):
        find(drawn.subjects((ONE_AGENT,)), lambda s: s.n > 1, settings=QUICK)
    with pytest.raises((NoSuchExample, Unsatisfiable)):
        find(drawn.subjects((ONE_AGENT, APART)), lambda _: True, settings=QUICK)


def test_a_wrong_assignment_shrinks_to_two_agents() -> None:
    wrong = applied(net=slots(next_slot), when=lambda net, train: net.strategy == "vmap")

    def fails(s: NetworkSubject) -> bool:
        try:
            LAWS["agents_are_networks"](replace(s, ops=replace(s.ops, apply=wrong)))
        except LawViolation:
            return True
        return False

    found = smallest(drawn.subjects(LAWS["agents_are_networks"].requires), fails)
    assert found.n == 2
    assert found.batch == ()
    assert repr(found) == "zoo_subject('mlp', n_agents=2)"


def test_registered_networks_are_drawn() -> None:
    entry = zoo.register("newcomer", lambda: torch.nn.Linear(2, 1), zoo.Floats(2))
    try:
        assert smallest(drawn.entries(), lambda e: e is entry) is entry
        assert smallest(drawn.subjects(), lambda s: "newcomer" in s.name).n == 1
    finally:
        del zoo.ZOO["newcomer"]


# --- the small ones ---------------------------------------------------------------------------------------


@QUICK
@given(drawn.keys(), drawn.seeds())
def test_keys_and_seeds(key: torch.Tensor, seed: int) -> None:
    assert key.dtype == torch.int64
    assert key.shape == (2,)
    assert ((key >= 0) & (key < 2**32)).all()
    assert 0 <= seed < 2**32


@QUICK
@given(drawn.inputs({"x": zoo.Floats(3), "i": zoo.Ints(2, high=5), "b": zoo.Bools()}, (4,)))
def test_inputs(tree: dict[str, torch.Tensor]) -> None:
    assert {k: (list(v.shape), v.dtype) for k, v in tree.items()} == {
        "x": ([4, 3], torch.float64),
        "i": ([4, 2], torch.int64),
        "b": ([4], torch.bool),
    }


def test_batches_are_what_the_network_takes() -> None:
    assert smallest(drawn.batches(zoo.ZOO["mlp"])) == ()
    assert smallest(drawn.batches(zoo.ZOO["mlp"], (A_BATCH,))) == (1,)
    assert smallest(drawn.batches(zoo.ZOO["batchnorm"])) == (2,)


def test_agent_dims_reach() -> None:
    entry = zoo.ZOO["recurrent"]
    places = drawn.agent_dims(entry, 1)
    assert smallest(places) is None
    assert smallest(places, lambda d: isinstance(d, int)) == 0
    assert smallest(places, lambda d: isinstance(d, int) and d < 0) in (-4, -3)
    assert smallest(places, lambda d: isinstance(d, tuple) and None in d)[0] is not None


def test_patterns_reach_all_ways_to_be_wrong() -> None:
    def why(case: Any) -> str:
        try:
            resolve(dict(case.spec), case.n_agents, case.names)
        except SharingError as error:
            return str(error)
        return ""

    for word in ("matches", "decide no leaf"):
        assert smallest(drawn.patterns(), lambda case, word=word: word in why(case))
    assert smallest(drawn.patterns(), lambda case: not why(case) and len(case.spec) > 1)


def test_groups_reach() -> None:
    assert smallest(drawn.grouped(), lambda case: case.squeeze and case.batch_dims == 2)
    assert smallest(drawn.grouped(), lambda case: not isinstance(case.per_agent, dict))
    assert smallest(drawn.groupings(), lambda case: isinstance(case.grouping, dict) and len(case.grouping) > 1)
    assert smallest(drawn.groupings(["another kind"]), lambda case: case.grouping == "another kind")
    assert smallest(drawn.name_lists(), lambda names: len(names) > 2)
    assert smallest(drawn.partitions(["a", "b"]), lambda groups: len(groups) == 2)


@pytest.mark.parametrize(
    "true",
    [
        lambda case: case.kind == "conv" and case.centralized,
        lambda case: case.share_params is False and not case.use_td_params,
        lambda case: isinstance(case.share_params, list) and len(set(case.share_params)) == 2,
        lambda case: isinstance(case.share_params, dict),
        lambda case: dict(case.options).get("dropout") and case.randomness == "same",
        lambda case: dict(case.options).get("norm_class") == "BatchNorm1d",
        lambda case: dict(case.options).get("norm_class") == "LayerNorm",
        lambda case: len(case.batch) == 2,
    ],
)
def test_facades_reach(true: Callable[[Facade], bool]) -> None:
    found = smallest(drawn.facades(), true)
    assert eval(repr(found), {"Facade": Facade}) == found  # what is printed makes it again


def test_critics_reach() -> None:
    assert smallest(drawn.critics()) == Critics(groups=((1, 1),))
    assert smallest(drawn.critics(), lambda case: len(case.detached) == 2 and len(case.groups) == 3)
    assert smallest(drawn.critics(), lambda case: case.shared_head and case.batch == (2, 2))


@pytest.mark.parametrize("name", ["pooled", "masked"])
def test_subjects_reach_critics_that_pool(name: str) -> None:
    where = LAWS["pooled_critics_are_symmetric"].requires
    found = smallest(drawn.subjects(where), lambda s: s.name.startswith(f"zoo_subject({name!r},"))
    assert found.n == 2
    assert found.net.centralized
