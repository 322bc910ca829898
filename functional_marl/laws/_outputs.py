"""What laws look at in the outputs of modules: the part that is selected, as a tree of tensors."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MixtureSameFamily

from functional_marl._pytrees import Tree, flatten, is_array, is_tensordict
from functional_marl.laws._subject import CheckError

__all__ = ["as_tree", "selector", "written"]

HINT = "choose what to look at with select="


# --- select= ----------------------------------------------------------------------------------------------


def selector(select: str | int | Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """The function that takes from an output what laws look at.

    Each part of a word between dots is a key, else an index, else an attribute. A key that itself contains dots
    ("agents.logits" of a flattened TensorDict) and a tuple of keys are found where no single part is a key.

    Raises:
        CheckError: neither None, a word nor a function; the function raises it where a part is not found.

    >>> selector("dist.0")({"dist": (1, 2)})
    1
    """
    if select is None:
        return _whole
    if isinstance(select, int) and not isinstance(select, bool):
        select = str(select)
    if isinstance(select, str):
        parts = tuple(select.split("."))
        if not all(parts):
            raise CheckError(f"select: expected names between dots such as 'dist.loc', got {select!r}")
        return _Word(select, parts)
    if callable(select):
        return select
    raise CheckError(f"select: expected a word, a function of the output or None, got {type(select).__name__}")


def _whole(output: Any) -> Any:
    return output


@dataclass(frozen=True)
class _Word:
    """Takes one part after the other."""

    word: str
    parts: tuple[str, ...] = field(repr=False)

    def __call__(self, output: Any) -> Any:
        at, rest = "output", self.parts
        while rest:
            taken, output = self._step(at, output, rest)
            at, rest = ".".join((at, *rest[:taken])), rest[taken:]
        return output

    def _step(self, at: str, value: Any, rest: tuple[str, ...]) -> tuple[int, Any]:
        """How many parts were taken, and what they lead to."""
        part, number = rest[0], _number(rest[0])
        if _keyed(value):
            for taken in range(1, len(rest) + 1):
                for key in (".".join(rest[:taken]), rest[:taken]):
                    if _has(value, key):
                        return taken, value.get(key) if _is_tensorclass(value) else value[key]
        if number is not None:
            if isinstance(value, Sequence) and not isinstance(value, str | bytes):
                if -len(value) <= number < len(value):
                    return 1, value[number]
            elif isinstance(value, Mapping) and not is_tensordict(value):
                try:
                    return 1, value[number]  # a key that is a number, or the index of a transformers ModelOutput
                except (KeyError, IndexError):
                    pass
        elif part.isidentifier() and hasattr(value, part):
            found = getattr(value, part)
            if inspect.isroutine(found):
                raise CheckError(
                    f"select={self.word!r}: {at}.{part} is a method; give a function: select=lambda output: ..."
                )
            return 1, found
        raise CheckError(f"select={self.word!r}: {at} has no {part!r}; it is {_described(value)}")


def _number(part: str) -> int | None:
    return int(part) if part.removeprefix("-").isdecimal() else None


def _keyed(value: Any) -> bool:
    return isinstance(value, Mapping) or is_tensordict(value) or _is_tensorclass(value)


def _has(value: Any, key: Any) -> bool:
    if is_tensordict(value) or _is_tensorclass(value):  # a tuple of keys is a path here
        return value.get(key, None) is not None
    return key in value


def _described(value: Any) -> str:
    """The kind of a value and what can be taken from it."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if _keyed(value):
        return f"a {kind} with the keys {list(value.keys())}"
    if isinstance(value, Sequence) and not isinstance(value, str) and not hasattr(value, "_fields"):
        return f"a {kind} of {len(value)}"
    found = [*getattr(value, "_fields", ()), *getattr(value, "__dict__", {})]
    if isinstance(value, Distribution):
        found = [*value.arg_constraints, *found]
    names = dict.fromkeys(name for name in found if not name.startswith("_"))
    return f"a {kind} with the attributes {list(names)}" if names else f"a {kind}"


# --- as trees ---------------------------------------------------------------------------------------------


