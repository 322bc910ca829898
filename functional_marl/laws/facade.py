"""The modules of the facade hold what the functional core computes, in any storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from functional_marl.laws._compare import agree, broken, differ
from functional_marl.laws._law import law
from functional_marl.laws._operations import LIBRARY, Operations
from functional_marl.laws._restore import seeded

__all__ = ["Facade", "facade_is_functional", "lazy_is_eager", "state_dicts_carry_over"]


@dataclass(frozen=True)
class Facade:
    """A module of :mod:`functional_marl.nn` by its constructor's words, and an input for it.

    Args:
        kind: ``"mlp"``: :class:`MultiAgentMLP` of 4 features; ``"conv"``: :class:`MultiAgentConvNet` of 2 channels.
        n_agents, share_params, centralized, use_td_params, randomness: as its constructor takes them.
        batch: the sizes of the batch axes.
        options: further words of the constructor; strings are names in ``torch.nn``.
        seed: of the parameters and of the inputs.

    >>> from functional_marl.laws import LAWS
    >>> LAWS["facade_is_functional"](Facade("mlp", 3, [0, 0, 1], options=(("num_cells", [5]), ("dropout", 0.5))))
    """

    kind: Literal["mlp", "conv"] = "mlp"
    n_agents: int = 2
    share_params: Any = True
    centralized: bool = False
    use_td_params: bool = True
    randomness: str = "different"
    batch: tuple[int, ...] = (2,)
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0
    ops: Operations = field(default=LIBRARY, repr=False)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis prints the call that makes it again, without the operations

    def module(self, *, lazy: bool = False, fold: int = 0, **changed: Any) -> Any:
        """The module, drawn under its seed; ``changed`` words of the constructor."""
        words: dict[str, Any] = {
            "share_params": self.share_params,
            "centralized": self.centralized,
            "use_td_params": self.use_td_params,
            "vmap_randomness": self.randomness,
            **{name: getattr(nn, word) if isinstance(word, str) else word for name, word in self.options},
            **changed,
        }
        with seeded(self.seed + fold):
            return self.ops.facade(self.kind, self.n_agents, lazy, **words)

    def input(self, fold: int = 0) -> Tensor:
        """``[*B, n, F]`` or ``[*B, n, C, H, W]``."""
        shape = (4,) if self.kind == "mlp" else (2, 4, 5)
        generator = torch.Generator().manual_seed(self.seed + fold)
        return torch.randn((*self.batch, self.n_agents, *shape), generator=generator)

    def trained(self, module: Any, x: Tensor) -> Tensor:
        """The output of one call in training, under the seed."""
        with seeded(self.seed):
            return module.train()(x)


def _gradients(output: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    loss = (output + output * output).sum()
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def _others(module: nn.Module) -> None:
    """Parameters and float buffers that no draw gives."""
    with torch.no_grad():
        for leaf in (*module.parameters(), *module.buffers()):
            if leaf.is_floating_point():
                leaf.mul_(0.5).add_(0.125)


def _saved(module: nn.Module) -> dict[str, Tensor]:
    """The state_dict as a file would have it: the module's own tensors go on changing."""
    return {name: leaf.clone() for name, leaf in module.state_dict().items()}


@law(33, about=Facade, cost=2)
def state_dicts_carry_over(case: Facade) -> None:
    """load(g, convert(save(f))) makes y_g = y_f, and convert(save(g)) = save(f), for storages and sharings of f, g.

    A checkpoint goes into the other storage mode and back, and into independent agents, with every number.
    """
    f, x = case.module(), case.input()
    _others(f)
    case.trained(f, x)  # buffers move
    wanted, saved = f.eval()(x), _saved(f)
    again = case.module(fold=1)
    again.load_state_dict(dict(f.state_dict()))
    agree(again.eval()(x), wanted, "state_dict loaded into another of the kind: outputs", exact=True)
    for td in (False, True):
        g = case.module(fold=1, use_td_params=td)
        g.load_state_dict(case.ops.convert_state_dict(dict(f.state_dict()), g, sharing=case.share_params))
        where = f"state_dict of use_td_params={case.use_td_params} in one of {td}"
        agree(g.eval()(x), wanted, f"{where}: outputs", exact=True)
        back = case.ops.convert_state_dict(_saved(g), f, sharing=case.share_params)
        agree(dict(back), saved, f"{where} and back: state", exact=True)
        if list(back) != list(saved):
            broken(f"{where} and back: expected the keys in the order {list(saved)}, got {list(back)}")
        own = case.module(fold=2, use_td_params=td, share_params=False)
        own.load_state_dict(case.ops.convert_state_dict(_saved(g), own, sharing=case.share_params))
        agree(own.eval()(x), wanted, f"{where}, then independent: outputs")
        _others(f)
        for other in (again, g):
            agree(other.eval()(x), wanted, f"{where}: outputs when the first has changed", exact=True)
        f.load_state_dict(saved)
    agree(f.eval()(x), wanted, "its own state_dict loaded: outputs", exact=True)


