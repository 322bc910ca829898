"""The Python that asks a law of a case again, ready to paste: what a violation ends with."""

from __future__ import annotations

import enum
import re
from typing import Any, cast

from torch import Tensor

from functional_marl._pytrees import is_tensordict

__all__ = ["code", "snippet"]

# What the calls that make cases speak of; the rest is the user's, say ``module``.
_IMPORTS = {
    "torch": "import torch",
    "nan": "from math import nan",
    "inf": "from math import inf",
    "TensorDict": "from tensordict import TensorDict",
    **{name: f"from functional_marl import {name}" for name in ("MarlGroupMapType", "Sharing", "by_prefix", "by_spec")},
}


def snippet(law: str, case: object) -> str:
    """The call of a law, found by its name in the table of laws, with the imports it needs.

    >>> print(snippet("local_jacobian", "any repr"))
    from functional_marl.laws import LAWS
    LAWS['local_jacobian']('any repr')
    """
    again = repr(case)
    words = set(re.findall(r"\w+", again))
    lines = [line for name, line in _IMPORTS.items() if name in words]
    maker, call, _ = again.partition("(")
    makers = {maker} | ({"Claims", "module_subject"} & words) if call else set[str]()
    lines.append(f"from functional_marl.laws import {', '.join(sorted(['LAWS', *makers]))}")
    lines += ["# module: what check was called on"] if maker == "module_subject" else []
    return "\n".join([*lines, f"LAWS[{law!r}]({again})"])


def code(value: Any) -> str:
    """A tree of tensors, a TensorDict or a member of an enum as the Python that makes it.

    >>> import torch
    >>> code({"x": (torch.zeros(2, 0), None)})
    "{'x': tuple([torch.tensor([[], []], dtype=torch.float32).reshape(2, 0), None])}"
    """
    if isinstance(value, Tensor):
        shape = ", ".join(map(str, value.shape))
        return f"torch.tensor({value.tolist()}, dtype={value.dtype}).reshape({shape or '()'})"
    if is_tensordict(value):
        return f"TensorDict({code(dict(value.items()))}, {list(value.batch_size)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {code(v)}" for k, v in cast("dict[Any, Any]", value).items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(code, cast("list[Any]", value))) + "]"
    if type(value) is tuple:
        return "tuple([" + ", ".join(map(code, cast("tuple[Any, ...]", value))) + "])"
    return f"{type(value).__name__}.{value.name}" if isinstance(value, enum.Enum) else repr(value)
