"""What laws need of a subject: a predicate each, with the reason why a law says nothing where it does not hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from functional_marl._network import Network
from functional_marl.laws._law import Capability
from functional_marl.laws._module_facts import follows_the_seed
from functional_marl.laws._module_subject import ModuleSubject
from functional_marl.laws._network_subject import NetworkSubject


class _OfKind:
    """A predicate about one kind of subject."""

    def __init__(self, kind: type, predicate: Callable[[Any], bool]) -> None:
        self.kind, self.predicate = kind, predicate

    def __call__(self, subject: Any) -> bool:
        return isinstance(subject, self.kind) and self.predicate(subject)


def _of_modules(predicate: Callable[[ModuleSubject], bool]) -> Callable[[Any], bool]:
    """A predicate about modules, which our own networks do not have."""
    return _OfKind(ModuleSubject, predicate)


# --- who shares, who sees whom --------------------------------------------------------------------------------

SEVERAL_AGENTS = Capability("several agents", lambda s: s.n > 1, "there is one agent")
ONE_AGENT = Capability("one agent", lambda s: s.n == 1, "there are several agents")
SHARED = Capability("one class of agents", lambda s: len(s.classes()) == 1, "not all agents share everything")
INDEPENDENT = Capability(
    "independent agents",
    lambda s: all(len(set(sharing)) == s.n for sharing in s.slots.values()),
    "not every agent has its own",
)
CLUSTER = Capability(
    "agents that share everything",
    lambda s: any(len(members) > 1 for members in s.classes()),
    "no two agents share everything",
)
APART = Capability(
    "agents that share nothing",
    lambda s: any(s.share_nothing(i, j) for i, j in itertools.combinations(range(s.n), 2)),
    "no two agents share nothing",
)
SEVERAL_SLOTS = Capability(
    "several slots",
    lambda s: (
        any(sharing.n_slots > 1 for sharing in s.slots.values()) if isinstance(s, NetworkSubject) else APART.holds(s)
    ),
    "no two agents share nothing",
)
LOCAL = Capability(
    "local agents",
    lambda s: all(heard == {agent} for agent, heard in enumerate(s.hears)),
    "agents see or hear each other",
)
NOT_ONE_CLASS = Capability(
    "several classes of agents",
    lambda s: isinstance(s, NetworkSubject) or len(s.classes()) > 1,
    "all agents share everything: shared_equivariance is about them",
)
CENTRALIZED = Capability("a centralized network", lambda s: s.centralized, "the module is not centralized")
GRAPH = Capability(
    "agents that do not hear all others",
    _of_modules(
        lambda s: not s.centralized and any(len(h) > 1 for h in s.hears) and any(len(h) < s.n for h in s.hears)
    ),
    "no graph of communication is claimed",
)
NOT_CENTRALIZED = Capability(
    "agents with inputs of their own", lambda s: not s.centralized, "the module is centralized"
)
ANONYMOUS = Capability(
    "agents without ids", lambda s: not s.tells_agents_apart, "agents are told apart by ids or by a graph"
)

# --- how it is called -----------------------------------------------------------------------------------------

RUNS = Capability("a module that runs", lambda s: s.fault is None, "the module raises on the example")
NUMBERS = Capability("outputs without NaN", lambda s: s.gives_numbers, "outputs hold NaN: see outputs_are_numbers")
A_BATCH = Capability("a batch", lambda s: bool(s.batch_sizes), "the example has no batch axis")
AGENTS_IN_OUTPUTS = Capability("outputs by agent", lambda s: s.has_agents_in_outputs, "outputs have no axis of agents")
FLOAT_INPUTS = Capability("float inputs", lambda s: s.inputs_are_float, "no input of agents is float")
FLOATS = Capability(
    "numbers that other dtypes can have",
    lambda s: isinstance(s, NetworkSubject) or s.inputs_are_float,
    "no input of agents is float",
)
EVALUATION = Capability("evaluation", lambda s: not s.train, "it is about evaluation only")
REPEATABLE = Capability("calls that draw nothing", lambda s: s.repeatable, "calls draw random numbers")
SEEDED = Capability(
    "calls that follow the seed",
    _of_modules(lambda s: follows_the_seed(s.host, s.train)),
    "calls under one seed differ: see results_follow_the_seed",
)
REPEATABLE_IF_IT_RUNS = Capability(
    "calls that draw nothing", lambda s: s.fault is not None or s.repeatable, REPEATABLE.reason
)
DRAWS_IN_TRAINING = Capability(
    "draws in training", lambda s: s.draws_in_training, "outputs of training do not depend on the seed"
)

# --- gradients and numbers ------------------------------------------------------------------------------------

GRADIENTS = Capability("gradients of parameters", lambda s: s.trains, "no parameter gets a gradient")
INPUT_GRADIENTS = Capability(
    "gradients of inputs", lambda s: s.carries_gradients, "outputs carry no gradient of inputs"
)
OWN_GRADIENTS = Capability(
    "gradients that stay with an agent's own network",
    lambda s: not isinstance(s, ModuleSubject) or not s.communicates or len(s.classes()) == 1,
    "messages carry gradients to the networks of other agents",
)
LINES_UP = Capability("parameters that line up", lambda s: s.lines_up, "the agents' parameters do not line up")
COPIES = Capability("a module that can be copied", lambda s: s.copies, "the module has no deepcopy")
ORACLE = Capability(
    "one agent's network", lambda s: s.known_alone, "one agent's network is not known: state it with single= (--single)"
)


MODULE = Capability("a module", _of_modules(lambda s: True), "it is about modules, which keep their own parameters")
SINGLE = Capability(
    "one agent's factory",
    _of_modules(lambda s: s.host.claims.single is not None),
    "one agent's factory is not known: state it with single= (--single)",
)
ONE_SHARING = Capability(
    "one slot map for all parameters",
    lambda s: not isinstance(s, ModuleSubject) or len({tuple(sharing) for sharing in s.slots.values()}) == 1,
    "parameters are shared in different ways",
)
BUILD = Capability(
    "a function that builds the module",
    _of_modules(lambda s: s.host.build is not None),
    "only one module was given, no function that builds it",
)
RESET = Capability(
    "reset_parameters",
    _of_modules(lambda s: hasattr(s.host.module, "reset_parameters")),
    "there is no reset_parameters",
)
RANDOMNESS_CLAIM = Capability(
    "a claim about randomness",
    lambda s: not isinstance(s, ModuleSubject) or s.host.claims.randomness is not None,
    "nothing is claimed with randomness=",
)
NO_SAMPLER = Capability(
    "evaluation that is claimed to draw nothing",
    _of_modules(lambda s: not s.host.claims.samples),
    "samples= claims that evaluation draws",
)
IDS = Capability("ids of agents", _of_modules(lambda s: s.host.claims.ids), "no ids are claimed")
NO_MEMORY = Capability(
    "calls that are claimed to keep nothing",
    _of_modules(lambda s: not s.host.claims.memory),
    "memory= claims that calls keep state",
)
ANY_BATCH_AXES = Capability(
    "any number of batch axes",
    _of_modules(lambda s: s.host.facade and len(s.host.leaves) == 1),
    "only torchrl's and our classes claim it",
)


# --- our own networks -----------------------------------------------------------------------------------------


def _of_networks(predicate: Callable[[NetworkSubject], bool]) -> Callable[[Any], bool]:
    """A predicate about our own networks, which modules do not have."""
    return _OfKind(NetworkSubject, predicate)


def _trait(word: str, reason: str, name: str = "") -> Capability:
    return Capability(name or word, _of_networks(lambda s: word in s.traits), reason)


def _spare(s: NetworkSubject) -> bool:
    return any(sharing.unused() for sharing in s.slots.values())


def _wide(s: NetworkSubject) -> bool:
    first = s.inputs[0]
    return len(s.inputs) == 1 and isinstance(first, Tensor) and first.shape[-1] > s.n


SLOTS = Capability(
    "slots", _of_networks(lambda s: isinstance(s.net, Network)), "it is about the slots of a functional_marl.Network"
)
SPARE_SLOTS = Capability("slots without agents", _of_networks(_spare), "every slot has an agent")
NO_SPARE_SLOTS = Capability("agents in every slot", _of_networks(lambda s: not _spare(s)), "some slot has no agent")
FACTORY = Capability(
    "the factory of one agent", _of_networks(lambda s: s.build is not None), "it needs the factory of a Network"
)
ANY_FACTORY = Capability("one agent's factory", lambda s: FACTORY.holds(s) or SINGLE.holds(s), SINGLE.reason)
WIDE_INPUTS = Capability("more features than agents", _of_networks(_wide), "inputs have too few features for ids")
NO_MASK = Capability(
    "inputs without a mask of agents",
    lambda s: not isinstance(s, NetworkSubject) or "masks agents" not in s.traits,
    "a mask hides agents",
)
ROWS_APART = Capability(
    "rows that are computed by themselves",
    lambda s: not isinstance(s, NetworkSubject) or "rows apart" in s.traits,
    "the network mixes the rows of a batch",
)
SHOWS_MASK = _trait("a mask that shows", "outputs do not show the mask of a dropout")
POOLED = _trait("pooled", "it is not known to pool over agents", "a network that pools over agents")
MASKS_AGENTS = _trait("masks agents", "inputs have no mask of agents", "inputs with a mask of agents")
VMAP = _trait("vmap", "torch.func.vmap cannot map the module", "a module that vmap can map")
COMPILES = Capability(
    "a module that compiles",
    lambda s: "compiles" in s.traits if isinstance(s, NetworkSubject) else s.compiles,
    "torch.compile cannot trace the module",
)
EXPORTS = _trait("exports", "torch.export cannot trace the module", "a module that exports")
