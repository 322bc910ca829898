"""Laws and a ``check`` for tests of the pytest plugin: claims are the verdicts themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from functional_marl.laws import Report, Verdict, _parametrize

LAWS = [SimpleNamespace(name=name, number=k) for k, name in enumerate(("first_law", "second_law", "third_law"), 1)]
BUILT: list[str] = []  # what was built, in order


class Policy:
    """A subject; counts how often it is built."""

    def __init__(self) -> None:
        BUILT.append("Policy")


def laws_named(laws: Any) -> list[Any]:
    """Two laws by default, all three, or by name."""
    wanted = {"default": ["first_law", "second_law"], "all": [law.name for law in LAWS]}
    names = wanted[laws] if isinstance(laws, str) else laws
    return [law for law in LAWS if law.name in names]


def check(
    subject: Any, claims: dict[str, str], *, laws: list[str], name: str, examples: int = 20, train: bool | None = None
) -> Report:
    """The verdicts that the claims name, ``"holds"`` by default; "violated (training)" is two verdicts."""
    built = subject() if callable(subject) else subject
    verdicts: list[Verdict] = []
    for law in laws_named(laws):
        verdict = claims.get(law.name, "holds")
        if verdict == "raises":
            raise ValueError("the module raises on the example")
        if verdict == "none":
            continue
        if verdict == "violated (training)":
            verdicts.append(Verdict(law.number, law.name, "holds", cases=examples))
        word = verdict.removesuffix(" (training)")
        why = {"violated": f"{law.name}: seen on {type(built).__name__}", "not applicable": "no groups"}.get(word, "")
        snippet = f"again({law.name!r})" if word == "violated" else ""
        verdicts.append(Verdict(law.number, law.name, word, why, examples, None, snippet, train=word != verdict))
    return Report(name, {"n_agents": 3, "sharing": "shared", "train": train}, tuple(verdicts), "v1")


def install(setattr_: Any = setattr) -> None:
    """Use them in place of the real ones."""
    setattr_(_parametrize, "check", check)
    setattr_(_parametrize, "laws_named", laws_named)
    BUILT.clear()
