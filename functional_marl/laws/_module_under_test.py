"""A module from any library with what is claimed of it: where it has the agents, and how it is called."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._errors import SharingError, StructureError
from functional_marl._pytrees import Tree, flatten, is_tensordict, leaf_names, prefix_leaves, tree_map
from functional_marl._randomness.rng_state import rng_states, same_states
from functional_marl._sharing import Sharing, SharingSpec, resolve
from functional_marl.laws._agent_dicts import keyed_by_agent
from functional_marl.laws._agent_lists import listed_by_agent
from functional_marl.laws._claims import AUTO, Claims
from functional_marl.laws._functions import function_module
from functional_marl.laws._network_module import NetworkModule, as_module
from functional_marl.laws._outputs import as_tree, selector, written
from functional_marl.laws._places import PAIRS, Place
from functional_marl.laws._restore import differentiable_attention, kept, seeded
from functional_marl.laws._self_description import build_of, by_its_names, stated_by, template_of
from functional_marl.laws._subject import CheckError

__all__ = ["ModuleUnderTest", "module_of"]


def module_of(subject: Any) -> nn.Module:
    """The module, or a functional network ``(net, params)`` or a function ``(function, params)`` as one.

    Raises:
        CheckError: it is none of these, or the parameters do not fit.
    """
    try:
        module = as_module(subject)
    except (TypeError, StructureError) as error:
        raise CheckError(f"subject: {error}") from None
    if isinstance(module, tuple) and len(cast("tuple[Any, ...]", module)) == 2 and callable(module[0]):
        module = function_module(*cast("tuple[Any, Any]", module))
    if not isinstance(module, nn.Module):
        got = type(module).__name__
        raise CheckError(f"subject: expected a module, (net, params) or (function, params), got {got}")
    return module


def is_lazy(leaf: Any) -> bool:
    """Whether a leaf has no shape yet."""
    return leaf is not None and nn.parameter.is_lazy(leaf)


def _has_numbers(leaf: Tensor) -> bool:
    """Whether a leaf has numbers; one of a template on the meta device has none."""
    return not is_lazy(leaf) and not leaf.is_meta


class ModuleUnderTest:
    """A module and what is claimed of it; laws call it through this alone.

    Args:
        module: the module.
        claims: what its author states; what a torchrl or one of our modules states is filled in.
        build: builds the module anew, where it is known.

    Raises:
        CheckError: the claims do not fit the module or the example.
    """

    def __init__(self, module: nn.Module, claims: Claims, build: Callable[[], nn.Module] | None = None) -> None:
        self.given, self.build = claims, build
        stated = stated_by(module)
        self.facade = bool(stated) and not isinstance(module, NetworkModule)
        self.claimed_by = "you" if claims.sharing is not None else "the module" if "sharing" in stated else "nobody"
        claims = _with_statements(claims, stated)
        if claims.single is None:
            claims = replace(claims, single=build_of(module))
        self.names: tuple[str, ...] | None = None
        if claims.agents is not None:
            module, claims = self._keyed(module, claims)
        self.draw: Callable[[torch.Generator], Any] | None = None
        example = claims.example
        if callable(example) and not isinstance(example, Tensor) and not is_tensordict(example):
            self.draw = cast("Callable[[torch.Generator], Any]", example)
            claims = replace(claims, example=self.draw(torch.Generator().manual_seed(0)))
        if claims.n_agents is None:
            raise CheckError("n_agents: expected how many agents there are; the module does not state it")
        self.module, self.claims, self.n_agents = module, claims, claims.n_agents
        self.hears = claims.hears(self.n_agents)
        self.facts: dict[Any, Any] = {}  # what was found out about the module, once
        self.select = selector(claims.select)
        self._place()
        self.fault: BaseException | None = None
        self.out_places: tuple[Place, ...] = ()
        self._probe()
        self.slots = self._slots()

    def _keyed(self, module: nn.Module, claims: Claims) -> tuple[nn.Module, Claims]:
        """Dicts keyed by agent as an axis of agents, or as groups of agents with inputs of one form."""
        assert claims.agents is not None
        kwargs, agents, given = dict(claims.kwargs), claims.agents, claims.example
        if isinstance(agents, int):
            module, agents, given = listed_by_agent(module, agents, given)
        keyed, example, groups, self.names = keyed_by_agent(
            module, agents, given, claims.batch_dims, kwargs=kwargs, select=claims.select
        )
        places: dict[str, Any] = {
            "agent_dim": keyed.agent_dim if type(claims.example) is tuple else keyed.agent_dim[0],
            "out_agent_dim": keyed.batch_dims,
            "batch_dims": keyed.batch_dims,
        }
        stacked = {"example": example, "kwargs": keyed.stack(kwargs), "groups": groups, "agents": None, "select": None}
        return keyed, replace(claims, n_agents=len(self.names), **places, **stacked)

    def again(self, seed: int) -> ModuleUnderTest:
        """The same with a module built anew."""
        assert self.build is not None
        with seeded(seed):
            return ModuleUnderTest(module_of(self.build()), self.given, self.build)

    @property
    def centralized(self) -> bool:
        """Whether each agent's network sees all inputs."""
        return bool(self.claims.centralized)

    # --- where things are ---------------------------------------------------------------------------------

    def _place(self) -> None:
        example, agent_dim = self.claims.example, self.claims.agent_dim
        args: tuple[Any, ...] = example if type(example) is tuple else (example,)
        tree = (args, dict(self.claims.kwargs))
        self._every_leaf, self._rebuild = flatten(tree)
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in self._every_leaf]
        every_name = [*leaf_names(args, "inputs"), *leaf_names(tree[1], "kwargs")]
        leaves, names = self.tensors_of(tree), list(itertools.compress(every_name, self._is_tensor))
        if not leaves:
            kinds = [type(leaf).__name__ for leaf in self._every_leaf]
            raise CheckError(f"example: expected tensors, got {kinds}")
        self.leaves: list[Tensor] = leaves
        try:
            dims = self._input_dims(tree)
        except StructureError as error:
            raise CheckError(str(error)) from None
        hint = "state where with agent_dim= (a tree of positions, None for what all agents see)"
        self.places = tuple(
            self._at(name, leaf, dim, hint) for name, leaf, dim in zip(names, leaves, dims, strict=True)
        )
        first = next((place.dim for place in self.places if place.dim is not None), None)
        if first is None and self.claims.out_agent_dim == AUTO:
            raise CheckError(f"agent_dim={agent_dim}: no input has an axis of agents: state out_agent_dim=")
        self.position = first
        most = leaves[0].ndim - 1 if first is None else first
        given = self.claims.batch_dims
        self.batch_dims = min(most, 1) if given is None else given  # how many axes are batches
        if not 0 <= self.batch_dims <= most:
            raise CheckError(f"batch_dims: expected at most the {most} axes ahead of the agents, got {self.batch_dims}")
        of_agents = [leaf for leaf, place in zip(leaves, self.places, strict=True) if place.dim is not None]
        self.batch = tuple((of_agents or leaves)[0].shape[: self.batch_dims])
        # A hidden state [layers, B, n, H] has its batch elsewhere: only the whole batch of the example goes in.
        self.batched = [tuple(leaf.shape[: self.batch_dims]) == self.batch for leaf in leaves]

    def tensors_of(self, tree: Tree) -> list[Tensor]:
        """The tensors of inputs; what else they have, as flags and numbers, is the same in every call."""
        return list(itertools.compress(flatten(tree)[0], self._is_tensor))

    def rebuild(self, leaves: Sequence[Any]) -> Tree:
        """Inputs ``(args, kwargs)`` with these leaves in the place of the tensors."""
        tensors = iter(leaves)
        pairs = zip(self._every_leaf, self._is_tensor, strict=True)
        return self._rebuild([next(tensors) if is_tensor else leaf for leaf, is_tensor in pairs])

    def _input_dims(self, tree: Tree) -> list[int | str | None]:
        agent_dim, example = self.claims.agent_dim, self.claims.example
        if isinstance(agent_dim, int):
            first = self.leaves[0].ndim
            if not -first <= agent_dim < first:
                raise CheckError(f"agent_dim={agent_dim}: the first input has shape {list(self.leaves[0].shape)}")
            return [agent_dim % first] * len(self.leaves)
        given, args = agent_dim if type(example) is tuple else (agent_dim,), tree[0]
        if is_tensordict(example):  # positions of its entries come in a plain dict
            args = (cast(Any, example).to_dict(),)
        dims = prefix_leaves(given, args, "agent_dim")
        first = next((dim for dim in dims if dim is not None), None)  # keyword inputs have the agents there, too
        every = [*dims, *[first] * (len(self._every_leaf) - len(dims))]
        return list(itertools.compress(every, self._is_tensor))

    def _at(self, name: str, leaf: Any, dim: int | str | None, hint: str) -> Place:
        """The place of a leaf; raises where the agents are not there."""
        if not isinstance(leaf, Tensor):
            raise CheckError(f"{name}: expected a tensor, got {type(leaf).__name__}; {hint}")
        members = self._members(name)
        if dim is None or not members:
            return Place(name, members, None)
        pairs = dim == PAIRS
        if pairs and (leaf.ndim < 2 or leaf.shape[-2:] != (len(members), len(members))):
            n = len(members)
            raise CheckError(f"{name}: expected [*B, {n}, {n}] for agent_dim={PAIRS!r}, got {list(leaf.shape)}")
        if isinstance(dim, str):
            dim = -2 if pairs else self._no_place(name, dim)
        if not (-leaf.ndim <= dim < leaf.ndim and leaf.shape[dim] == len(members)):
            raise CheckError(
                f"{name}: expected {len(members)} agents at dim {dim}, got shape {list(leaf.shape)}; {hint}"
            )
        return Place(name, members, dim % leaf.ndim, pairs)

    def _no_place(self, name: str, dim: str) -> int:
        raise CheckError(f"{name}: expected an int, None or {PAIRS!r} for where the agents are, got {dim!r}")

    def _members(self, name: str) -> tuple[int, ...]:
        groups = self.claims.groups
        if groups is None:
            return tuple(range(self.n_agents))
        if sum(groups.values()) != self.n_agents:
            raise CheckError(f"groups: expected {self.n_agents} agents, got {dict(groups)}")
        start = 0
        for group, size in groups.items():
            if f"[{group!r}]" in name:
                return tuple(range(start, start + size))
            start += size
        return ()

    def group_of(self, agent: int) -> tuple[int, ...]:
        """The agents whose inputs look as this one's: in the same group."""
        start = 0
        for size in (self.claims.groups or {"": self.n_agents}).values():
            if agent < start + size:
                return tuple(range(start, start + size))
            start += size
        raise CheckError(f"agent {agent}: expected one of {self.n_agents}")

    # --- calls --------------------------------------------------------------------------------------------

    def run(
        self,
        leaves: Sequence[Tensor],
        *,
        train: bool,
        seed: int,
        numbers: Mapping[str, Tensor] | None = None,
        after: dict[str, Tensor] | None = None,
        others: int | None = None,
    ) -> Tree:
        """One call, after which the module is as before.

        Args:
            leaves: the inputs, in the order of the example's leaves.
            train: whether the call is in training.
            seed: of all generators.
            numbers: parameters and buffers for this call; such calls record no gradients.
            after: gets the buffers as the call leaves them.
            others: the seed of Python's and numpy's generators, where it is not that of torch's.
        """
        with (
            kept(self.module),
            seeded(seed, others),
            differentiable_attention(self.module),
            torch.set_grad_enabled(torch.is_grad_enabled() and not numbers),
        ):
            own = {**self.params(), **self.buffers()} if numbers else {}
            for name, value in (numbers or {}).items():
                own[name].data.copy_(value)
            # clones, for a module may write into its inputs
            output = self.call([leaf.clone() for leaf in leaves], train)
            if after is not None:
                after.update({name: leaf.detach().clone() for name, leaf in self.buffers().items()})
            # Outputs may be views of parameters or of what calls keep, which are restored now.
            return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)

    def samples(self, leaves: Sequence[Tensor], *, train: bool) -> bool:
        """Whether a call draws from torch's generators, be it seen in the outputs or not."""
        with kept(self.module), seeded(0):
            tensors = [*leaves, *self.module.parameters()]
            before = rng_states(tensors)
            self.call(leaves, train)
            return not same_states(before, rng_states(tensors))

    def call(self, leaves: Sequence[Tensor], train: bool) -> Tree:
        """One call, of which nothing is restored; two in a row where memory is claimed."""
        self.module.train(train)
        # Where calls keep memory, the second one shows what the first has left for whom.
        outputs = [self._called(leaves) for _ in range(2 if self.claims.memory else 1)]
        return outputs if self.claims.memory else outputs[0]

    def _called(self, leaves: Sequence[Tensor]) -> Tree:
        args, kwargs = self.rebuild(leaves)
        output = self.module(*args, **kwargs)
        if self.claims.select is None and is_tensordict(output):
            output = written(self.module, output, leaves)
        return self.read(output)

    def read(self, output: Any) -> Tree:
        """What laws look at in an output."""
        return as_tree(self.select(output))

    def _probe(self) -> None:
        """The first call: lazy leaves get their shapes, and outputs show where they have the agents."""
        try:
            output = self.run(self.leaves, train=False, seed=0)
        except CheckError:
            raise
        except Exception as error:
            self.fault = error
            return
        leaves, given = flatten(output)[0], self.claims.out_agent_dim
        try:
            dims = prefix_leaves(self.position if given == AUTO else given, output, "out")
        except StructureError as error:
            raise CheckError(str(error)) from None
        hint = "state where with out_agent_dim= (None for what belongs to all), or choose with select="
        self.out_places = tuple(
            self._at(name, leaf, dim, hint)
            for name, leaf, dim in zip(leaf_names(output, "outputs"), leaves, dims, strict=True)
        )
        if not self.out_places:
            raise CheckError("outputs: expected tensors, got none; choose with select=")

    # --- numbers ------------------------------------------------------------------------------------------

    def params(self) -> dict[str, Tensor]:
        """The float parameters by name."""
        found = {name: leaf for name, leaf in self.module.named_parameters() if _has_numbers(leaf)}
        return {name: leaf for name, leaf in found.items() if leaf.is_floating_point()}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers by name."""
        return {name: leaf for name, leaf in self.module.named_buffers() if _has_numbers(leaf)}

    def _slots(self) -> dict[str, Sharing] | None:
        """The claimed slot map of every parameter and, where the claim says one, of every buffer; None: no claim."""
        spec = self.claims.sharing
        if spec is None:
            return None
        params = list(self.params()) or ["module"]
        given = cast("SharingSpec", spec)
        named = by_its_names(self.module, given)
        # patterns may leave out buffers; a facade's may be over the names of one agent's leaves
        for claim, names in ((given, [*params, *self.buffers()]), (given, params), (named, params)):
            with suppress(SharingError):
                return resolve(claim, self.n_agents, names)
        try:
            return resolve(given, self.n_agents, params)
        except SharingError as error:
            raise CheckError(str(error)) from None

    def one_agent(self, agent: int) -> Callable[..., Any] | None:
        """A function of one agent's inputs that computes with its parameters, for modules that hold a template."""
        return template_of(self.module, agent)


