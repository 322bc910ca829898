"""Law 21: a critic over several groups of agents, some of which get no gradient from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from functional_marl._tensordict import to_tensordict
from functional_marl.laws.law import agree, broken, law, zero
from functional_marl.laws.modules import Words
from functional_marl.laws.subject import LIBRARY, Ops

__all__ = ["Critics", "detached_groups_get_no_gradient"]


@dataclass(frozen=True)
class Critics(Words):
    """A critic over groups, by its constructor's words, and observations for it.

    Args:
        groups: how many agents each group has, and how many numbers each of them observes.
        detached: the indices of the groups that get no gradient.
        shared_head: one head for all groups.
        batch: the sizes of the batch axes.
        seed: of the parameters and of the observations.

    >>> from functional_marl.laws import laws
    >>> laws.detached_groups_get_no_gradient(Critics(((2, 3), (1, 4)), detached=(1,)))
    """

    groups: tuple[tuple[int, int], ...]
    detached: tuple[int, ...] = ()
    shared_head: bool = False
    batch: tuple[int, ...] = ()
    seed: int = 0
    ops: Ops = field(default=LIBRARY, repr=False)

    def critic(self, detached: tuple[int, ...]) -> nn.Module:
        """The critic; its parameters are those of the seed, whoever is detached."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.ops.critic(self.groups, detached, self.shared_head)

    def values(self, detached: tuple[int, ...]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Each group's values ``[*B, n_g, 1]``, and the gradients of their sum by parameter and observation."""
        generator = torch.Generator().manual_seed(self.seed)
        seen: dict[str, Tensor] = {}
        for k, (n, features) in enumerate(self.groups):
            seen[f"g{k}.seen"] = torch.randn((*self.batch, n, features), generator=generator).requires_grad_()
        critic = self.critic(detached)
        given: Any = to_tensordict(seen)
        given.batch_size = self.batch
        written: Any = critic(given)
        values: list[Tensor] = [written[f"g{k}", "value"] for k in range(len(self.groups))]
        leaves = {**dict(critic.named_parameters()), **seen}
        loss = torch.stack([(leaf + leaf * leaf).sum() for leaf in values]).sum()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return values, dict(zip(leaves, found, strict=True))


@law(21)
def detached_groups_get_no_gradient(case: Critics) -> None:
    """∂L / ∂θ_g = 0 and ∂L / ∂x_g = 0 for each detached group g; L and all other gradients are as if none were.

    A detached group is seen, and neither its encoder nor what it observes gets a gradient.
    """
    values, gradients = case.values(case.detached)
    wanted, all_gradients = case.values(())
    agree(values, wanted, f"values with the groups {list(case.detached)} detached")
    for k in range(len(case.groups)):
        own = {name: leaf for name, leaf in gradients.items() if f"g{k}." in name and "head" not in name}
        if not own:
            broken(f"group {k}: expected an encoder of its own, got the parameters {list(gradients)}")
        if k in case.detached:
            zero(own, f"the values by the detached group {k}")
        elif not all(bool((leaf != 0).any()) for leaf in own.values()):
            broken(f"group {k}, which is not detached: expected nonzero gradients on {list(own)}")
    rest = [name for name in gradients if not any(f"g{k}." in name and "head" not in name for k in case.detached)]
    agree(
        {name: gradients[name] for name in rest},
        {name: all_gradients[name] for name in rest},
        f"gradients with the groups {list(case.detached)} detached",
    )
