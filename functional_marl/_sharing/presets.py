"""The sharing presets: slot maps that have a name, for any number of agents.

To add a preset, add a function from the number of agents to its :class:`Sharing` here. Everything that takes
``sharing=`` then accepts the new name, and errors list it.
"""

from __future__ import annotations

from collections.abc import Callable

from functional_marl._sharing.slot_map import Sharing

__all__ = ["PRESETS"]

PRESETS: dict[str, Callable[[int], Sharing]] = {
    "shared": Sharing.shared,  # one slot for all agents
    "independent": Sharing.independent,  # one slot for each agent
}