@law(34, about=Facade, cost=2)
def facade_is_functional(case: Facade) -> None:
    """f(x) = apply(f.functional(), x), in values, gradients, draws and buffers; f = from_functional(f.functional()).

    The module is the functional network on the parameters that are registered at that moment.
    """
    f, x = case.module(), case.input()
    for when in ("at first", "after parameters changed in place"):
        net, params, state = f.functional()
        how: dict[str, Any] = {"state": state} if state else {}
        leaves = {name: leaf.requires_grad_() for name, leaf in params.items()}
        y, want = f.eval()(x), case.ops.apply(net, leaves, x, **how)
        agree(y, want, f"{when}: outputs")
        named = list(f.parameters())
        found = dict(zip(_names(f), _gradients(y, named), strict=True))
        wanted = dict(zip(leaves, _gradients(want, list(leaves.values())), strict=True))
        shared = f.share_params is True
        agree({k: g[None] if shared else g for k, g in found.items()}, wanted, f"{when}: gradients of the parameters")
        with seeded(case.seed):
            want, after = case.ops.apply(net, leaves, x, train=True, mutable=True, **how)
        copied = case.ops.from_functional(net, params, state, use_td_params=case.use_td_params)
        for what, module in (("", f), ("from_functional, ", copied)):
            if module is copied:
                agree(module.eval()(x), y, f"{what}{when}: outputs", exact=True)
                agree(module.functional()[1], params, f"{what}{when}: parameters", exact=True)
            agree(case.trained(module, x), want, f"{what}{when}: outputs of training")
            agree(module.functional()[2], after, f"{what}{when}: buffers after training")
        _others(f)


def _names(module: Any) -> list[str]:
    """The names of the registered parameters without the place where they are."""
    return [name.split(".", 1)[1] for name, _ in module.named_parameters()]


@law(47, about=Facade, cost=2)
def lazy_is_eager(case: Facade) -> None:
    """lazy(x) leaves lazy = eager: names, shapes, function, draws; the parameters are the ones that were there.

    A lazy network, once it has seen an input, is the eager one, also for an optimizer made before.
    """
    eager, x = case.module(), case.input()
    lazy = case.module(lazy=True)
    before = {name: id(leaf) for name, leaf in lazy.named_parameters()}
    with seeded(case.seed):
        lazy.eval()(x)
    _alike(lazy, eager, "after its first call")
    made = {name: id(leaf) for name, leaf in lazy.named_parameters()}
    if made != before:
        broken(f"after its first call: expected the parameters {list(before)} that were there, got new ones")
    rows = dict(lazy.functional()[1])
    first = next(iter(rows))
    for slot in range(1, len(rows[first])):
        differ(rows[first][slot], rows[first][0], f"fresh {first} in the slots 0 and {slot}")
    unseen = case.module(lazy=True, fold=1)
    for what, module in (("after its first call", lazy), ("that saw nothing", unseen)):
        module.load_state_dict(eager.state_dict())
        agree(module.eval()(x), eager.eval()(x), f"a lazy one {what}, with the eager one's numbers: outputs")
        _alike(module, eager, what)
        # from equal buffers, which training moves
        other = case.module()
        agree(case.trained(module, x), case.trained(other, x), f"a lazy one {what}: outputs of training")
    _core(case, eager, x)


def _alike(lazy: Any, eager: Any, when: str) -> None:
    """Raise unless two modules have leaves of one form."""

    def forms(module: nn.Module) -> dict[str, Any]:
        wanting = {name: leaf.requires_grad for name, leaf in module.named_parameters()}
        return {k: (list(v.shape), str(v.dtype), wanting.get(k, False)) for k, v in module.state_dict().items()}

    if list(forms(lazy).items()) != list(forms(eager).items()):
        broken(f"a lazy one {when}: expected the leaves {forms(eager)}, got {forms(lazy)}")


def _core(case: Facade, eager: Any, x: Tensor) -> None:
    """The same for ``network``, which an example gives the shapes: ``build`` is lazy or not."""
    net, params, state = eager.functional()
    position = x.ndim - (2 if case.kind == "mlp" else 4)
    one = x.flatten(position, position + 1) if case.centralized else x.select(position, 0)
    build = case.module(lazy=True)._build_one
    with torch.random.fork_rng(devices=[]):
        given = {"sharing": net.sharing_spec, "centralized": net.centralized, "agent_dim": net.agent_dim}
        lazy = case.ops.network(build, case.n_agents, example=one, randomness=net.randomness, **given)
    fresh = case.ops.init_params(lazy, case.seed)
    shapes = {name: list(leaf.shape) for name, leaf in fresh.items()}
    if shapes != {name: list(leaf.shape) for name, leaf in params.items()}:
        broken(f"a lazy factory: expected leaves as {eager}, got {shapes}")
    how: dict[str, Any] = {"state": state} if state else {}
    agree(case.ops.apply(lazy, params, x, **how), case.ops.apply(net, params, x, **how), "a lazy factory: outputs")
    how |= {"key": case.seed, "train": True, "mutable": True}
    agree(
        case.ops.apply(lazy, params, x, **how),
        case.ops.apply(net, params, x, **how),
        "a lazy factory: outputs and state of training",
    )
