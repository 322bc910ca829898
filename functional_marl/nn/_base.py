"""``MultiAgentNetBase``: an ``nn.Module`` around the functional core, for torchrl users.

The module registers parameters, by a ``ParameterStore``. ``forward`` ends in one ``fm.apply`` on the tensors that are
registered at that moment.
"""

from __future__ import annotations

import abc
import glob
from collections.abc import Callable
from textwrap import indent
from typing import Any, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from functional_marl._apply import apply
from functional_marl._check_arguments import as_choice, as_flag, as_index, short_repr
from functional_marl._errors import StructureError
from functional_marl._module.lazy import is_lazy
from functional_marl._module.leaves import get_leaves
from functional_marl._module.limitations import check_parts
from functional_marl._network import Network, network_of
from functional_marl._network_settings import Randomness
from functional_marl._sharing import SharingSpec
from functional_marl._strategies import supports
from functional_marl.nn._agent_axis_warning import reads_agent_axis, warn_reads_agent_axis
from functional_marl.nn._edit_tracker import EditTracker, keep_mode
from functional_marl.nn._initialization import init_slots_in_order
from functional_marl.nn._parameter_store import ParameterStore, ignore_empty_net_buffers

__all__ = ["MultiAgentNetBase", "merges_agents", "repeatable"]

_REMADE = ("_edits", "_net", "_nets")  # after a copy or unpickling

Function = TypeVar("Function", bound=Callable[..., Any])


def merges_agents(check: Function) -> Function:
    """Mark a ``_pre_forward_check`` that only repeats the core: it checks ``agent_dim`` and merges if centralized."""
    check.merges_agents = True  # pyright: ignore
    return check


def repeatable(make: Function) -> Function:
    """Mark a ``_build_single_net`` that may be called more often than there are slots, to record what it does."""
    make.repeatable = True  # pyright: ignore
    return make


