"""A multi-agent network as a frozen value: one agent's module, a sharing, and where inputs carry the agents."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast, get_args

import torch
from torch import nn

from functional_marl._check_arguments import as_choice, as_flag, as_index, short_repr
from functional_marl._errors import SharingError, StructureError
from functional_marl._module.module_spec import Build, ModuleSpec
from functional_marl._network_settings import NetworkSettings, Randomness, StrategyName
from functional_marl._pytrees import Tree, flatten, is_array, tree_map
from functional_marl._sharing import Sharing, SharingSpec, resolve
from functional_marl._strategies import NetworkEvaluator, prepare

__all__ = ["Network", "network", "network_of"]

_V = TypeVar("_V")


class _FrozenDict(dict[str, _V]):
    """A dict that cannot be changed; of a kind that dynamo, pickle and json take as a dict."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a network cannot be changed; net.replace(...) gives one with other settings")

    __setitem__ = __delitem__ = __ior__ = _refuse  # pyright: ignore
    clear = pop = popitem = setdefault = update = _refuse  # pyright: ignore

    def __reduce__(self) -> tuple[Any, ...]:
        return (_FrozenDict, (dict(self),))


# Names in other libraries, and what to write here.
_ELSEWHERE = {
    "init": "fm.init_params(net, key)",
    "apply": "fm.apply(net, params, x)",
    "forward": "fm.apply(net, params, x)",
    "parameters": "fm.init_params(net, key), which gives a dict of tensors",
    "named_parameters": "fm.init_params(net, key), which gives a dict of tensors",
    "state_dict": "fm.init_params(net, key) and fm.init_state(net), which give dicts of tensors",
}


@dataclass(frozen=True, eq=False)
class Network(NetworkSettings):
    """What :func:`network` returns: immutable, also its mappings, hashable, without parameter storage.

    Two networks are equal if they have the same factory object and the same settings. :meth:`replace` gives a
    network with other settings over the same module.
    """

    evaluators: tuple[NetworkEvaluator, NetworkEvaluator] = field(repr=False)  # what evaluates calls, indexed by train

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """A network holds no parameters, so it is not called.

        Raises:
            StructureError: always; it names :func:`apply`.
        """
        raise StructureError("a network holds no parameters and is not called itself: fm.apply(net, params, x)")

    def __getattr__(self, name: str) -> Any:
        hint = f"; write {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def replace(self, **changes: Any) -> Network:
        """The same module under other settings: ``sharing=``, ``n_agents=``, ``strategy=``, ...

        Raises:
            TypeError: an unknown setting. SharingError: a new ``n_agents`` without ``sharing=``, or a sharing that does
                not fit. StructureError: a wrong value.

        >>> net = network(lambda: nn.Linear(2, 1), n_agents=3)
        >>> net.replace(sharing=Sharing([2, 1, 2])).sharing["weight"]
        Sharing([2, 1, 2], n_slots=3)
        """
        allowed = {
            "n_agents",
            "sharing",
            "centralized",
            "agent_dim",
            "out_agent_dim",
            "randomness",
            "strategy",
        }
        if not changes.keys() <= allowed:
            raise TypeError(f"replace: unknown {sorted(changes.keys() - allowed)}; expected {sorted(allowed)}")
        if "n_agents" in changes and "sharing" not in changes:
            raise SharingError("replace: a new n_agents needs a new sharing= too")
        given = _settings(self) | changes
        if "sharing" not in changes:
            given["sharing"] = self.sharing_spec
        return _network(self.module_spec, **given)

    @property
    def sharing_spec(self) -> dict[str, Sharing]:
        """The slot maps of parameters and buffers in one mapping, as ``sharing=`` takes it."""
        return {glob.escape(name): slots for name, slots in (*self.sharing.items(), *self.state_sharing.items())}

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        return self  # immutable; a copy by pickling would lose a factory that is a lambda

    def _identity(self) -> tuple[Any, ...]:
        # A network that was unpickled without its factory equals only networks over the same module.
        return (self.module_spec.build or self.module_spec, self.sharing_spec, *_settings(self).values())

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Network) else NotImplemented

    def __hash__(self) -> int:
        kind = self.module_spec.build or self.module_spec
        return hash((kind, self.n_agents, self.centralized, self.randomness, self.strategy))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (self.module_spec, {**_settings(self), "sharing": self.sharing_spec}))


def _restore(module_spec: ModuleSpec, settings: dict[str, Any]) -> Network:
    return _network(module_spec, **settings)


def _settings(net: Network) -> dict[str, Any]:
    names = ("n_agents", "centralized", "agent_dim", "out_agent_dim", "randomness", "strategy")
    return {name: getattr(net, name) for name in names}


def _network(
    module_spec: ModuleSpec,
    *,
    n_agents: int,
    sharing: SharingSpec,
    centralized: bool,
    agent_dim: Tree,
    out_agent_dim: Tree,
    randomness: Randomness,
    strategy: StrategyName,
) -> Network:
    randomness = as_choice(randomness, "randomness", get_args(Randomness))
    strategy = as_choice(strategy, "strategy", get_args(StrategyName))
    n_agents = as_index(n_agents, "n_agents", 1)
    centralized = as_flag(centralized, "centralized")
    agent_dim, out_agent_dim = _as_dims(agent_dim, "agent_dim"), _as_dims(out_agent_dim, "out_agent_dim")
    slots = resolve(sharing, n_agents, [*module_spec.params, *module_spec.buffers])
    settings = NetworkSettings(
        n_agents=n_agents,
        sharing=_FrozenDict({k: slots[k] for k in module_spec.params}),
        state_sharing=_FrozenDict({k: slots[k] for k in module_spec.buffers}),
        centralized=centralized,
        agent_dim=agent_dim,
        out_agent_dim=out_agent_dim,
        randomness=randomness,
        strategy=strategy,
        module_spec=module_spec,
        param_shapes=_FrozenDict({k: (slots[k].n_slots, *leaf.shape) for k, leaf in module_spec.params.items()}),
        state_shapes=_FrozenDict({k: (slots[k].n_slots, *leaf.shape) for k, leaf in module_spec.buffers.items()}),
    )
    return Network(**vars(settings), evaluators=(prepare(settings, False), prepare(settings, True)))


