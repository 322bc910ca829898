"""Seeing that somebody has edited the template: ``dropout.p = 0.2``, a layer replaced, one layer in evaluation."""

from __future__ import annotations

from typing import Any

from torch import nn

from functional_marl.errors import StructureError

__all__ = ["Watch", "stay"]

_GONE = object()


def stay(mode: bool = True) -> None:
    """In the place of a part's ``train``: the part and what is in it stay in the mode in which they are."""


class Watch:
    """The public attributes, parts and modes of a module as they were; tensors are not looked at.

    An edit is a new object under a name. What changes inside of an attribute, say an item of a list, is not
    seen. Modes count as edited only where they differ within the module.
    """

    def __init__(self, root: nn.Module, leaves: tuple[str, ...]) -> None:
        self.root: dict[str, Any] = root.__dict__
        self.mixed = any(part.training is not root.training for part in root.modules())
        self.parts: list[tuple[dict[str, Any], bool, list[tuple[str, Any]]]] = []
        self.branches: list[tuple[dict[str, Any], list[tuple[str, Any]]]] = []
        for path, part in root.named_modules():
            own = part.__dict__
            tensors = {attribute for at, _, attribute in (k.rpartition(".") for k in leaves) if at == path}
            kept = {k: v for k, v in own.items() if k[0] != "_" and k != "training" and k not in tensors}
            kept.setdefault("forward", own.get("forward", _GONE))
            self.parts.append((own, part.training, list(kept.items())))
            if part._modules:
                self.branches.append((part._modules, list(part._modules.items())))

    def unchanged(self) -> bool:
        """Whether nothing was edited. A few microseconds: every forward asks."""
        mode = self.root["training"]
        for own, was, kept in self.parts:
            if own["training"] is not (was if self.mixed else mode):
                return False
            for name, value in kept:
                if own.get(name, _GONE) is not value:
                    return False
        for children, kept in self.branches:
            if len(children) != len(kept):
                return False
            for name, child in kept:
                if children.get(name) is not child:
                    return False
        return True

    def check_parts(self) -> None:
        """Raise if a layer with parameters or buffers took another's place: no slots hold them."""
        known = {id(child) for _, kept in self.branches for _, child in kept}
        for children, _ in self.branches:
            for name, child in children.items():
                if child is None or id(child) in known:
                    continue
                leaves = [k for k, _ in (*child.named_parameters(), *child.named_buffers())]
                if leaves:
                    raise StructureError(
                        f"_empty_net: expected layers without leaves in the place of others, got "
                        f"{type(child).__name__} as {name!r} with {leaves}; build a new network"
                    )
