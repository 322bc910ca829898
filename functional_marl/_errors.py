"""The errors of the library: each names the path, what was expected, what was given, and the fix.

The first three are ``ValueError``, so that code which catches the standard error keeps working.
"""

__all__ = ["GroupingError", "RandomnessError", "SharingError", "StrategyWarning", "StructureError"]


class StructureError(ValueError):
    """A pytree, a shape, an axis or a key set is not what the network needs."""


class SharingError(ValueError):
    """A sharing is not well formed, or parameters do not agree with it."""


class GroupingError(ValueError):
    """A group map is not a partition of the agents, or data do not follow it."""


class RandomnessError(RuntimeError):
    """A random operation ran where it may not: under ``randomness="error"``, or off the key.

    A ``RuntimeError``, as ``torch.func.vmap`` raises under its own ``randomness="error"``.
    """


class Unsupported(Exception):
    """A strategy cannot evaluate a network or a call. Private: it never reaches users.

    Layer rules raise it; strategies return it, and the next strategy is tried.
    """

    @property
    def reason(self) -> str:
        """Why it cannot."""
        return self.args[0]


class StrategyWarning(UserWarning):
    """A network under ``strategy="auto"`` takes the loop, which is slow; said once a network.

    ``strategy="loop"`` says that it is meant, ``warnings.simplefilter("ignore", fm.StrategyWarning)`` that it does not
    matter, and :func:`tabulate` tells the reason at any time.
    """
