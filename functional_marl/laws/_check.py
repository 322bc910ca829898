"""``check``: which laws a module from any library keeps, with the smallest case of each that it breaks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from functional_marl._network import Network
from functional_marl._sharing import Sharing
from functional_marl.laws._capabilities import APART, CLUSTER, LINES_UP, REPEATABLE, SHARED
from functional_marl.laws._claims import Claims
from functional_marl.laws._infer import inferred
from functional_marl.laws._law import LAWS, LAWS_VERSION, Law, LawViolation
from functional_marl.laws._module_facts import draws_here, trains_otherwise
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._module_under_test import ModuleUnderTest, module_of
from functional_marl.laws._network_module import NetworkModule
from functional_marl.laws._network_view import network_view
from functional_marl.laws._reached import Inferred
from functional_marl.laws._report import Report
from functional_marl.laws._restore import Snapshot, seeded
from functional_marl.laws._subject import CheckError, Subject
from functional_marl.laws._verdict import HOLDS, NOT_APPLICABLE, SKIPPED, VIOLATED, Verdict

__all__ = ["check", "check_marl_module", "laws_named", "module_subject"]

Given = nn.Module | tuple[Any, ...] | Callable[[], Any]


def module_subject(
    module: Given,
    claims: Claims,
    *,
    agents: tuple[int, int] = (0, 0),
    rows: int | None = None,
    seed: int = 0,
    train: bool = False,
) -> ModuleSubject:
    """One case of a module: what a law is called on. The lines that reproduce a violation use it.

    Args:
        module: as in :func:`check`.
        claims: what its author states of it.
        agents: the two agents that laws compare.
        rows: the size of each batch axis; None: that of the example.
        seed: what inputs are drawn from.
        train: whether calls are in training.

    Raises:
        CheckError: as :func:`check`.

    >>> import torch
    >>> from functional_marl.laws import LAWS, Claims
    >>> claims = Claims(torch.zeros(3, 2, 4), n_agents=2, sharing="shared")
    >>> case = module_subject(nn.Linear(4, 2), claims, agents=(0, 1))
    >>> LAWS["shared_equivariance"](case)
    """
    return ModuleSubject(_under_test(module, claims, 0), agents, rows, seed, train)


def _under_test(subject: Any, claims: Claims, seed: int) -> ModuleUnderTest:
    build = None
    if callable(subject) and not isinstance(subject, nn.Module | Network):
        build = cast("Callable[[], Any]", subject)
        with seeded(seed):
            subject = build()
    elif not isinstance(subject, nn.Module | tuple | Network):
        raise CheckError(f"subject: expected a module, (net, params) or a function that builds one, got {subject!r}")
    return ModuleUnderTest(module_of(subject), claims, build)


# --- which laws, which cases ----------------------------------------------------------------------------------


def laws_named(laws: str | Sequence[str]) -> list[Law]:
    """The laws of subjects with agents, those that are checked first ahead of the others, else by number.

    Args:
        laws: ``"default"``, ``"all"``, names of laws or of topics such as ``"symmetry"``, in a list or with commas.

    Raises:
        CheckError: a name that no law or topic has.
    """
    every = [law for law in LAWS.values() if issubclass(law.about, Subject)]
    every.sort(key=lambda law: (law.first == 0, law.first, law.number, law.name))
    if laws == "all":
        return every
    if laws == "default":
        return [law for law in every if law.default]
    names = [name.strip() for name in laws.split(",")] if isinstance(laws, str) else list(laws)
    unknown = [name for name in names if name not in {word for law in every for word in (law.name, law.topic)}]
    if unknown:
        topics = ", ".join(dict.fromkeys(law.topic for law in every))
        raise CheckError(
            f"laws: expected 'default', 'all', names of laws (--list) or topics ({topics}), got {', '.join(unknown)}"
        )
    return [law for law in every if law.name in names or law.topic in names]


@dataclass(frozen=True)
class _Check:
    """How laws are checked on a module."""

    examples: int
    seed: int

    def verdict(self, law: Law, host: ModuleUnderTest, train: bool) -> Verdict:
        """What becomes of one law in one mode."""
        made = Verdict(law.number, law.name, NOT_APPLICABLE, train=train, statement=law.english)
        first = ModuleSubject(host, train=train)
        why, view = _applies(law, first)
        if why:
            return replace(made, why=why)
        done, raised = 0, ""
        try:
            cases = list(self.cases(law, host, train))
        except CheckError as error:
            return replace(made, why=str(error))
        for case in cases:
            try:
                law(view(case))
            except LawViolation as violation:
                if REPEATABLE in law.requires and draws_here(case):
                    return replace(made, why=REPEATABLE.reason, cases=done)
                return replace(
                    made,
                    verdict=VIOLATED,
                    why=violation.why,
                    cases=done + 1,
                    case=_shown(case, violation.found),
                    snippet=violation.snippet,
                )
            except CheckError as error:
                raised = str(error)
            except Exception as error:
                if case.size is None:
                    return replace(made, why=f"it raised {type(error).__name__}: {error}", cases=done)
            else:
                done += 1
        if not done:
            return replace(made, why=raised or "the module takes no batch of one")
        return replace(made, verdict=HOLDS, cases=done)

    def cases(self, law: Law, host: ModuleUnderTest, train: bool) -> Iterator[ModuleSubject]:
        """The smallest first: one row before the example's batch, agents 0 and 1 before others.

        Raises:
            CheckError: no two agents can be compared.
        """
        pairs = list(itertools.combinations(range(host.n_agents), 2))
        if {CLUSTER, LINES_UP, SHARED} & set(law.requires):  # agents take each other's place
            pairs = [(i, j) for i, j in pairs if j in host.group_of(i)]
            classes = ModuleSubject(host, train=train).classes() if CLUSTER in law.requires else [range(host.n_agents)]
            pairs = [pair for pair in pairs if any(set(pair) <= set(members) for members in classes)]
            if not pairs and host.n_agents > 1:
                raise CheckError("no two agents have inputs of one form")
        if APART in law.requires:
            pairs = [pair for pair in pairs if ModuleSubject(host, train=train).share_nothing(*pair)]
        pairs = pairs[:64] or [(0, 0)]
        if not law.every_case:
            yield ModuleSubject(host, pairs[0], None, self.seed, train)
            return
        count = max(1, self.examples // law.cost)
        count = max(count, len(pairs) if law.cost > 1 else 2 * len(pairs))
        small = 0 if host.draw is not None or law.whole_batch else count // 2
        for k in range(count):
            yield ModuleSubject(host, pairs[k % len(pairs)], 1 if k < small else None, self.seed + k, train)


_AGENTS = re.compile(r"agents? (\d+)(?: and (\d+))?")


def _shown(case: ModuleSubject, found: str) -> dict[str, Any]:
    """The case in words: agents, rows, seed."""
    named = sorted({int(agent) for pair in _AGENTS.findall(found.splitlines()[0]) for agent in pair if agent})
    at: dict[str, Any] = {"agents": named} if named else {}
    return at | {"rows": case.size or list(case.host.batch), "seed": case.seed}


def _applies(law: Law, first: ModuleSubject) -> tuple[str, Callable[[ModuleSubject], Subject]]:
    """Why a law says nothing about a module, empty if it applies; and how the law sees it.

    What only slots can tell is checked on functional networks as such.
    """
    try:
        why = law.why_not(first)
        of_evaluation = first.train and law.is_about(ModuleSubject)  # as the view is, and not this mode
        if not why or not isinstance(first.host.module, NetworkModule) or of_evaluation:
            return why, lambda case: case
        network = network_view(first)
        network.outputs()
        return law.why_not(network), network_view
    except CheckError as error:
        return str(error), lambda case: case
    except Exception as error:
        return f"the network does not run in float64: {type(error).__name__}: {error}", lambda case: case


def check(
    subject: Given,
    claims: Claims | None = None,
    *,
    laws: str | Sequence[str] = "default",
    skip: Sequence[str] = (),
    train: bool | None = None,
    examples: int = 20,
    seed: int = 0,
    name: str = "",
    progress: Callable[[Iterable[Law]], Iterable[Law]] = iter,
    **stated: Any,
) -> Report:
    """Check whether a module from any library keeps what its author claims of it.

    The module is called as ``module(*example)`` (``module(example)`` if that is no tuple), on inputs drawn
    in the shape of the example. It is left as it was, bit for bit: parameters, buffers, flags, plain attributes,
    gradients, generators. Of what belongs to the whole process the global generators of torch, Python and numpy are
    seeded for each call, and restored after it; the laws of compilation drop what the process has compiled
    (``torch.compiler.reset``).

    Args:
        subject: a module; ``(net, params)`` or ``(net, params, state)`` of a :class:`functional_marl.Network`;
            ``(function, params)`` with a pure function ``(params, x) -> y`` of numpy or JAX arrays; or a function
            without arguments that builds one of them.
        claims: what its author states.
        laws: ``"default"``, ``"all"`` (threads and compilation too), or names of laws or topics.
        skip: names of laws that are left out.
        train: check in training, or in evaluation alone; None: in evaluation, and in training if that differs.
        examples: how many cases a law, of which half have one row.
        seed: of the cases, and of the subject where a function builds it.
        name: what the report calls the subject.
        progress: wraps the laws, as ``tqdm.tqdm`` does.
        stated: fields of :class:`Claims`, instead of or on top of ``claims``.

    Raises:
        CheckError: the module does not run on the example, or agents are not where they are claimed to be.

    >>> import torch
    >>> report = check(nn.Linear(4, 2), n_agents=2, sharing="independent", example=torch.zeros(3, 2, 4))
    >>> bool(report), [verdict.law for verdict in report.violated]
    (False, ['gradient_reaches_own_slot', 'training_others_changes_nothing', 'slots_differ'])
    >>> print(report["gradient_reaches_own_slot"].why.splitlines()[0])  # doctest: +NORMALIZE_WHITESPACE
    gradient_reaches_own_slot: agents 0 and 1 both train weight[0, 0] (8 of 8 numbers),
    and the claim [0, 1] keeps them apart
    """
    if examples < 1:
        raise CheckError(f"examples: expected 1 or more, got {examples}")
    chosen, left_out = laws_named(laws), {law.name for law in laws_named(list(skip))}
    host = _under_test(subject, _claims(claims, stated), seed)
    if not isinstance(host.module, NetworkModule):
        chosen = [law for law in chosen if law.is_about(ModuleSubject)]
    single = host.claims.single
    if host.fault is not None and (single is None or host.centralized):
        raise CheckError(f"the module raises on the example: {type(host.fault).__name__}: {host.fault}")
    checking, verdicts = _Check(examples, seed), list[Verdict]()
    facts, modes = _facts(host, train), _modes(host, train)
    for law in progress([law for law in chosen if law.name not in left_out]):
        # what only slots can tell is the same in every mode
        for mode in [False] if law.own_modes or not law.is_about(ModuleSubject) else modes:
            before = Snapshot(host.module)
            verdicts.append(checking.verdict(law, host, mode))
            if host.build is not None and before.changed():  # a module that cannot be restored is built again
                host = host.again(seed)
    verdicts += [Verdict(law.number, law.name, SKIPPED, "skip=") for law in chosen if law.name in left_out]
    return Report(name or type(host.module).__name__, facts, tuple(_once(verdicts)), LAWS_VERSION)


def _claims(claims: Claims | None, stated: dict[str, Any]) -> Claims:
    try:
        return Claims(**stated) if claims is None else replace(claims, **stated)
    except TypeError as error:
        raise CheckError(f"claims: {str(error).partition('() ')[2] or error}; the fields are those of Claims") from None


def _modes(host: ModuleUnderTest, train: bool | None) -> list[bool]:
    if train is None:
        return [False, True] if host.fault is None and trains_otherwise(host) else [False]
    return [train]


def _once(verdicts: list[Verdict]) -> Iterator[Verdict]:
    """What does not apply in training is left out where the law has a verdict in evaluation."""
    usual = {verdict.law for verdict in verdicts if not verdict.train}
    for verdict in verdicts:
        if not (verdict.train and verdict.verdict == NOT_APPLICABLE and verdict.law in usual):
            yield verdict


def _facts(host: ModuleUnderTest, train: bool | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"n_agents": host.n_agents, "sharing": None, "inferred": None}
    if host.fault is not None:
        facts["inferred"] = f"nothing: the module raises {type(host.fault).__name__}"
    elif host.params() and (found := _inferred(host, bool(train))) is not None:
        facts["inferred"] = found.sharing or {leaf.name: str(leaf) for leaf in found.leaves}
        idle = [leaf.name for leaf in found.leaves if not leaf.sets and host.params()[leaf.name].requires_grad]
        if idle and len(idle) < len(found.leaves):
            facts["trained by no agent"] = ", ".join(idle)
    spec, claims = host.claims.sharing, host.claims
    if spec is not None:
        facts["sharing"] = f"{_sharing_words(spec)} (claimed by {host.claimed_by})"
    view = "centralized" if claims.centralized else "local" if not claims.communication else "communicating"
    facts |= {"view": view, "randomness": claims.randomness}
    if claims.ids:
        facts["ids"] = True
    return facts


def _inferred(host: ModuleUnderTest, train: bool) -> Inferred | None:
    try:
        return inferred(host, train)
    except CheckError:
        return None


def _sharing_words(spec: Any) -> Any:
    """A claim about sharing, short: one slot map where all leaves have the same."""
    if isinstance(spec, Sharing):
        return list(spec)
    if not isinstance(spec, Mapping):
        return spec
    found = {name: _sharing_words(each) for name, each in cast("Mapping[str, Any]", spec).items()}
    first = next(iter(found.values()), None)
    return first if all(each == first for each in found.values()) else found


def check_marl_module(subject: Given, claims: Claims | None = None, **how: Any) -> Report:
    """:func:`check` that raises, for a test: the counterpart of torchrl's ``check_env_specs`` for networks.

    Args:
        subject: as in :func:`check`.
        claims: as in :func:`check`.
        how: the other arguments of :func:`check`.

    Raises:
        AssertionError: a law is violated: the message has each law, agents, leaf or input, numbers, and the lines that
            reproduce it.
        CheckError: as :func:`check`.

    >>> import torch
    >>> report = check_marl_module(nn.Linear(4, 2), n_agents=2, sharing="shared", example=torch.zeros(3, 2, 4))
    """
    __tracebackhide__ = True
    report = check(subject, claims, **how)
    if not report:
        raise AssertionError(str(report))
    return report