def _with_statements(claims: Claims, stated: Mapping[str, Any]) -> Claims:
    """The claims with what the module states of itself where its author states nothing.

    Raises:
        CheckError: they disagree about the number of agents.
    """
    n_agents = claims.n_agents
    if n_agents is None and claims.groups is not None:
        n_agents = sum(claims.groups.values())
    if n_agents is None and claims.agents is not None:
        n_agents = claims.agents if isinstance(claims.agents, int) else len(claims.agents)
    if n_agents is not None and stated.get("n_agents", n_agents) != n_agents:
        raise CheckError(f"n_agents: the module has {stated['n_agents']} agents, and n_agents={n_agents}")
    sharing = stated.get("sharing") if claims.sharing is None else claims.sharing
    if isinstance(sharing, bool):
        sharing = "shared" if sharing else "independent"
    centralized = stated.get("centralized", False) if claims.centralized is None else claims.centralized
    found: dict[str, Any] = {
        "n_agents": stated.get("n_agents") if n_agents is None else n_agents,
        "sharing": sharing,
        "centralized": bool(centralized) and not claims.communication,
        "randomness": stated.get("randomness") if claims.randomness is None else claims.randomness,
    }
    if claims.agent_dim == -2:
        found["agent_dim"] = stated.get("agent_dim", -2)
    if claims.out_agent_dim == AUTO:
        found["out_agent_dim"] = stated.get("out_agent_dim", AUTO)
    return replace(claims, **found)
