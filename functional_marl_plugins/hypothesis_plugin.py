"""``st.from_type`` for ``Network``, ``Sharing`` and ``GroupMap``, whichever of the two packages is imported first."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["register"]


def register() -> None:
    """Register the types with hypothesis if both packages are imported; the one imported last calls it.

    Strategies are imported at their first use: they take a quarter of a second.
    """
    package, st = sys.modules.get("functional_marl"), sys.modules.get("hypothesis.strategies")
    if not hasattr(package, "Network") or not hasattr(st, "register_type_strategy"):
        return  # the import of the other one will call it

    def networks(_: Any) -> Any:
        return _strategies().networks()

    def sharings(_: Any) -> Any:
        strategies: Any = _strategies()
        return _hypothesis().integers(1, 4).flatmap(strategies.sharings)

    def group_maps(_: Any) -> Any:
        strategies: Any = _strategies()
        return strategies.name_lists().flatmap(strategies.partitions)

    given: Any = package
    for type_, strategy in ((given.Network, networks), (given.Sharing, sharings), (given.GroupMap, group_maps)):
        _hypothesis().register_type_strategy(type_, strategy)


def _hypothesis() -> Any:
    return sys.modules["hypothesis.strategies"]


def _strategies() -> Any:
    from functional_marl.laws import strategies

    return strategies
