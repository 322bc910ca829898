"""A module from anywhere with what its user says of it: where the agents are, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._errors import SharingError, StructureError
from functional_marl._network import Network
from functional_marl._pytrees import Tree, flatten, is_tensordict, leaf_names, prefix_leaves
from functional_marl._randomness.rng_state import rng_states, same_states
from functional_marl._sharing import Sharing, SharingSpec, resolve
from functional_marl.laws.facades import build_of, by_its_names, said_by, template_of
from functional_marl.laws.functional import Functional, as_module

__all__ = ["AUTO", "CheckError", "Host", "Place", "agents_of", "kept", "module_of", "seeded"]

AUTO = "auto"


class CheckError(ValueError):
    """The question cannot be asked: the module does not run, or what was said of it does not fit."""


@dataclass(frozen=True)
class Place:
    """A leaf of the inputs or outputs, and where it carries which agents; ``dim`` None: all see it whole."""

    name: str
    members: tuple[int, ...]
    dim: int | None

    def of(self, agent: int, leaf: Tensor) -> Tensor | None:
        """The part of one agent; None if it has none."""
        if self.dim is None:
            return leaf
        return leaf.select(self.dim, self.members.index(agent)) if agent in self.members else None


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """torch's global generators under a seed; put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def kept(module: nn.Module) -> Generator[None]:
    """Parameters, buffers and training flags are what they were, afterwards."""
    flags = {part: part.training for part in module.modules()}
    tables = [
        (table, dict(table))
        for part in module.modules()
        for table in [part.__dict__.get("_buffers")]
        if isinstance(table, dict)
    ]
    held = [(leaf, leaf.detach().clone()) for leaf in (*module.parameters(), *module.buffers()) if not _lazy(leaf)]
    try:
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag
        for table, was in tables:
            if table.keys() == was.keys() and not any(_lazy(leaf) for leaf in was.values()):
                table.update(was)
        with torch.no_grad():
            for leaf, was in held:
                if not leaf.is_meta and leaf.shape == was.shape and not torch.equal(leaf, was):
                    leaf.data.copy_(was)  # autograd counts no version: a graph may hold the leaf


@contextmanager
def _derivable() -> Generator[None]:
    """Attention takes the way that has a derivative, also in evaluation."""
    mha: Any = torch.backends.mha
    was = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(was)


def module_of(subject: Any) -> nn.Module:
    """The module, or the functional network ``(net, params)`` as one.

    Raises:
        CheckError: it is neither, or the parameters do not fit.
    """
    try:
        module = as_module(subject)
    except (TypeError, StructureError) as error:
        raise CheckError(f"subject: {error}") from None
    if not isinstance(module, nn.Module):
        raise CheckError(f"subject: expected a module or (net, params), got {type(module).__name__}")
    return module


def agents_of(module: nn.Module, n_agents: int | None) -> int:
    """The number of agents, which a facade or a network says.

    Raises:
        CheckError: nobody says it.
    """
    count = said_by(module).get("n_agents") if n_agents is None else n_agents
    if count is None:
        raise CheckError("n_agents: expected how many agents there are; the module does not say")
    return count


def _lazy(leaf: Any) -> bool:
    return leaf is not None and nn.parameter.is_lazy(leaf)