def as_tree(output: Any) -> Tree:
    """An output as dicts, lists and tuples of tensors, which :func:`functional_marl._pytrees.flatten` takes apart.

    Mappings, TensorDicts, dataclasses and named tuples become dicts, a distribution the dict of its parameters, arrays
    of numpy tensors. ``None`` stays where it is, which is no leaf. Numbers and text beside tensors are left out, for
    they have no axis of agents; an output that has numbers and no tensor keeps them as tensors without axes.

    Raises:
        CheckError: something has no tensors that laws could compare; or nothing is left.

    >>> as_tree({"action": torch.ones(2), "step": 3, "hidden": None})
    {'action': tensor([1., 1.]), 'hidden': None}
    >>> as_tree((1, 2.5))
    (tensor(1), tensor(2.5000))
    """
    for numbers in (False, True):
        tree = _tree(output, "output", numbers)
        if tree is not _NOTHING and flatten(tree)[0]:
            return tree
    raise CheckError(f"output: expected tensors, got {_described(output)}; {HINT}")


def written(module: nn.Module, output: Any, given: Iterable[Tensor] = ()) -> Tree:
    """As :func:`as_tree`; of a TensorDict only what the module wrote: its ``out_keys``, else all that was not given.

    Raises:
        CheckError: as in :func:`as_tree`.
    """
    if not is_tensordict(output):
        return as_tree(output)
    keys = list(getattr(module, "out_keys", None) or ())
    found = {key if isinstance(key, str) else ".".join(key): output.get(key, None) for key in keys}
    if any(value is not None for value in found.values()):
        return as_tree({name: value for name, value in found.items() if value is not None})
    return as_tree(_without(output, {id(leaf) for leaf in given}))


def _without(td: Any, given: set[int]) -> dict[str, Any]:
    new = {key: _without(value, given) if is_tensordict(value) else value for key, value in td.items()}
    return {key: value for key, value in new.items() if id(value) not in given and value != {}}


_NOTHING = object()  # what stands for an entry that is left out


def _tree(value: Any, at: str, numbers: bool) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor):
        return _tensor(value, at)
    if isinstance(value, str | bytes):
        return _NOTHING
    if isinstance(value, bool | int | float | complex) or _is_number(value):
        return torch.tensor(value) if numbers else _NOTHING
    if isinstance(value, Distribution):
        return _distribution(value, at)
    if isinstance(value, nn.utils.rnn.PackedSequence):
        raise CheckError(f"{at}: a PackedSequence has no axes of its own; use pad_packed_sequence, or {HINT}")
    fields = _fields(value)
    if fields is not None:
        items = {key: _tree(entry, f"{at}[{key!r}]", numbers) for key, entry in fields.items()}
        return {key: entry for key, entry in items.items() if entry is not _NOTHING}
    if isinstance(value, list | tuple):
        entries = [_tree(entry, f"{at}[{i}]", numbers) for i, entry in enumerate(cast("list[Any]", value))]
        kept = [entry for entry in entries if entry is not _NOTHING]
        return tuple(kept) if isinstance(value, tuple) else kept
    if is_array(value):
        return _array(value, at)
    raise CheckError(f"{at}: expected tensors, got {_described(value)}; {HINT}")


