"""What the author of a module states of it: one frozen description for Python, the command line and inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._network import Network
from functional_marl._pytrees import is_tensordict
from functional_marl._sharing import Sharing, SharingSpec
from functional_marl.laws._snippet import code
from functional_marl.laws._subject import CheckError

__all__ = ["AUTO", "Claims"]

AUTO = "auto"
_UNSTATED = object()  # an example that is not given


@dataclass(frozen=True, eq=False)
class Claims:
    """What a module with agents is called with, and what its author states of it.

    Args:
        example: inputs ``[*B, n, F]``: a tensor, a tuple of trees, a dict or a TensorDict; or a function of a
            ``torch.Generator`` that draws them. Other floats of the same shapes are drawn; integers are picked from
            those that the example has.
        n_agents: how many agents; a network, torchrl's and our classes state it themselves.
        sharing: ``"shared"``, ``"independent"``, ``[0, 0, 1]``, or patterns over the names of parameters and buffers.
            None: what torchrl's and our classes state, else what gradients show.
        centralized: each agent's network sees all inputs. None: what the module states, else False.
        communication: agents exchange messages, as by attention or a graph network: True for all with all, or for
            each agent the agents that it hears, ``[[1], [0, 2], [1]]``.
        rounds: how many rounds of messages there are over that graph.
        ids: a shared network adds one-hot ids of agents, or learned embeddings, of its own.
        agents: the agents' names, where inputs and outputs are dicts keyed by them: ``{agent: obs}``; or how many there
            are, where inputs and outputs are lists with one entry an agent: ``[obs_0, obs_1]``.
        groups: ``{group: number of agents}`` for dicts ``{group: [*B, n_g, F]}``; agents are numbered in this order.
        agent_dim: where inputs have the agents: an int, resolved on the first input, or a tree of positions over the
            example; None for what all agents see; ``"pairs"`` for an adjacency ``[*B, n, n]``.
        out_agent_dim: the same for outputs; by default where the first input has them.
        batch_dims: how many axes in front are batches, whose rows are computed by themselves; by default one at most.
            0 where the first axis is time.
        kwargs: keyword inputs; what is no tensor, as a flag, is the same in every call.
        select: what laws look at in the output: a function, or a word such as ``"logits"``, ``"0"``, ``"dist.loc"``.
        randomness: what agents draw in training: ``"error"``, ``"same"`` or ``"different"``, as in ``torch.func.vmap``.
        samples: evaluation draws, as a policy that returns actions does, from torch's generators.
        memory: the module keeps state from one call to the next, as a recurrent policy that stores its hidden state.
        single: builds the module of one agent, for laws that compare with it.

    Raises:
        CheckError: a field is none of these.

    >>> Claims(torch.zeros(3, 2, 4), n_agents=2, sharing="shared")
    Claims(torch.zeros([3, 2, 4]), n_agents=2, sharing='shared')
    """

    example: Any = _UNSTATED
    n_agents: int | None = None
    sharing: SharingSpec | bool | None = None
    centralized: bool | None = None
    communication: bool | Sequence[Sequence[int]] | None = None
    rounds: int = 1
    ids: bool = False
    agents: Sequence[str] | int | None = None
    groups: Mapping[str, int] | None = None
    agent_dim: Any = -2
    out_agent_dim: Any = AUTO
    batch_dims: int | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    select: Callable[[Any], Any] | str | None = None
    randomness: str | None = None
    samples: bool = False
    memory: bool = False
    single: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.example is _UNSTATED:
            raise CheckError("example: expected inputs to call the module with, such as torch.zeros(4, 3, 6)")
        if self.kwargs is None:  # pyright: ignore[reportUnnecessaryComparison]
            object.__setattr__(self, "kwargs", {})
        if self.n_agents is not None and self.n_agents < 1:
            raise CheckError(f"n_agents: expected 1 or more, got {self.n_agents}")
        if self.randomness not in (None, "error", "same", "different"):
            raise CheckError(f"randomness: expected 'error', 'same', 'different' or None, got {self.randomness!r}")
        if self.single is not None and (isinstance(self.single, nn.Module | Network) or not callable(self.single)):
            raise CheckError(
                f"single: expected a function that builds the module of one agent, got {type(self.single).__name__}"
            )
        if self.centralized and self.communication not in (None, False):
            raise CheckError(
                "communication: expected None where centralized=True: a centralized network sees all inputs anyway"
            )
        if self.rounds < 1:
            raise CheckError(f"rounds: expected 1 or more, got {self.rounds}")
        if self.agents is not None:
            self._check_names(self.agents)

    def _check_names(self, names: Sequence[str] | int) -> None:
        if isinstance(names, int):
            names = [f"agent_{k}" for k in range(names)]
        if isinstance(names, str) or len(set(names)) != len(names) or not names:
            raise CheckError(f"agents: expected a list of different names, or a number, got {names!r}")
        if self.groups is not None:
            raise CheckError("agents: expected None beside groups=: inputs are keyed by agent or by group")
        if self.n_agents not in (None, len(names)):
            raise CheckError(f"agents: expected {self.n_agents} names, got {list(names)}")

    def hears(self, n_agents: int) -> list[set[int]]:
        """For each agent those whose inputs may change its outputs, itself included.

        Raises:
            CheckError: the graph of communication does not fit the agents.
        """
        if self.centralized or self.communication is True:
            return [set(range(n_agents))] * n_agents
        if not self.communication:
            return [{agent} for agent in range(n_agents)]
        graph = self.communication
        fits = len(graph) == n_agents and all(0 <= other < n_agents for heard in graph for other in heard)
        if not fits:
            raise CheckError(
                f"communication: expected True, or for each of {n_agents} agents a list of the agents that it hears, "
                f"got {[list(heard) for heard in graph]}"
            )
        reach = [{agent} for agent in range(n_agents)]
        for _ in range(self.rounds):
            reach = [reach[agent].union(*(reach[other] for other in heard)) for agent, heard in enumerate(graph)]
        return reach

    def __repr__(self) -> str:
        default = Claims(None)
        stated = [
            f"{each.name}={_word(value)}"
            for each in fields(self)[1:]
            if not _same(value := getattr(self, each.name), getattr(default, each.name))
        ]
        return f"Claims({', '.join([_word(self.example), *stated])})"


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _word(value: Any) -> str:
    """A value as Python; ``...`` for what has no such form. Of float inputs the shape is enough."""
    if isinstance(value, Tensor):
        kind = "" if value.dtype is torch.float32 else f", dtype={value.dtype}"
        return f"torch.zeros({list(value.shape)}{kind})" if value.is_floating_point() else code(value)
    if is_tensordict(value):
        return f"TensorDict({_word(dict(value.items()))}, {list(value.batch_size)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_word(v)}" for k, v in cast("Mapping[Any, Any]", value).items()) + "}"
    if type(value) in (tuple, list):
        inside = ", ".join(map(_word, value))
        return f"[{inside}]" if type(value) is list else f"({inside}{',' * (len(value) == 1)})"
    return repr(value) if isinstance(value, str | int | float | Sharing | None) else "..."
