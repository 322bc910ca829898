"""Each law that a module can have, on the modules of the facade: any sharing, storage and view.

``-k local_jacobian`` picks a law. A failure prints the :class:`Facade` that makes its module again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

import functional_marl.nn as fmnn
from functional_marl.laws import LAWS, Critics, Facade, Law, ModuleSubject, Operations, check
from functional_marl.laws._capabilities import GRAPH, IDS
from functional_marl.laws.strategies import critics, facades

# Checking one law on one module takes several cases, and some calls that examine the module.
COST = 10
# Laws that a module can have.
OF_MODULES = [law for law in LAWS.values() if law.is_about(ModuleSubject)]


@pytest.mark.parametrize("law", [pytest.param(law, id=law.name) for law in OF_MODULES])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_law(law: Law, examples: Callable[[int], int]) -> None:
    if not examples(COST * law.cost):
        pytest.skip("one case takes seconds, and this profile is short")

    @settings(max_examples=examples(COST * law.cost))
    @given(facades(), st.booleans(), st.booleans())
    def holds(case: Facade, lazy: bool, train: bool) -> None:
        build = partial(case.module, lazy=lazy)
        report = check(build, example=case.input(), laws=[law.name], examples=3, train=train, seed=case.seed % 1000)
        assert report, report
        assert not report[law.name].why.startswith("it raised"), report

    holds()


def test_each_law_applies_to_a_module() -> None:
    """Each law of the facade applies to some module."""
    checked: dict[str, int] = {}
    shares: list[tuple[int, Any]] = [(2, True), (2, False), (3, [0, 0, 1])]
    for n_agents, share in shares:
        for centralized in (True, False):
            options: Any = (("num_cells", [3]), ("dropout", 0.5))
            for given_options in (options, options[:1]):
                case = Facade(n_agents=n_agents, share_params=share, centralized=centralized, options=given_options)
                for verdict in check(case.module, example=case.input(), laws="all", examples=2):
                    checked[verdict.law] = checked.get(verdict.law, 0) + verdict.cases
    # No module of the facade sends messages, or has ids of its own.
    wanted = {law.name for law in OF_MODULES if not {GRAPH, IDS} & set(law.requires)}
    assert wanted <= {law for law, count in checked.items() if count}


@given(critics())
def test_pooled_mixers_are_symmetric(case: Critics) -> None:
    """A VDN mixer over all agents of the groups: a sum in any order."""
    n = sum(agents for agents, _ in case.groups)
    generator = torch.Generator().manual_seed(case.seed)
    values = torch.randn((*case.batch, n, 1), generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    mixer = fmnn.VDNMixer(n_agents=n, device=None)
    torch.testing.assert_close(mixer(values[..., order, :]), mixer(values))


@given(critics())
def test_a_critic_is_no_mask(case: Critics) -> None:
    """Detached groups are used: their observations change every value, and get no gradient."""
    values, _ = case.values(case.detached)
    other, _ = replace(case, seed=case.seed + 1, ops=_with_critic(case)).values(case.detached)
    assert all(not torch.equal(a, b) for a, b in zip(values, other, strict=True))


def _with_critic(case: Critics) -> Operations:
    """Operations that return this critic for every seed of the observations."""
    critic = case.critic(case.detached)
    return replace(Operations(), critic=lambda *_: critic)


def test_critics_write_into_a_tensordict() -> None:
    case = Critics(((2, 3), (1, 4)), (1,))
    given_td = TensorDict({"g0": {"seen": torch.zeros(2, 3)}, "g1": {"seen": torch.zeros(1, 4)}})
    written: Any = case.critic((1,))(given_td)
    assert written["g1", "value"].shape == (1, 1)