class MultiAgentNetBase(nn.Module):
    """The network of ``n_agents`` agents as an ``nn.Module``: ``[*B, n, F] -> [*B, n, F_out]``.

    A subclass gives the network of one agent, ``_build_single_net(device=..., **kwargs)``, and
    ``_pre_forward_check(inputs)``, which checks the input and, if the network is centralized, merges the agent
    axis into another. Subclasses written for torchrl work unchanged.

    Args:
        n_agents: how many agents.
        centralized: whether each agent sees the inputs of all; ``centralised`` is accepted too.
        share_params: True: one network for all agents, its leaves stored without slot axis, ``[*leaf]``.
            False: one an agent, ``[n, *leaf]``. Beyond torchrl any sharing of :func:`functional_marl.network`
            (``[0, 0, 1]``, ``{"0.*": "shared", "*": [0, 0, 1]}``, a ``Sharing``): every leaf is then stored
            as ``[S, *leaf]``, also where ``S`` is 1.
        agent_dim: where input and output carry the agents.
        vmap_randomness: ``"error"``, ``"same"`` or ``"different"`` random numbers for the agents, under every sharing.
        use_td_params: True: the parameters are ``params``, a ``TensorDictParams``, with ``state_dict`` keys
            ``params.0.weight``. False: ``_empty_net`` holds them, with keys ``_empty_net.0.weight``.
        **kwargs: for ``_build_single_net``.

    The next eager call sees edits of the one-agent module: ``dropout.p = 0.2``, an activation replaced,
    ``eval()`` of one layer. A compiled call sees none. Edits of its leaves (a new layer, pruning, a
    parametrization, quantization) are accepted under ``share_params=True`` with ``use_td_params=False``, where that
    module holds the leaves of an agent. Otherwise the next call raises.

    With buffers and ``use_td_params=True`` torchrl's checkpoints hold the buffers of its one-agent module too, as meta
    tensors. Ours do not. torchrl's checkpoints load here, and ours load there with ``strict=False``, with all numbers.

    Raises:
        TypeError: ``centralized``, ``share_params`` or ``agent_dim`` is missing. SharingError (a ValueError):
            a sharing that does not fit. StructureError (a ValueError): an argument of another kind.

    After ``torchrl.modules.MultiAgentNetBase`` (pytorch.org/rl).

    >>> from functional_marl.nn import MultiAgentMLP
    >>> mlp = MultiAgentMLP(4, 2, 3, centralized=False, share_params=[0, 0, 1], depth=0)
    >>> mlp(torch.zeros(5, 3, 4)).shape, mlp.state_dict()["params.0.weight"].shape
    (torch.Size([5, 3, 2]), torch.Size([2, 2, 4]))
    """

    of_several_agents = True  # no other network may use it as the module of one agent
    _empty_net: nn.Module
    _compared = False  # whether a call was compared with that of torchrl

    def __init__(
        self,
        *,
        n_agents: int,
        centralized: bool | None = None,
        share_params: bool | SharingSpec | None = None,
        agent_dim: int | None = None,
        vmap_randomness: str = "different",
        use_td_params: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        centralized = kwargs.pop("centralised", centralized)
        if "sharing" in kwargs:
            raise TypeError("sharing: these classes call it share_params, which takes any sharing")
        for name, value in (("centralized", centralized), ("share_params", share_params), ("agent_dim", agent_dim)):
            if value is None:
                raise TypeError(f"{name}: expected a value, got None; pass {name}=")
        self.n_agents = n_agents = as_index(n_agents, "n_agents", 1)
        self.share_params = cast("bool | SharingSpec", _as_sharing(share_params))
        self.centralized = as_flag(centralized, "centralized")
        self.agent_dim = as_index(agent_dim, "agent_dim")
        self.use_td_params = as_flag(use_td_params, "use_td_params")
        self._vmap_randomness = as_choice(vmap_randomness, "vmap_randomness", get_args(Randomness))
        self._build_kwargs = kwargs
        repeats = hasattr(type(self)._build_single_net, "repeatable")
        one, names, rows = init_slots_in_order(self._build_one, n_agents if self.share_params is False else 1, repeats)
        self._store = ParameterStore(names, n_agents, self.share_params, self.use_td_params)
        if not isinstance(self.share_params, bool):  # only now it is known how many slots there are
            slots = [get_leaves(self._build_one(), names) for _ in range(self._store.n_slots - 1)]
            rows = {name: [row[0], *(slot[name] for slot in slots)] for name, row in rows.items()}
        self.initialized = not any(map(is_lazy, get_leaves(one, names).values()))
        self._store.register(self._modules, one, rows)
        self.register_load_state_dict_post_hook(ignore_empty_net_buffers)
        self._prepare()

    def _build_one(self) -> nn.Module:
        one = self._build_single_net(**self._build_kwargs)
        if not isinstance(one, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"_build_single_net: expected the nn.Module of one agent, got {short_repr(one)}")
        check_parts(one, "_build_single_net")
        return one

    @abc.abstractmethod
    def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
        """The network of one agent."""

    @abc.abstractmethod
    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        """Check the input, and merge the agent axis into another if the network is centralized."""

    @property
    def vmap_randomness(self) -> str:
        """Which random numbers agents get in a call: ``"error"``, ``"same"`` or ``"different"``."""
        return self._vmap_randomness

    # --- the network -----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make what is new after construction, copy and unpickling: the network, and what notices changes."""
        self._nets: dict[int, Network] = {}
        self._check_is_own = hasattr(type(self)._pre_forward_check, "merges_agents")
        self._edits = EditTracker(self._empty_net, self._store.names.all)
        self._store.remember(self._modules)
        if self.initialized:
            self._net = self._network_of({k: t.to("meta") for k, t in self._store.leaves(self._modules).items()})

    def _network_of(self, leaves: dict[str, Tensor]) -> Network:
        """The network for the functional core: the one-agent module with the first slot's part of these leaves."""
        one = self._store.one_agent(self._modules, leaves)
        if any(part.training is not one.training for part in one.modules()):
            for child in one.children():  # a call sets the mode of the whole; these keep theirs
                child.__dict__["train"] = keep_mode
        return network_of(
            one,
            n_agents=self.n_agents,
            sharing={glob.escape(name): slots for name, slots in self._store.sharing.items()},
            centralized=self.centralized,
            agent_dim=self.agent_dim,
            randomness=cast(Randomness, self._vmap_randomness),
        )

    def _current(self) -> Network:
        """The network, made again if somebody has edited the one-agent module or its hooks."""
        if torch.compiler.is_compiling():
            return self._net
        if not self._edits.unchanged():
            self._store.take_over_edits(self._modules, self._edits.known_parts)
            self._prepare()
        return self._net

    def _placed(self, ndim: int, seen_whole: bool) -> Network:
        """The network after a subclass's check: the agents are at the axis that they had in the input before it."""
        if seen_whole and not self.centralized:
            return self._net
        position = self.agent_dim % ndim
        if position not in self._nets:
            dim = None if self.centralized else position
            self._nets[position] = self._net.replace(centralized=False, agent_dim=dim, out_agent_dim=position)
        return self._nets[position]

    def functional(self) -> tuple[Network, dict[str, Tensor], dict[str, Tensor]]:
        """The functional network, its params and its state: ``(net, {name: [S, *leaf]}, {name: [S, *leaf]})``.

        Params and state are copies without grad. For a centralized network the agent axis is merged into
        the next one, as this library's classes do.

        Raises:
            StructureError: lazy leaves without shapes: call the module once.

        >>> import functional_marl as fm
        >>> mlp = fm.nn.MultiAgentMLP(4, 2, 3, centralized=True, share_params=True, depth=1)
        >>> net, params, state = mlp.functional()
        >>> x = torch.ones(5, 3, 4)
        >>> torch.equal(fm.apply(net, params, x), mlp(x))
        True
        """
        if not self.initialized:
            raise StructureError("functional: the lazy leaves have no shapes yet; call the module once")
        self._current()  # takes over edits of the one-agent module, or refuses them
        slot_axis = self._store.slot_axis
        params, state = (
            {k: (leaf if slot_axis else leaf[None]).detach().clone() for k, leaf in part.items()}
            for part in self._store.live(self._modules)
        )
        net = self._network_of({k: leaf.detach().clone() for k, leaf in self._store.leaves(self._modules).items()})
        return net, params, state

    # --- the call --------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> Tensor:
        """``[*B, n, F] -> [*B, n, F_out]``; several inputs are concatenated on the last axis."""
        x = inputs[0] if len(inputs) == 1 else _joined(inputs)
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            _joined(inputs)
        if not self.initialized:
            self._materialize(x)
        net = self._current()
        if self._check_is_own:
            seen = x  # the core does the same
        else:
            seen = self._pre_forward_check(x)
            if not isinstance(seen, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"_pre_forward_check: expected the checked input, a tensor, got {short_repr(seen)}")
            net = self._placed(x.ndim, seen is x)
        if not self._compared:
            self._compare(net, seen, self.agent_dim % x.ndim)
        return self._evaluate(net, (seen,), None)

    def _compare(self, net: Network, seen: Tensor, position: int) -> None:
        """Warn if torchrl would compute something else: it calls a shared module once on all agents."""
        if torch.compiler.is_compiling():
            return
        self._compared = True
        known = hasattr(type(self)._build_single_net, "repeatable") or supports(net, "plan")
        if known or self.share_params is not True or self.centralized or self._edits.hooked:
            return
        live = self._store.live(self._modules)
        params, buffers = ({k: leaf.detach()[None] for k, leaf in part.items()} for part in live)

        def whole(x: Tensor) -> Any:
            leaves = {k: leaf[0] for k, leaf in (*params.items(), *buffers.items())}
            return self._store.one_agent(self._modules, leaves).eval()(x)

        if reads_agent_axis(lambda x: apply(net, params, x, state=buffers), whole, seen, position):
            warn_reads_agent_axis(self)

    def _evaluate(self, net: Network, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Apply the network to the tensors that are registered now; in training their buffers are updated."""
        modules = self.__dict__["_modules"]
        params, buffers = self._store.live(modules)
        shared = self.share_params is True
        if shared:
            params = {name: leaf.unsqueeze(0) for name, leaf in params.items()}
        train = modules["_empty_net"].training
        if not buffers:
            return apply(net, params, *inputs, train=train, kwargs=kwargs)
        state = {name: leaf.unsqueeze(0) for name, leaf in buffers.items()} if shared else buffers
        if not train:
            return apply(net, params, *inputs, state=state, kwargs=kwargs)
        out, after = apply(net, params, *inputs, state=state, train=True, mutable=True, kwargs=kwargs)
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(after[name].squeeze(0) if shared else after[name])
        return out

    @staticmethod
    def vmap_func_module(
        module: nn.Module,
        in_dims: Any = 0,
        out_dims: Any = 0,
        randomness: str = "error",
        *,
        chunk_size: int | None = None,
    ) -> Callable[..., Any]:
        """``torch.vmap`` over the call of a module with parameters given as a TensorDict.

        Kept for subclasses written for torchrl; the forward uses :func:`functional_marl.apply`.
        """
        if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"module: expected an nn.Module, got {short_repr(module)}")

        def one(params: Any, *inputs: Any) -> Any:
            flat = dict(params.flatten_keys(".").items())
            return torch.func.functional_call(module, flat, inputs)

        return torch.vmap(one, in_dims, out_dims, randomness, chunk_size=chunk_size)

    # --- the parameters --------------------------------------------------------------------------------

    @property
    def params(self) -> Any:
        """All leaves: a ``TensorDictParams``, or a TensorDict of what the one-agent module holds now."""
        modules: dict[str, Any] = self.__dict__["_modules"]
        return modules["params"] if "params" in modules else self._store.as_tensordict(self._store.leaves(modules))

    @params.setter
    def params(self, value: Any) -> None:
        self.__dict__["_modules"]["params"] = value

    def get_stateful_net(self, copy: bool = True) -> nn.Module:
        """The one-agent module holding the stacked parameters, for ``torch.nn.init``.

        Its tensors are the parameters themselves: a change in place is a change of this module. It
        cannot be called where parameters are stacked.

        Args:
            copy: return a copy of the one-agent module, and not that module itself.

        >>> from functional_marl.nn import MultiAgentMLP
        >>> mlp = MultiAgentMLP(4, 2, 3, centralized=False, share_params=False, depth=0)
        >>> _ = torch.nn.init.zeros_(mlp.get_stateful_net()[0].weight)
        >>> bool((mlp.params["0", "weight"] == 0).all())
        True
        """
        return self._store.stateful_net(self._modules, copy)

    def from_stateful_net(self, stateful_net: nn.Module) -> None:
        """Copy the numbers of a module from :meth:`get_stateful_net`, if they were changed out of place.

        Raises:
            RuntimeError: its leaves are not the leaves of this network; names those that differ.
        """
        if not isinstance(stateful_net, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"stateful_net: expected a module from get_stateful_net, got {short_repr(stateful_net)}")
        self._store.copy_from(self._modules, stateful_net)

    def reset_parameters(self) -> None:
        """Initialize every parameter again, by ``reset_parameters`` or else by the factory; buffers by those resets.

        Under the same ``torch.manual_seed`` the numbers are those of torchrl's ``reset_parameters``. Nothing
        happens while lazy leaves have no shape.
        """
        self._store.reset(self._modules, self._build_one)

    def _materialize(self, x: Tensor) -> None:
        """Give the lazy leaves their shapes and first numbers."""
        seen = self._pre_forward_check(x)
        one_input = seen if self.centralized else seen.select(self.agent_dim % x.ndim, 0)
        self._store.materialize(self._modules, one_input.detach())
        self.initialized = True
        self._prepare()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if not self.initialized:
            self._store.materialize_as(self._modules, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # --- life of a module ------------------------------------------------------------------------------

    def __repr__(self) -> str:
        facts = [f"{k}={getattr(self, k)}" for k in ("n_agents", "share_params", "centralized", "agent_dim")]
        body = ",\n".join([str(self._empty_net), *facts])
        return f"{type(self).__name__}(\n{indent(body, '    ')})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _REMADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._store.take_over_edits(self._modules)
        self._prepare()


def _as_sharing(spec: Any) -> Any:
    """A sharing, with a bool of NumPy as one of Python."""
    return bool(spec) if type(spec).__name__ in ("bool", "bool_") else spec


def _joined(inputs: tuple[Any, ...]) -> Tensor:
    """Several inputs, concatenated on the last axis.

    Raises:
        TypeError: no input, or one that is no tensor. StructureError: shapes that differ ahead of the last axis.
    """
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        got = ", ".join(map(short_repr, inputs)) or "none"
        raise TypeError(f"inputs: expected tensors [*B, n, F], got {got}; torch.as_tensor(x) makes one of an array")
    shapes = [list(x.shape) for x in inputs]
    if any(shape[:-1] != shapes[0][:-1] or not shape for shape in shapes):
        raise StructureError(f"inputs: expected the same shapes up to the last axis, got {shapes}")
    return torch.cat(inputs, -1)
