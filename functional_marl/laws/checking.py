"""``check``: which laws a module from any library keeps, with the smallest case of each that it breaks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from functional_marl._network import Network
from functional_marl._pytrees import is_tensordict
from functional_marl._sharing import Sharing, SharingSpec
from functional_marl.laws import asking_more as asking_more
from functional_marl.laws._report import Report
from functional_marl.laws._verdict import HOLDS, VIOLATED, Verdict
from functional_marl.laws._verdict import NOT_APPLICABLE as SKIPPED
from functional_marl.laws.again import code
from functional_marl.laws.asking import FOREIGN
from functional_marl.laws.foreign_subject import REASONS, Foreign, draws_here
from functional_marl.laws.functional import Functional
from functional_marl.laws.host import AUTO, CheckError, Host, agents_of, module_of, seeded
from functional_marl.laws.infer import inferred
from functional_marl.laws.law import LAWS, Law, LawViolation

__all__ = ["assert_laws", "check", "each_law", "foreign"]

# Laws 28 to 35 are about storage, 48 to 51 about purity: asked with laws="all".
_SHARING = [*range(1, 28), *range(36, 48)]
# An exception, a thread or a compiler in a module may leave it broken: where it can be built again, it is.
_HARMFUL = (45, 48, 50, 51)
# These look at the whole batch in every case.
_WHOLE = ("gradient_reaches_own_slot", "centralized_sees_all", "batch_is_a_loop", "randomness_has_one_meaning")


Subject = nn.Module | tuple[Any, ...] | Callable[[], Any]


def foreign(
    subject: Subject,
    *,
    n_agents: int | None = None,
    example: Any,
    pair: tuple[int, int] = (0, 0),
    rows: int | None = None,
    seed: int = 0,
    train: bool = False,
    **said: Any,
) -> Foreign:
    """One case of a module: what a law of :data:`FOREIGN` is called on. Snippets of violations use it.

    Args:
        subject, n_agents, example, train, said: as in :func:`check`.
        pair: the two agents that are looked at.
        rows: the size of each batch axis; None: that of the example.
        seed: what inputs are drawn from.

    Raises:
        CheckError: as :func:`check`.

    >>> from functional_marl.laws import FOREIGN
    >>> case = foreign(nn.Linear(4, 2), n_agents=2, example=torch.zeros(3, 2, 4), sharing="shared", pair=(0, 1))
    >>> FOREIGN["shared_equivariance"](case)
    """
    return Foreign(_host(subject, n_agents, example, said, 0), pair, rows, seed, train)


def _host(subject: Any, n_agents: int | None, example: Any, said: dict[str, Any], seed: int) -> Host:
    name = said.pop("name", "")
    if not name.isidentifier():
        name = "(net, params)" if isinstance(subject, tuple) else "module"
    build = None
    if callable(subject) and not isinstance(subject, nn.Module | Network):
        build = cast("Callable[[], Any]", subject)
        with seeded(seed):
            subject = build()
    elif not isinstance(subject, nn.Module | tuple | Network):
        raise CheckError(f"subject: expected a module, (net, params) or a function that builds one, got {subject!r}")
    module = module_of(subject)
    n_agents = agents_of(module, n_agents)
    words = ", ".join([f"n_agents={n_agents}", *(f"{k}={_word(v)}" for k, v in said.items())])
    return Host(module, example, n_agents, build=build, words=f"{name}, {words}, example={_word(example)}", **said)


def _word(value: Any) -> str:
    """A value as Python; ``...`` for what has no such form. Of float inputs the shape says all."""
    if isinstance(value, Tensor):
        kind = "" if value.dtype is torch.float32 else f", dtype={value.dtype}"
        return f"torch.zeros({list(value.shape)}{kind})" if value.is_floating_point() else code(value)
    if is_tensordict(value):
        return f"TensorDict({_word(dict(value.items()))}, {list(value.batch_size)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_word(v)}" for k, v in cast("Mapping[Any, Any]", value).items()) + "}"
    if type(value) in (tuple, list):
        inside = ", ".join(map(_word, value))
        return f"[{inside}]" if type(value) is list else f"({inside}{',' * (len(value) == 1)})"
    return repr(value) if isinstance(value, str | int | float | Sharing | None) else "..."


# --- which laws, which cases ------------------------------------------------------------------------------


def laws_named(laws: str | Sequence[str], functional: bool = False) -> list[Law]:
    """The laws in the order of their numbers: for modules from elsewhere, and of ours those that have no such form.

    Functional networks are asked all of ours that are not among those.
    """
    own = {law.name if functional else str(law.number) for law in FOREIGN.values()}
    rest = [law for law in LAWS.values() if law.name not in own and str(law.number) not in own]
    every = sorted([*FOREIGN.values(), *rest], key=lambda law: (law.number, law.name))
    if laws == "all":
        return every
    if laws == "sharing":
        return [law for law in every if law.number in _SHARING and law.foreign]
    names = [name.strip() for name in laws.split(",")] if isinstance(laws, str) else list(laws)
    picked = [law for law in every if law.name in names or str(law.number) in names]
    known = {word for law in (*every, *LAWS.values()) for word in (law.name, str(law.number))}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CheckError(f"laws: expected 'sharing', 'all', names or numbers, got {unknown}; see functional_marl.laws")
    return picked


def _why_not(law: Law, s: Foreign) -> str:
    """Why the law says nothing about the subject; empty if it applies."""
    if law.name not in FOREIGN:
        return _why_not_ours(law, s)
    for word in law.where:
        try:
            if not s.answers(word):
                return REASONS[word]
        except CheckError as error:
            return str(error)
    return ""


def _why_not_ours(law: Law, s: Foreign) -> str:
    """The same for a law of the core: functional networks are asked it."""
    if not isinstance(s.host.module, Functional) or not law.where:
        return "it needs a functional_marl Network, groups, or a module of functional_marl.nn"
    try:
        subject = s.functional()
        subject.outputs()
    except CheckError as error:
        return str(error)
    except Exception as error:
        return f"the network does not run in float64: {type(error).__name__}: {error}"
    unmet = [word for word in law.where if not subject.answers(word)]
    return f"it is about networks with: {', '.join(unmet)}" if unmet else ""


def _cases(host: Host, law: Law, examples: int, seed: int, train: bool) -> Iterator[Foreign]:
    """The smallest first: one row before the example's batch, agents 0 and 1 before others."""
    pairs = list(itertools.combinations(range(host.n_agents), 2))
    if "local" in law.where or law.number == 12:  # agents change places: only with those of their group
        pairs = [(i, j) for i, j in pairs if j in host.group_of(i)]
    if "a cluster" in law.where:
        classes = Foreign(host, train=train).classes()
        pairs = [pair for pair in pairs if any(set(pair) <= set(members) for members in classes)]
    pairs = pairs[:64] or [(0, 0)]
    count = max(1, examples // law.cost)
    if "outputs by agent" in law.where or "parameters by agent" in law.where:
        count = max(count, 2 * len(pairs)) if law.cost == 1 else max(count, len(pairs))
    small = 0 if host.draw is not None or law.name in _WHOLE else count // 2
    for k in range(count):
        rows = 1 if k < small else None
        yield Foreign(host, pairs[k % len(pairs)], rows, seed + k, train)


_AGENTS = re.compile(r"agents? (\d+)(?: and (\d+))?")


def _ask(law: Law, host: Host, examples: int, seed: int, train: bool) -> Verdict:
    why = _why_not(law, Foreign(host, train=train))
    if why:
        return Verdict(law.number, law.name, SKIPPED, why)
    asked, raised = 0, ""
    once = law.number in (20, 35) and law.name in FOREIGN  # says the same for every case
    for case in itertools.islice(_cases(host, law, examples, seed, train), 1 if once else None):
        try:
            law(case if law.name in FOREIGN else case.functional())
        except LawViolation as violation:
            if any(word.startswith("nothing random") for word in law.where) and draws_here(case):
                return Verdict(law.number, law.name, SKIPPED, REASONS["nothing random"], asked)
            at: dict[str, Any] = {"rows": case.rows or list(host.batch), "seed": case.seed}
            found = _AGENTS.findall(str(violation).splitlines()[0])
            named = sorted({int(agent) for pair in found for agent in pair if agent})
            at = {"agents": named, **at} if named else at
            return Verdict(law.number, law.name, VIOLATED, violation.why, asked + 1, at, violation.snippet)
        except CheckError as error:
            raised = str(error)
        except Exception as error:
            if case.rows is None:
                return Verdict(law.number, law.name, SKIPPED, f"it raised {type(error).__name__}: {error}", asked)
        else:
            asked += 1
    if not asked:
        return Verdict(law.number, law.name, SKIPPED, raised or "the module takes no batch of one")
    return Verdict(law.number, law.name, HOLDS, "", asked)


def check(
    subject: Subject,
    *,
    n_agents: int | None = None,
    example: Any,
    sharing: SharingSpec | bool | None = None,
    centralized: bool | None = None,
    agent_dim: Any = -2,
    out_agent_dim: Any = AUTO,
    randomness: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    batch_dims: int | None = None,
    groups: Mapping[str, int] | None = None,
    single: Callable[[], nn.Module] | None = None,
    select: Callable[[Any], Any] | None = None,
    laws: str | Sequence[str] = "sharing",
    train: bool = False,
    examples: int = 20,
    seed: int = 0,
    name: str = "",
    progress: Callable[[Iterable[Law]], Iterable[Law]] = iter,
) -> Report:
    """Ask a module from any library whether it shares what it says.

    The module is called as ``module(*example)`` (``module(example)`` if that is no tuple), on inputs drawn
    in the shape of the example. It is left as it was: parameters, buffers, flags and torch's generators.

    Args:
        subject: a module; ``(net, params)`` or ``(net, params, state)`` of a :class:`functional_marl.Network`;
            or a function that builds one of them.
        n_agents: how many agents; a network, torchrl's and our classes say it themselves.
        example: inputs ``[*B, n, F]``: a tensor, a tuple of trees, a dict or a TensorDict; or a function of a
            ``torch.Generator`` that draws them. Integers are picked from those that the example has.
        sharing: the claim: ``"shared"``, ``"independent"``, ``[0, 0, 1]``, or patterns over parameter names.
            None: what torchrl's and our classes say of themselves, else what gradients say.
        centralized: whether each agent's network sees all inputs; None: what the module says, else False. Agents
            that exchange messages are neither: name the laws to ask (not 15 or 18; 20 only if they share).
        agent_dim: where inputs have the agents: an int, resolved on the first input, or a tree of positions
            over the example; None for what all agents see.
        out_agent_dim: the same for outputs; by default where the first input has them.
        randomness: the claim about draws in training: ``"error"``, ``"same"``, ``"different"``.
        kwargs: keyword inputs.
        batch_dims: how many axes in front are batches, with rows apart; by default one at most. Say 0 where
            the first axis is time.
        groups: ``{group: number of agents}`` for dicts ``{group: [*B, n_g, F]}``.
        single: builds the module of one agent, for laws that compare with it.
        select: takes of the output what laws look at, say ``lambda out: out[0]``.
        laws: ``"sharing"``, ``"all"`` (storage, purity and compilation too), or names or numbers.
        train: ask in training instead of evaluation.
        examples: how many cases a law, of which half have one row.
        seed: of the cases, and of the subject where a function builds it.
        name: what the report calls the subject.
        progress: wraps the laws, as ``tqdm.tqdm`` does.

    Raises:
        CheckError: the module does not run on the example, or agents are not where they are said to be.

    >>> report = check(nn.Linear(4, 2), n_agents=2, sharing="independent", example=torch.zeros(3, 2, 4))
    >>> bool(report), [verdict.law for verdict in report.violated]
    (False, ['gradient_reaches_own_slot'])
    >>> print(report["gradient_reaches_own_slot"].why.splitlines()[0])  # doctest: +NORMALIZE_WHITESPACE
    law 20 (gradient_reaches_own_slot): agents 0 and 1 both train weight[0, 0] (8 of 8 numbers),
    and the claim [0, 1] keeps them apart
    """
    said: dict[str, Any] = {
        "sharing": (sharing, None),
        "centralized": (centralized, None),
        "agent_dim": (agent_dim, -2),
        "out_agent_dim": (out_agent_dim, AUTO),
        "randomness": (randomness, None),
        "kwargs": (kwargs or None, None),
        "batch_dims": (batch_dims, None),
        "groups": (groups, None),
        "single": (single, None),
        "select": (select, None),
    }
    given = {word: value for word, (value, usual) in said.items() if value is not usual and value != usual}
    laws_named(laws)  # what is asked for is there
    host = _host(subject, n_agents, example, given | {"name": name}, seed)
    chosen = laws_named(laws, isinstance(host.module, Functional))
    if host.fault is not None and (host.single is None or host.centralized):
        raise CheckError(f"the module raises on the example: {type(host.fault).__name__}: {host.fault}")
    facts, verdicts, names = _facts(host, train), list[Verdict](), list(host.params())
    for law in progress(chosen):
        verdicts.append(_ask(law, host, examples, seed, train))
        harmed = verdicts[-1].why.startswith("it raised") or law.number in _HARMFUL or list(host.params()) != names
        if host.build is not None and harmed:
            host = host.again(seed)
    return Report(name or type(host.module).__name__, facts, tuple(verdicts))


def _facts(host: Host, train: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"n_agents": host.n_agents, "sharing": None, "inferred": None}
    if host.fault is not None:
        facts["inferred"] = f"nothing: the module raises {type(host.fault).__name__}"
    elif host.params():
        found = inferred(host, train)
        facts["inferred"] = found.sharing or {leaf.name: str(leaf) for leaf in found.leaves}
    spec = host.sharing
    facts["sharing"] = (
        f"{list(spec) if isinstance(spec, Sharing) else spec} (claimed by {host.claimed_by})"
        if spec is not None
        else "none claimed: the inferred one is checked"
    )
    facts |= {
        "centralized": host.centralized,
        "randomness": host.randomness,
        "mode": "training" if train else "evaluation",
    }
    return facts


# --- pytest -----------------------------------------------------------------------------------------------


def assert_laws(subject: Subject, **how: Any) -> Report:
    """:func:`check` that raises, for a test; takes the same arguments.

    Raises:
        AssertionError: a law is violated: the message has each law, agents, leaf or input, numbers, snippet.
        CheckError: as :func:`check`.

    >>> report = assert_laws(nn.Linear(4, 2), n_agents=2, sharing="shared", example=torch.zeros(3, 2, 4))
    """
    __tracebackhide__ = True
    report = check(subject, **how)
    if not report:
        raise AssertionError("\n".join(f"{verdict.why}\n{verdict.snippet}" for verdict in report.violated))
    return report


def each_law(subject: Subject, *, laws: str | Sequence[str] = "sharing", **how: Any) -> Any:
    """A pytest mark that makes one item a law; what does not apply is skipped, with the reason.

    The test takes ``law`` and calls it. Arguments are those of :func:`check`.

    >>> @each_law(lambda: nn.Linear(4, 2), n_agents=2, sharing="shared", example=torch.zeros(3, 2, 4))
    ... def test_sharing(law):
    ...     law()
    """
    import pytest

    def asking(law: Law) -> Callable[[], None]:
        def ask() -> None:
            __tracebackhide__ = True
            report = check(subject, laws=[law.name], **how)
            verdict = report[law.name]
            if verdict.verdict == SKIPPED:
                pytest.skip(verdict.why)
            if verdict.verdict == VIOLATED:
                raise AssertionError(f"{verdict.why}\n{verdict.snippet}")

        return ask

    return pytest.mark.parametrize("law", [pytest.param(asking(law), id=law.name) for law in laws_named(laws)])