def _fields(value: Any) -> Mapping[Any, Any] | None:
    """The entries of what has names for them; None for everything else."""
    module = type(value).__module__
    if module.startswith("tensordict") and type(value).__name__ in ("NonTensorData", "NonTensorStack"):
        return {}
    if _keyed(value):
        try:
            return dict(value.items())
        except RuntimeError as error:
            raise CheckError(f"output: {type(value).__name__} cannot be read: {error}; {HINT}") from None
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(cast(Any, value)._fields, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    return None


def _is_tensorclass(value: Any) -> bool:
    """Whether it is a TensorClass; tensordict is not imported for it."""
    return bool(getattr(type(value), "_is_tensorclass", False))


def _tensor(leaf: Tensor, at: str) -> Tensor:
    if leaf.is_nested:
        raise CheckError(f"{at}: a nested tensor cannot be compared; pad it with to_padded_tensor, or {HINT}")
    if leaf.layout is not torch.strided:
        raise CheckError(f"{at}: a sparse tensor ({leaf.layout}) cannot be compared; use to_dense, or {HINT}")
    return leaf


def _is_number(value: Any) -> bool:
    """Whether it is a number of numpy, or an array without axes."""
    return hasattr(value, "__array__") and getattr(value, "shape", None) == ()


def _array(value: Any, at: str) -> Tensor:
    try:
        return torch.tensor(value)  # a copy: arrays may be read-only
    except TypeError:
        raise CheckError(f"{at}: expected numbers, got an array of {value.dtype}; {HINT}") from None


# --- distributions ----------------------------------------------------------------------------------------

_ALTERNATIVES = ({"probs", "logits"}, {"scale_tril", "covariance_matrix", "precision_matrix"})


def _distribution(dist: Any, at: str) -> dict[str, Any]:
    """The parameters of a distribution, with its batch axes in front, where its samples have them."""
    if isinstance(dist, MixtureSameFamily):
        parts = {"mixture": dist.mixture_distribution, "components": dist.component_distribution}
        return {name: _distribution(part, f"{at}.{name}") for name, part in parts.items()}
    if isinstance(getattr(dist, "dists", None), Mapping):  # tensordict's CompositeDistribution
        return {name: _distribution(part, f"{at}.dists[{name!r}]") for name, part in dist.dists.items()}
    inner = getattr(dist, "base_dist", None)
    if isinstance(inner, Distribution) and not _given(dist):
        whole = (*dist.batch_shape, *dist.event_shape)
        transforms = _of_transforms(getattr(dist, "transforms", ()), "transforms")
        found = _distribution(inner, f"{at}.base_dist") | {name: _expanded(leaf, whole) for name, leaf in transforms}
    else:
        found = _parameters(dist, at)
    if not found:
        raise CheckError(f"{at}: {type(dist).__name__} has no tensors as parameters; {HINT}")
    return found


def _parameters(dist: Any, at: str) -> dict[str, Tensor]:
    """The parameters as they were given: what would be computed from others is left out.

    Of a distribution without ``arg_constraints``, the tensors that it holds under public names.
    """
    source = getattr(dist, "_categorical", dist)  # OneHotCategorical, Multinomial
    names, given = _names(source), _given(source)
    for ways in _ALTERNATIVES:
        first = next((name for name in given if name in ways), None)
        if first is not None:
            names = [name for name in names if name == first or name not in ways]
    leaves = {name: getattr(source, name, None) for name in names}
    batch = tuple(source.batch_shape)
    return {
        name: _expanded(_tensor(leaf, f"{at}.{name}"), batch)
        for name, leaf in leaves.items()
        if isinstance(leaf, Tensor)
    }


def _names(dist: Any) -> list[str]:
    try:
        found = list(dist.arg_constraints)
    except (AttributeError, NotImplementedError):
        found = []
    return found or [name for name, held in vars(dist).items() if isinstance(held, Tensor) and name[0] != "_"]


def _given(dist: Any) -> list[str]:
    """The parameters that the distribution holds, in the order in which they were set."""
    names = _names(dist)
    return [name for name in vars(dist) if name in names]


def _expanded(leaf: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The parameter with the batch axes in front; a smaller one is the same everywhere."""
    if tuple(leaf.shape[: len(shape)]) == shape:
        return leaf
    try:
        return leaf.expand(shape)
    except RuntimeError:
        return leaf


def _of_transforms(transforms: Any, at: str) -> Iterable[tuple[str, Tensor]]:
    """The tensors that transforms hold, with names."""
    for i, transform in enumerate(transforms):
        for name, held in vars(transform).items():
            if isinstance(held, Tensor) and not name.startswith("_"):
                yield f"{at}[{i}].{name}", held
        yield from _of_transforms(getattr(transform, "parts", ()), f"{at}[{i}]")
        base = getattr(transform, "base_transform", None)
        yield from _of_transforms([] if base is None else [base], f"{at}[{i}].base")
