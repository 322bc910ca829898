"""The errors of the library: each names the path, what was expected, what was given, and the fix.

The first three are ``ValueError``, so that code which catches the standard error keeps working.
"""

__all__ = ["GroupingError", "RandomnessError", "SharingError", "StrategyWarning", "StructureError"]


class StructureError(ValueError):
    """A pytree, a shape, an axis or a set of keys does not fit the network.

    >>> import torch
    >>> import functional_marl as fm
    >>> net = fm.network(fm.nets.mlp(4, 2), n_agents=3)
    >>> fm.apply(net, {}, torch.zeros(3, 4))  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    functional_marl.StructureError: params['0.weight']: missing, expected [3, 2, 4] ...
    """


class SharingError(ValueError):
    """A sharing is not valid, or parameters do not fit it."""


class GroupingError(ValueError):
    """A group map is not a partition of the agents, or data do not fit it."""


class RandomnessError(RuntimeError):
    """A random operation that is not allowed: under ``randomness="error"``, or one that cannot use the key.

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
    """A network under ``strategy="auto"`` is evaluated by the loop, which is slow.

    It comes once for each one-agent module.

    ``strategy="loop"`` chooses the loop without a warning. ``warnings.simplefilter("ignore", fm.StrategyWarning)``
    hides the warning. :func:`tabulate` shows the reason at any time.
    """


# Tracebacks and pickles have the public name, functional_marl.StructureError.
for _public in (StructureError, SharingError, GroupingError, RandomnessError, StrategyWarning):
    _public.__module__ = "functional_marl"