@dataclass
class Host:
    """A module and what is said of it; laws call it through this alone.

    Args:
        module: the module.
        example: its inputs: a tuple of positional ones, or one tensor, dict or TensorDict; or a function of
            a ``torch.Generator`` that draws them.
        n_agents: how many agents.
        sharing: what it claims to share; None if nothing.
        centralized: whether each agent sees all inputs; None: what the module says, else False.
        agent_dim: where inputs carry the agents: an int, resolved on the first leaf, or a prefix tree.
        out_agent_dim: the same for outputs; ``"auto"``: where the first input has them.
        randomness: ``"error"``, ``"same"``, ``"different"``, or None: nothing is claimed.
        kwargs: keyword inputs.
        batch_dims: how many axes in front are batches whose rows are apart; by default the first one.
        groups: ``{group: number of agents}`` for dicts of groups; agents are numbered in this order.
        single: builds the module of one agent, or None.
        select: takes of the output what laws look at.
        words: what the user said, to be repeated in snippets.
    """

    module: nn.Module
    example: Any
    n_agents: int
    sharing: SharingSpec | bool | None = None
    centralized: bool | None = None
    agent_dim: Any = -2
    out_agent_dim: Any = AUTO
    randomness: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    batch_dims: int | None = None
    groups: Mapping[str, int] | None = None
    single: Callable[[], nn.Module] | None = None
    select: Callable[[Any], Any] | None = None
    build: Callable[[], nn.Module] | None = None
    words: str = ""

    def __post_init__(self) -> None:
        if self.n_agents < 1:
            raise CheckError(f"n_agents: expected 1 or more, got {self.n_agents}")
        if self.randomness not in (None, "error", "same", "different"):
            raise CheckError(f"randomness: expected 'error', 'same', 'different' or None, got {self.randomness!r}")
        if self.single is not None and (isinstance(self.single, nn.Module | Network) or not callable(self.single)):
            raise CheckError(
                f"single: expected a function that builds the module of one agent, got {type(self.single).__name__}"
            )
        self._hear()
        self.draw: Callable[[torch.Generator], Any] | None = None
        if callable(self.example) and not isinstance(self.example, Tensor) and not is_tensordict(self.example):
            self.draw = cast("Callable[[torch.Generator], Any]", self.example)
            self.example = self.draw(torch.Generator().manual_seed(0))
        self._place()
        self.fault: BaseException | None = None
        self.out_places: tuple[Place, ...] = ()
        self.facts: dict[Any, Any] = {}  # what was found out about the module, once
        self._probe()
        self.claims = self._claims()

    def _hear(self) -> None:
        """Fill in what the module says of itself where the user says nothing; stop where they disagree."""
        said = said_by(self.module)
        if said.get("n_agents", self.n_agents) != self.n_agents:
            raise CheckError(f"n_agents: the module has {said['n_agents']} agents, and n_agents={self.n_agents}")
        self.claimed_by = "you" if self.sharing is not None else "the module" if "sharing" in said else "nobody"
        if self.sharing is None:
            self.sharing = said.get("sharing")
        if isinstance(self.sharing, bool):
            self.sharing = "shared" if self.sharing else "independent"
        if self.centralized is None:
            self.centralized = bool(said.get("centralized", False))
        if self.randomness is None:
            self.randomness = said.get("randomness")
        if self.agent_dim == -2:
            self.agent_dim = said.get("agent_dim", -2)
        if self.out_agent_dim == AUTO:
            self.out_agent_dim = said.get("out_agent_dim", AUTO)
        self.facade = bool(said) and not isinstance(self.module, Functional)
        if self.single is None:
            self.single = build_of(self.module)

    def again(self, seed: int) -> Host:
        """The same with a module built anew."""
        assert self.build is not None
        with seeded(seed):
            return replace(self, module=module_of(self.build()), example=self.draw or self.example)

    # --- where things are ---------------------------------------------------------------------------------

    def _place(self) -> None:
        args: tuple[Any, ...] = self.example if type(self.example) is tuple else (self.example,)
        tree = (args, dict(self.kwargs))
        leaves, self.rebuild = flatten(tree)
        names = [*leaf_names(args, "inputs"), *leaf_names(tree[1], "kwargs")]
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise CheckError(f"example: expected tensors, got {[type(leaf).__name__ for leaf in leaves]}")
        self.leaves: list[Tensor] = leaves
        try:
            dims = self._input_dims(tree)
        except StructureError as error:
            raise CheckError(str(error)) from None
        hint = "say where with agent_dim= (a tree of positions, None for what all agents see)"
        self.places = tuple(
            self._at(name, leaf, dim, hint) for name, leaf, dim in zip(names, leaves, dims, strict=True)
        )
        first = next((place.dim for place in self.places if place.dim is not None), None)
        if first is None and self.out_agent_dim == AUTO:
            raise CheckError(f"agent_dim={self.agent_dim}: no input has an axis of agents: say out_agent_dim=")
        self.position = first
        most = leaves[0].ndim - 1 if first is None else first
        self.rows = min(most, 1) if self.batch_dims is None else self.batch_dims  # how many axes are batches
        if not 0 <= self.rows <= most:
            raise CheckError(f"batch_dims: expected at most the {most} axes ahead of the agents, got {self.rows}")
        of_agents = [leaf for leaf, place in zip(leaves, self.places, strict=True) if place.dim is not None]
        self.batch = tuple((of_agents or leaves)[0].shape[: self.rows])
        self.batched = [tuple(leaf.shape[: self.rows]) == self.batch for leaf in leaves]
        for name, leaf, place, has in zip(names, leaves, self.places, self.batched, strict=True):
            if place.dim is not None and not has:
                raise CheckError(f"{name}: expected the batch axes {list(self.batch)} in front, got {list(leaf.shape)}")

    def _input_dims(self, tree: Tree) -> list[int | None]:
        if isinstance(self.agent_dim, int):
            first = self.leaves[0].ndim
            if not -first <= self.agent_dim < first:
                raise CheckError(f"agent_dim={self.agent_dim}: the first input has shape {list(self.leaves[0].shape)}")
            return [self.agent_dim % first] * len(self.leaves)
        given, args = self.agent_dim if type(self.example) is tuple else (self.agent_dim,), tree[0]
        if is_tensordict(self.example):  # positions of its entries come in a plain dict
            args = (cast(Any, self.example).to_dict(),)
        dims = prefix_leaves(given, args, "agent_dim")
        first = next((dim for dim in dims if dim is not None), None)  # keyword inputs have the agents there, too
        return [*dims, *[first] * (len(self.leaves) - len(dims))]

    def _at(self, name: str, leaf: Any, dim: int | None, hint: str) -> Place:
        """The place of a leaf; raises where the agents are not there."""
        if not isinstance(leaf, Tensor):
            raise CheckError(f"{name}: expected a tensor, got {type(leaf).__name__}; {hint}")
        members = self._members(name)
        if dim is None or not members:
            return Place(name, members, None)
        if not (-leaf.ndim <= dim < leaf.ndim and leaf.shape[dim] == len(members)):
            raise CheckError(
                f"{name}: expected {len(members)} agents at dim {dim}, got shape {list(leaf.shape)}; {hint}"
            )
        return Place(name, members, dim % leaf.ndim)

    def _members(self, name: str) -> tuple[int, ...]:
        if self.groups is None:
            return tuple(range(self.n_agents))
        if sum(self.groups.values()) != self.n_agents:
            raise CheckError(f"groups: expected {self.n_agents} agents, got {dict(self.groups)}")
        start = 0
        for group, size in self.groups.items():
            if f"[{group!r}]" in name:
                return tuple(range(start, start + size))
            start += size
        return ()

    def group_of(self, agent: int) -> tuple[int, ...]:
        """The agents whose inputs look as this one's: in the same group."""
        start = 0
        for size in (self.groups or {"": self.n_agents}).values():
            if agent < start + size:
                return tuple(range(start, start + size))
            start += size
        raise CheckError(f"agent {agent}: expected one of {self.n_agents}")

    # --- calls --------------------------------------------------------------------------------------------

    def run(self, leaves: Sequence[Tensor], *, train: bool, seed: int) -> Tree:
        """One call; parameters, buffers and generators are as before, afterwards."""
        with kept(self.module), seeded(seed), _derivable():
            return self._output(leaves, train)

    def draws(self, leaves: Sequence[Tensor], *, train: bool) -> bool:
        """Whether a call draws from torch's generators, be it seen in the outputs or not."""
        with kept(self.module), seeded(0), _derivable():
            tensors = [*leaves, *self.module.parameters()]
            before = rng_states(tensors)
            self._output(leaves, train)
            return not same_states(before, rng_states(tensors))

    def _output(self, leaves: Sequence[Tensor], train: bool) -> Tree:
        args, kwargs = self.rebuild(leaves)
        self.module.train(train)
        output = self.module(*args, **kwargs)
        if self.select is not None:
            return self.select(output)
        return self._written(output, leaves) if is_tensordict(output) else output

    def _written(self, output: Any, given: Sequence[Tensor]) -> dict[str, Any]:
        """What a module has put into a TensorDict: its ``out_keys``, or all that is new."""
        keys = getattr(self.module, "out_keys", None)
        if keys:
            return {str(key): output.get(key) for key in keys if output.get(key, None) is not None}
        old = {id(leaf) for leaf in given}
        return {str(k): v for k, v in output.items(True, True) if isinstance(v, Tensor) and id(v) not in old}

    def _probe(self) -> None:
        """The first call: lazy leaves get their shapes, and outputs say where they have the agents."""
        try:
            output = self.run(self.leaves, train=False, seed=0)
        except Exception as error:
            self.fault = error
            return
        leaves = flatten(output)[0]
        try:
            dims = prefix_leaves(self.position if self.out_agent_dim == AUTO else self.out_agent_dim, output, "out")
        except StructureError as error:
            raise CheckError(str(error)) from None
        hint = "say where with out_agent_dim= (None for what belongs to all), or choose with select="
        self.out_places = tuple(
            self._at(name, leaf, dim, hint)
            for name, leaf, dim in zip(leaf_names(output, "outputs"), leaves, dims, strict=True)
        )
        if not self.out_places:
            raise CheckError("outputs: expected tensors, got none; choose with select=")

    # --- parameters ---------------------------------------------------------------------------------------

    def params(self) -> dict[str, Tensor]:
        """The float parameters by name."""
        found = {name: leaf for name, leaf in self.module.named_parameters() if not _lazy(leaf)}
        return {name: leaf for name, leaf in found.items() if leaf.is_floating_point()}

    def _claims(self) -> dict[str, Sharing] | None:
        if self.sharing is None:
            return None
        names = list(self.params()) or ["module"]
        try:
            return resolve(cast("SharingSpec", self.sharing), self.n_agents, names)
        except SharingError as error:
            inner = by_its_names(self.module, self.sharing)
            if inner is not self.sharing:
                with suppress(SharingError):
                    return resolve(inner, self.n_agents, names)
            raise CheckError(str(error)) from None

    def one_agent(self, agent: int) -> Callable[..., Any] | None:
        """A function of one agent's inputs that computes with its parameters, for modules that hold a template."""
        return template_of(self.module, agent)
