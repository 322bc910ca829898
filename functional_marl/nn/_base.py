"""``MultiAgentNetBase``: an ``nn.Module`` around the functional core, for torchrl users.

The module owns the registration of parameters and nothing else: ``forward`` ends in one ``fm.apply`` on the
tensors that are registered at that moment.
"""

from __future__ import annotations

import abc
import glob
from collections.abc import Callable
from textwrap import indent
from typing import Any, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from functional_marl._apply import apply
from functional_marl._arguments import as_flag, as_index, shown
from functional_marl._errors import StructureError
from functional_marl._module.limitations import check_parts
from functional_marl._network import Network, network_of
from functional_marl._network_settings import Randomness
from functional_marl._sharing import SharingSpec
from functional_marl._strategies import supports
from functional_marl.nn import _init as drawing
from functional_marl.nn import _storage as storage
from functional_marl.nn._agent_axis_warning import reads_agent_axis, warn_reads_agent_axis
from functional_marl.nn._edit_tracker import Watch, stay
from functional_marl.nn._parameter_store import HOOKS, Registered
from functional_marl.nn._storage import Params, is_lazy

__all__ = ["MultiAgentNetBase", "merges_agents", "repeatable"]

_REMADE = ("_net", "_nets", "_known", "_handles", "_hooked", "_watch")  # after a copy or unpickling

Check = TypeVar("Check", bound=Callable[..., Tensor])
Make = TypeVar("Make", bound=Callable[..., nn.Module])


def merges_agents(check: Check) -> Check:
    """Mark a ``_pre_forward_check`` that does what the core does: check ``agent_dim``, merge where centralized."""
    check.merges_agents = True  # pyright: ignore
    return check


def repeatable(make: Make) -> Make:
    """Mark a ``_build_single_net`` that may be called more often than there are slots, to see what it draws."""
    make.repeatable = True  # pyright: ignore
    return make


