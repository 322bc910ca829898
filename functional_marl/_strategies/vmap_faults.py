"""Operations that ``torch.func.vmap`` computes wrongly, and a watch for them.

``vmap_fault_tables/2.13.tsv`` lists them for torch 2.13: a name, when it goes wrong, and what does.
``tools/vmap_faults.py`` finds them with torch's own samples and writes the table, once a version of torch. A version
without a table takes the newest one that is not newer than itself.

Under vmap a forward cannot branch on numbers: which operations it calls depends on shapes, dtypes and Python values
alone. So it is enough to check one call of each kind.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from functional_marl._torch_compat import current_level, is_mapped

__all__ = ["VmapFault", "Watch", "situations", "table"]


# Situations, from the narrowest; any other word in a table is the name of an option.
ALWAYS, NUMBER, WHOLE, INTEGERS, MIXED = "always", "number", "whole", "integers", "mixed"
POSITIONAL = "positional"
_WORDS = {
    ALWAYS: "",
    NUMBER: "of a tensor without dimensions",
    WHOLE: "of what all agents share",
    INTEGERS: "of integers",
    MIXED: "of tensors of several types",
}

# A tensor that vmap maps does not show its autograd graph. So a branch on these goes wrong, and a hook never runs.
_GRAPH: dict[Any, str] = {
    getattr(Tensor, name).__get__: name for name in ("requires_grad", "is_leaf", "grad_fn", "grad")
} | {
    Tensor.requires_grad.__set__: "requires_grad",  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.register_hook: "register_hook",
    Tensor.register_post_accumulate_grad_hook: "register_post_accumulate_grad_hook",
    Tensor.retain_grad: "retain_grad",
    torch.autograd.grad: "torch.autograd.grad",
    torch.autograd.backward: "torch.autograd.backward",
}


class VmapFault(RuntimeError):
    """The module does something that vmap computes otherwise than the loop; the message says what."""


@functools.cache
def table() -> Mapping[str, tuple[tuple[str, str], ...]]:
    """``{name: ((situation, what goes wrong), ...)}`` for the torch at hand."""
    tables = {_version(path.stem): path for path in (Path(__file__).parent / "vmap_fault_tables").glob("*.tsv")}
    older = [version for version in tables if version <= _version(torch.__version__)]
    path = tables[max(older) if older else min(tables)]
    rows: dict[str, tuple[tuple[str, str], ...]] = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            name, when, what = line.split("\t")
            rows[name] = (*rows.get(name, ()), (when, what))
    return rows


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def situations(args: tuple[Any, ...], kwargs: Mapping[str, Any], level: int | None) -> Iterator[str]:
    """In which situations a function is called, in the words of the tables.

    ``level`` is that of the vmap over agents.
    """
    yield ALWAYS
    tensors = _tensors(args, kwargs)
    if any(leaf.dim() == 0 and is_mapped(leaf, level) for leaf in tensors):
        yield NUMBER
    if tensors and not is_mapped(tensors[0], level) and any(is_mapped(leaf, level) for leaf in tensors):
        yield WHOLE
    if tensors and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
        yield INTEGERS
    if len({leaf.dtype for leaf in tensors}) > 1:
        yield MIXED
    if not all(arg is None or arg is False or isinstance(arg, (Tensor, list, tuple)) for arg in args):
        yield POSITIONAL
    yield from (name for name, value in kwargs.items() if value is not None and value is not False)


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    flat = [part for arg in (*args, *kwargs.values()) for part in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    return [leaf for leaf in flat if isinstance(leaf, Tensor)]


def holds(when: str, found: Collection[str]) -> bool:
    """Whether a situation of a table, ``"integers+number"`` or ``"padding_idx,sparse"``, is among those of a call."""
    return any(all(word in found for word in either.split("+")) for either in when.split(","))


def _options(when: str) -> bool:
    return not _WORDS.keys() & when.split("+")


def _in_words(when: str) -> str:
    return " ".join(_WORDS[word] for word in when.split("+"))


class Watch(TorchFunctionMode):
    """Inside vmap: raises :class:`VmapFault` at the end if the forward used what vmap computes wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.level = current_level()
        self.fault = ""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and keep in mind the first that vmap computes wrongly."""
        kwargs = kwargs or {}
        self.fault = self.fault or self._fault(func, args, kwargs)
        return func(*args, **kwargs)

    def _fault(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if func in _GRAPH and current_level() == self.level:  # not in a torch.func.grad of its own
            return f"the module uses {_GRAPH[func]}, and torch.func.vmap hides the graph of autograd from it"
        name: str = getattr(func, "__name__", "").partition(".")[0]  # an OpOverload is called "roll.default"
        rows = table().get(name)
        if rows and any(is_mapped(leaf, self.level) for leaf in _tensors(args, kwargs)):
            found = set(situations(args, kwargs, self.level))
            for when, what in rows:
                # the options of a function in C may come without their names
                if holds(when, found) or (POSITIONAL in found and _options(when)):
                    where = f"with {' or '.join(when.split(','))}" if _options(when) else _in_words(when)
                    return " ".join(f"torch.func.vmap computes {name} {where} wrongly: {what}".split())
        return ""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if self.fault and (error is None or isinstance(error, Exception)):
            raise VmapFault(self.fault) from None
