"""``st.from_type`` of this package's types, in both orders of import, and what the entry point imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import functional_marl as fm
from functional_marl_plugins.hypothesis_plugin import register

ROOT = Path(__file__).resolve().parents[2]
# What hypothesis does at the end of its own import where the package is installed.
ENTRY_POINT = "from functional_marl_plugins.hypothesis_plugin import register; register()"
GENERATE = """
from hypothesis import find, strategies as st
for type_ in (fm.Network, fm.Sharing, fm.GroupMap, fm.MarlGroupMapType):
    print(type(find(st.from_type(type_), lambda value: True)).__name__)
"""


def output(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HYPOTHESIS_NO_PLUGINS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


register()  # an installed package has done this; an old editable install has no entry point
GROUP_MAP: Any = fm.GroupMap  # type checkers take a NewType for no type


@pytest.mark.parametrize(
    "imports",
    [
        f"import hypothesis\n{ENTRY_POINT}\nimport functional_marl as fm",
        f"import functional_marl as fm\nimport hypothesis\n{ENTRY_POINT}",
    ],
    ids=["hypothesis first", "functional_marl first"],
)
def test_both_orders(imports: str) -> None:
    assert output(imports + GENERATE).split() == ["Network", "Sharing", "dict", "MarlGroupMapType"]


def test_the_orders_would_notice() -> None:
    """Without the entry point, nothing registers the types in this order."""
    with pytest.raises(AssertionError):
        output("import functional_marl as fm\nimport hypothesis" + GENERATE)


def test_neither_package_imports_the_other() -> None:
    shown = "import sys\nprint([name in sys.modules for name in ('torch', 'functional_marl', 'hypothesis')])"
    assert output(f"import hypothesis\n{ENTRY_POINT}\n{shown}") == "[False, False, True]\n"
    assert output(f"import functional_marl\n{ENTRY_POINT}\n{shown}") == "[True, True, False]\n"


def test_registering_imports_no_strategies() -> None:
    code = f"import hypothesis, functional_marl, sys\n{ENTRY_POINT}\n"
    code += "print([name for name in sys.modules if name.startswith('functional_marl.laws')])"
    assert output(code) == "[]\n"


@given(st.from_type(fm.Network))
@settings(max_examples=5, deadline=None)
def test_networks(net: fm.Network) -> None:
    assert fm.init_params(net, 0).keys() == net.sharing.keys()


@given(st.from_type(fm.Sharing))
@settings(max_examples=50)
def test_sharings(sharing: fm.Sharing) -> None:
    assert all(0 <= slot < sharing.n_slots for slot in sharing)
    assert fm.Sharing(list(sharing), sharing.n_slots) == sharing


@given(groups=...)
@settings(max_examples=50)
def test_group_maps(groups: fm.GroupMap) -> None:
    fm.check_group_map(groups, [name for members in groups.values() for name in members])


@given(st.from_type(fm.MarlGroupMapType))
@settings(max_examples=10)
def test_premade_group_maps(grouping: fm.MarlGroupMapType) -> None:
    assert grouping in list(fm.MarlGroupMapType)
    assert fm.group_map(["a", "b"], grouping) in ({"agents": ["a", "b"]}, {"a": ["a"], "b": ["b"]})


def test_all_kinds_come_up() -> None:
    """One agent and several, one slot and several, unused slots; one group and several."""
    sharings: list[fm.Sharing] = []
    maps: list[fm.GroupMap] = []

    @given(st.from_type(fm.Sharing), st.from_type(GROUP_MAP))
    @settings(max_examples=100, derandomize=True, database=None)
    def collect(sharing: fm.Sharing, groups: fm.GroupMap) -> None:
        sharings.append(sharing)
        maps.append(groups)

    collect()
    assert {len(sharing) for sharing in sharings} == {1, 2, 3, 4}
    assert {sharing.n_slots > len(set(sharing)) for sharing in sharings} == {False, True}
    assert {len(groups) > 1 for groups in maps} == {False, True}


def test_a_group_map_is_a_dict_and_typed() -> None:
    assert type(fm.group_map(["a_0"], fm.by_prefix)) is dict
    assert get_type_hints(fm.group_map)["return"] is fm.GroupMap