class MultiAgentNetBase(Registered):
    """The network of ``n_agents`` agents as an ``nn.Module``: ``[*B, n, F] -> [*B, n, F_out]``.

    A subclass gives the network of one agent, ``_build_single_net(device=..., **kwargs)``, and
    ``_pre_forward_check(inputs)``, which checks the input and, where it is centralized, merges the agent
    axis away. Subclasses written for torchrl work unchanged.

    Args:
        n_agents: how many agents.
        centralized: whether each agent sees the inputs of all; ``centralised`` is accepted too.
        share_params: True: one network for all agents, its leaves stored without slot axis, ``[*leaf]``.
            False: one an agent, ``[n, *leaf]``. Beyond torchrl any sharing of :func:`functional_marl.network`
            (``[0, 0, 1]``, ``{"0.*": "shared", "*": [0, 0, 1]}``, a ``Sharing``): every leaf is then stored
            as ``[S, *leaf]``, also where ``S`` is 1.
        agent_dim: where input and output carry the agents.
        vmap_randomness: ``"error"``, ``"same"`` or ``"different"`` draws for the agents, under every sharing.
        use_td_params: True: the parameters are ``params``, a ``TensorDictParams``, with ``state_dict`` keys
            ``params.0.weight``. False: ``_empty_net`` holds them, with keys ``_empty_net.0.weight``.
        **kwargs: for ``_build_single_net``.

    Edits of the one-agent module are seen by the next eager call: ``dropout.p = 0.2``, an activation replaced,
    ``eval()`` of one layer; a compiled call sees none. Edits of its leaves (a new layer, pruning, a
    parametrization, quantization) are taken under ``share_params=True`` with ``use_td_params=False``, where it holds
    what an agent computes with; elsewhere the next call refuses them.

    With buffers and ``use_td_params=True`` torchrl's checkpoints hold the buffers of its template too, as meta
    tensors. Ours do not; torchrl's load here, and ours load there with ``strict=False``, all numbers in place.

    Raises:
        TypeError: ``centralized``, ``share_params`` or ``agent_dim`` is missing. SharingError (a ValueError):
            a sharing that does not fit. StructureError (a ValueError): an argument of another kind.

    After ``torchrl.modules.MultiAgentNetBase`` (pytorch.org/rl).

    >>> from functional_marl.nn import MultiAgentMLP
    >>> mlp = MultiAgentMLP(4, 2, 3, centralized=False, share_params=[0, 0, 1], depth=0)
    >>> mlp(torch.zeros(5, 3, 4)).shape, mlp.state_dict()["params.0.weight"].shape
    (torch.Size([5, 3, 2]), torch.Size([2, 2, 4]))
    """

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
        if vmap_randomness not in get_args(Randomness):
            words = ", ".join(map(repr, get_args(Randomness)))
            raise StructureError(f"vmap_randomness: expected one of {words}, got {shown(vmap_randomness)}")
        self.n_agents = n_agents = as_index(n_agents, "n_agents", 1)
        self.share_params = cast("bool | SharingSpec", _as_sharing(share_params))
        self.centralized = as_flag(centralized, "centralized")
        self.agent_dim = as_index(agent_dim, "agent_dim")
        self.use_td_params = as_flag(use_td_params, "use_td_params")
        self._vmap_randomness = vmap_randomness
        self._build_kwargs = kwargs
        n_slots = n_agents if self.share_params is False else 1
        if not isinstance(self.share_params, bool):
            n_slots = 0  # known when the leaves are
        first, layout, rows = drawing.draw(
            self._build_one, n_slots or 1, hasattr(type(self)._build_single_net, "repeatable")
        )
        self._layout = layout
        self._sharing = self._slot_maps()
        if not n_slots:
            count = max((s.n_slots for s in self._sharing.values()), default=1)
            slots = [storage.take(self._build_one(), layout) for _ in range(count - 1)]
            rows = {name: [row[0], *(slot[name] for slot in slots)] for name, row in rows.items()}
        likes = storage.take(first, layout)
        self.initialized = not any(map(is_lazy, likes.values()))
        leaves = {name: self._stored(name, like, rows[name]) for name, like in likes.items()}
        self._register(first, leaves)
        self._prepare()

    _compared = False  # whether a call was compared with torchrl's way

    def _build_one(self) -> nn.Module:
        one = self._build_single_net(**self._build_kwargs)
        if not isinstance(one, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"_build_single_net: expected the nn.Module of one agent, got {shown(one)}")
        check_parts(one, "_build_single_net")
        return one

    @abc.abstractmethod
    def _build_single_net(self, *, device: Any, **kwargs: Any) -> nn.Module:
        """The network of one agent."""

    @abc.abstractmethod
    def _pre_forward_check(self, inputs: Tensor) -> Tensor:
        """Check the input, and merge the agent axis away if the network is centralized."""

    @property
    def vmap_randomness(self) -> str:
        """Whether agents draw alike in a call: ``"error"``, ``"same"`` or ``"different"``."""
        return self._vmap_randomness

    # --- the network -----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """What is made anew after construction, copy and unpickling: the network, and what is known as live."""
        self._nets: dict[int, Network] = {}
        self._check_is_own = hasattr(type(self)._pre_forward_check, "merges_agents")
        self._hooked = self._hooks()
        self._watch = Watch(self._empty_net, self._layout.names)
        if "params" in self._modules:
            self._known: list[Any] = [cast(Params, self._modules["params"]).__dict__["_param_td"]]
        if self.initialized:
            self._net = self._make_network()

    def _hooks(self) -> set[str]:
        """The kinds of hooks on the template; torch counts the handles that it gave out, so that we look seldom."""
        self._handles = RemovableHandle.next_id
        return {k for part in self._empty_net.modules() for k, table in part.__dict__.items() if k in HOOKS and table}

    def _make_network(self) -> Network:
        """The network for the functional core: the template with one slot's leaves, on no device."""
        return self._network_of({k: leaf.to("meta") for k, leaf in self._leaves().items()})

    def _network_of(self, leaves: dict[str, Tensor]) -> Network:
        one = self._one_agent(leaves)
        if any(part.training is not one.training for part in one.modules()):
            for child in one.children():  # the whole is told its mode; these keep theirs
                child.__dict__["train"] = stay
        return network_of(
            one,
            n_agents=self.n_agents,
            sharing={glob.escape(name): slots for name, slots in self._sharing.items()},
            centralized=self.centralized,
            agent_dim=self.agent_dim,
            randomness=cast(Randomness, self._vmap_randomness),
        )

    def _current(self) -> Network:
        """The network; made anew when somebody has edited the template, or put hooks on it or taken them off."""
        if torch.compiler.is_compiling():
            return self._net
        if not self._watch.unchanged() or (RemovableHandle.next_id != self._handles and self._hooks() != self._hooked):
            self._check_template()
            self._prepare()
        return self._net

    def _placed(self, ndim: int, seen_whole: bool) -> Network:
        """The network behind a subclass's check: agents are where they were in the input ahead of it."""
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
        shared = self.share_params is True
        params, state = (
            {k: (leaf[None] if shared else leaf).detach().clone() for k, leaf in part.items()} for part in self._live()
        )
        net = self._network_of({k: leaf.detach().clone() for k, leaf in self._leaves().items()})
        return net, params, state

    # --- the call --------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> Tensor:
        """``[*B, n, F] -> [*B, n, F_out]``; several inputs are concatenated on the last axis."""
        x = inputs[0] if len(inputs) == 1 else _joined(inputs)
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            _joined(inputs)
        if not self.initialized:
            self._materialise(x)
        net = self._current()
        if self._check_is_own:
            seen = x  # the core checks and merges the same
        else:
            seen = self._pre_forward_check(x)
            if not isinstance(seen, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"_pre_forward_check: expected the checked input, a tensor, got {shown(seen)}")
            net = self._placed(x.ndim, seen is x)
        if not self._compared:
            self._compare(net, seen, self.agent_dim % x.ndim)
        return self._evaluate(net, (seen,), None)

    def _compare(self, net: Network, seen: Tensor, position: int) -> None:
        """Warn if torchrl would compute something else: it calls a shared module on all agents at once."""
        if torch.compiler.is_compiling():
            return
        self._compared = True
        known = hasattr(type(self)._build_single_net, "repeatable") or supports(net, "plan")
        if known or self.share_params is not True or self.centralized or self._hooked:
            return
        params, buffers = ({k: leaf.detach()[None] for k, leaf in part.items()} for part in self._live())

        def whole(x: Tensor) -> Any:
            return self._one_agent({k: leaf[0] for k, leaf in (*params.items(), *buffers.items())}).eval()(x)

        if reads_agent_axis(lambda x: apply(net, params, x, state=buffers), whole, seen, position):
            warn_reads_agent_axis(self)

    def _evaluate(self, net: Network, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Apply the network to the tensors that are registered now; in training their buffers are updated."""
        params, buffers = self._live()
        if self.share_params is True:
            params = {name: leaf.unsqueeze(0) for name, leaf in params.items()}
        train = self.__dict__["_modules"]["_empty_net"].training
        if not buffers:
            return apply(net, params, *inputs, train=train, kwargs=kwargs)
        state = {name: leaf.unsqueeze(0) for name, leaf in buffers.items()} if self.share_params is True else buffers
        if not train:
            return apply(net, params, *inputs, state=state, kwargs=kwargs)
        out, after = apply(net, params, *inputs, state=state, train=True, mutable=True, kwargs=kwargs)
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(after[name].squeeze(0) if self.share_params is True else after[name])
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

        Kept for subclasses written for torchrl; :func:`functional_marl.apply` is what the forward uses.
        """

        if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"module: expected an nn.Module, got {shown(module)}")

        def one(params: Any, *inputs: Any) -> Any:
            flat = dict(params.flatten_keys(".").items())
            return torch.func.functional_call(module, flat, inputs)

        return torch.vmap(one, in_dims, out_dims, randomness, chunk_size=chunk_size)

    # --- life of a module ------------------------------------------------------------------------------

    def __repr__(self) -> str:
        facts = [f"{k}={getattr(self, k)}" for k in ("n_agents", "share_params", "centralized", "agent_dim")]
        body = ",\n".join([str(self._empty_net), *facts])
        return f"{type(self).__name__}(\n{indent(body, '    ')})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _REMADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()


def _as_sharing(spec: Any) -> Any:
    """A sharing as it is, and numpy's bools as Python's."""
    return bool(spec) if type(spec).__name__ in ("bool", "bool_") else spec


def _joined(inputs: tuple[Any, ...]) -> Tensor:
    """Several inputs next to each other on the last axis.

    Raises:
        TypeError: no input, or one that is no tensor. StructureError: shapes that differ ahead of the last axis.
    """
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        got = ", ".join(map(shown, inputs)) or "none"
        raise TypeError(f"inputs: expected tensors [*B, n, F], got {got}; torch.as_tensor(x) makes one of an array")
    shapes = [list(x.shape) for x in inputs]
    if any(shape[:-1] != shapes[0][:-1] or not shape for shape in shapes):
        raise StructureError(f"inputs: expected the same shapes up to the last axis, got {shapes}")
    return torch.cat(inputs, -1)