def _as_dims(dims: Tree, what: str) -> Tree:
    wrong: list[Any] = []

    def index(dim: Any) -> int | None:
        try:
            return as_index(dim, what)
        except StructureError:
            wrong.append(dim)

    dims = tree_map(index, dims)
    if wrong:
        raise StructureError(f"{what}: expected ints and None, got {wrong}, in an int or a prefix over the leaves")
    return dims


def network(
    build: Build | nn.Module,
    n_agents: int,
    *,
    sharing: SharingSpec = "independent",
    centralized: bool = False,
    agent_dim: Tree = -2,
    out_agent_dim: Tree = None,
    randomness: Randomness = "different",
    strategy: StrategyName = "auto",
    example: Tree = None,
) -> Network:
    """A network of ``n_agents`` agents from the network of one.

    Args:
        build: a function that returns one agent's ``nn.Module``, called now and at every :func:`init_params`,
            for each slot or, where its operations can be replayed, for the first; or a module, which is
            copied and never changed, and initialized by its own ``reset_parameters``. All random numbers come from
            the key: a ``torch.Generator`` of the function's own, seeding, and threads that sample raise.
            numpy's and Python's random numbers inside the function do not come from the key.
        n_agents: how many agents.
        sharing: who owns which copy: ``"shared"``, ``"independent"``, one slot an agent (``[0, 0, 1]``), a
            :class:`Sharing`, or patterns over leaf names to any of these, first match wins
            (``{"0.*": "shared", "*": [0, 0, 1]}``). Buffers follow the same patterns.
        centralized: each agent sees the joint first input, the agent axis merged into the next axis:
            ``[*B, n, F] -> [*B, n * F]``.
        agent_dim: the agent axis of the inputs. An int of 0 or more is that axis of every input. A negative int
            counts from the end of each input, as ``in_dims`` of ``torch.func.vmap`` does. If the axis there does
            not have size ``n``, it is the same axis as in the first input, counted from the front (a state
            ``[B, n, H]`` beside ``[B, n, T, F]``). If both fit and differ, the call raises an error that shows both.
            Or a prefix over the tuple of inputs, as ``in_dims``, which is checked for each leaf by itself; ``None``
            is for a leaf that every agent gets whole. One entry more than there are positional inputs is the prefix
            for the keyword inputs. Without it they are treated as the first input that has agents. Outputs have
            the agents at the same axis as the first input.
        out_agent_dim: where outputs carry the agents: an int, or a prefix over the outputs.
        randomness: ``"error"``, ``"same"`` or ``"different"``, as in ``torch.func.vmap``, with one meaning
            under every sharing, also for a module that samples from a generator of its own.
        strategy: how agents are evaluated, see :func:`apply`.
        example: one agent's input, or a tuple of inputs, as it goes into its module (for a centralized
            network the joint input): gives lazy layers their shapes.

    Raises:
        SharingError: a sharing that does not fit; StructureError: an argument that is none of the above;
        RandomnessError: a factory that seeds torch's global generator, or samples where no key can be used.

    Torchrl's ``MultiAgentNetBase`` (pytorch.org/rl, torchrl.modules) holds the same settings in a stateful
    module; per-layer sharing is HetGPPO's (Bettini et al. 2023, arXiv:2301.07137).

    >>> net = network(lambda: nn.Linear(4, 2), n_agents=3, sharing=[0, 0, 1])
    >>> net.param_shapes["weight"]
    (2, 2, 4)
    """
    n_agents = as_index(n_agents, "n_agents", 1)
    if isinstance(build, Network):
        raise StructureError(
            "build: expected a function that returns one agent's nn.Module, or a module, got a network; "
            "net.replace(...) gives it other settings"
        )
    module_spec = ModuleSpec(build, _as_args(example))
    return _network(
        module_spec,
        n_agents=n_agents,
        sharing=sharing,
        centralized=centralized,
        agent_dim=agent_dim,
        out_agent_dim=out_agent_dim,
        randomness=randomness,
        strategy=strategy,
    )


def network_of(
    module: nn.Module,
    *,
    n_agents: int,
    sharing: SharingSpec,
    centralized: bool = False,
    agent_dim: Tree = -2,
    out_agent_dim: Tree = None,
    randomness: Randomness = "different",
) -> Network:
    """The network of agents with one module each; nothing is initialized (for the facade)."""
    return _network(
        ModuleSpec.from_module(module),
        n_agents=n_agents,
        sharing=sharing,
        centralized=centralized,
        agent_dim=agent_dim,
        out_agent_dim=out_agent_dim,
        randomness=randomness,
        strategy="auto",
    )


def _as_args(example: Tree) -> tuple[Any, ...] | None:
    if example is None:
        return None
    args = cast("tuple[Any, ...]", example) if isinstance(example, tuple) else (example,)
    leaves = flatten(args)[0]
    if any(map(is_array, leaves)) or (leaves and not any(isinstance(leaf, torch.Tensor) for leaf in leaves)):
        raise StructureError(
            "example: expected one agent's input, a tensor or a tree of tensors, or a tuple of inputs, got "
            f"{short_repr(example)}; give for example torch.zeros(4), or torch.as_tensor(x) of an array"
        )
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, args)
