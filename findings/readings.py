"""The second reading of what the laws find: what a user meets, and on which word of the library the claim rests.

A finding is in the tables where it has a reading here; ``run.py`` says so where one has none, and where a reading's
finding reproduces no more.
"""

from __future__ import annotations

# (library, class, number of the law): what a user meets.
READINGS: dict[tuple[str, str, int], str] = {
    ("torchrl", "MultiAgentMLP", 33): "With use_td_params=False a deepcopy computes with parameters that are not its "
    "parameters(): a target network made so never changes.",
    ("torchrl", "MultiAgentMLP", 45): "vmap_randomness holds for unshared parameters only: shared ones draw apart "
    "under 'same' and draw under 'error'. A lazy network stays at 'same' after its first call.",
    ("torchrl", "MultiAgentMLP", 48): "With use_td_params=False an exception in a call takes the parameters out of "
    "the module.",
    ("torchrl", "MultiAgentMLP", 50): "Calls from two threads, in evaluation, raise or give wrong numbers: a call "
    "puts parameters into the one template and takes them out again.",
    ("torchrl", "MultiAgentConvNet", 33): "As MultiAgentMLP.",
    ("torchrl", "MultiAgentConvNet", 50): "As MultiAgentMLP.",
    ("torchrl", "MultiAgentNetBase", 2): "With share_params=True the network of one agent gets all agents as one more "
    "batch axis. BatchNorm1d and attention raise there, and run with share_params=False.",
    ("torchrl", "MultiAgentNetBase", 33): "As MultiAgentMLP.",
    ("torchrl", "MultiAgentNetBase", 35): "With share_params=False a weight that the network of one agent uses twice "
    "becomes two parameters, trained apart.",
    ("torchrl", "MultiAgentNetBase", 43): "reset_parameters, which resets the parameters of the model, leaves "
    "parameters made in __init__, and attention's, as they are.",
    ("torchrl", "MultiAgentNetBase", 48): "As MultiAgentMLP.",
    ("torchrl", "MultiAgentNetBase", 50): "As MultiAgentMLP.",
    ("torchrl", "MarlGroupMapType", 32): "The group map of ALL_IN_ONE_GROUP holds the caller's own list: appending to "
    "one changes the other.",
    ("benchmarl", "Mlp", 50): "As torchrl's, which computes it.",
    ("benchmarl", "Cnn", 50): "As torchrl's, which computes it.",
    ("benchmarl", "Cnn", 20): "A centralised model with 'a different set of parameters for each agent' gives every "
    "agent the features of all agents' convolutions: each agent's loss trains them all. Mlp keeps agents apart.",
    ("benchmarl", "Gru", 20): "The same with the features of all agents' GRUs.",
    ("benchmarl", "Lstm", 20): "The same with the features of all agents' LSTMs.",
    ("benchmarl", "Gru", 45): "dropout > 0 with several layers raises in training, except where parameters are shared "
    "and the model is centralised: vmap is called without a word on randomness.",
    ("benchmarl", "Lstm", 45): "As Gru.",
    ("benchmarl", "Gru", 50): "Calls from two threads raise: the swap of parameters, as in torchrl.",
    ("benchmarl", "Lstm", 50): "As Gru.",
    ("benchmarl", "Model", 20): "share_params_with, which makes the other model 'reference the parameters' of this "
    "one, copies numbers once: training one leaves the other behind.",
    ("benchmarl", "Model", 25): "After one step of training the two models differ.",
    ("benchmarl", "Model", 50): "As torchrl's, which computes it.",
    ("xuance", "MAAC_Policy", 33): "A policy that has been called cannot be deepcopied: its actor keeps the last "
    "distribution, with its graph.",
    ("xuance", "MAAC_Policy", 50): "An actor returns the same distribution at every call, and every call changes it: "
    "what an earlier call returned, or another thread's, becomes the later one's.",
    ("xuance", "Gaussian MAAC_Policy", 33): "As MAAC_Policy.",
    ("xuance", "Gaussian MAAC_Policy", 50): "As MAAC_Policy.",
    ("DI-engine", "MAVAC", 2): "norm_type='BN', which the documentation offers, raises on the documented inputs "
    "[B, agents, features]: the axis of agents is taken for the channels. One agent's [B, features] runs.",
    ("DI-engine", "DiscreteMAQAC", 2): "As MAVAC.",
}

WITHDRAWN = """
What the laws said and a second reading took out again:

- BenchMARL's Deepsets, centralised, on sets, `share_params=False` (law 20): the documentation says that a second
  network pools over agents what each agent's first one makes of its sets. The claim is now that, and all laws hold.
- torchrl, shared and centralized, `vmap_randomness="different"` (law 45): a comment in the library says that such a
  network is called once and its output is expanded over agents. It is not asked any more.
- Attention over agents (OpenRL, PyMARLzoo+), and XuanCe's joint critics with agents' ids (law 15): rows are meant to
  differ. They are not asked for law 15.

Dropout in BenchMARL's Gru and Lstm (law 45): the library says nothing about how agents draw. The row stands because
the call raises, whatever is claimed. No library says that its modules may be called from several threads (law 50);
plain modules of torch may, in evaluation. Two threads are made to take turns at submodules, so these rows do not
depend on luck. What only a race shows is not asked: torchrl's shared networks with `use_td_params=False` (seen in two
networks of one run and in none of the next), and XuanCe's shared actors.
"""

TRIED = """
Other libraries, and why they are not asked:

| library | release | why not |
|---|---|---|
| agilerl | 2.58.0 | agents are separate networks in a dict; no module computes several agents |
| tianshou | 2.0.1 | the same: `MultiAgentPolicy` hands rows to the policies of agents |
| skrl | 2.1.1 | the same: models by agent, made by the user |
| ray (RLlib) | 2.60.0 | by its documentation the same: a dict of modules; which agent uses which is said elsewhere |
| marl | 1.0.0 | the same |
| polaris-marl | 2.0.2 | networks of one agent, which sees its neighbours |
| flexibuddiesrl | 1.0.4 | networks of one agent, and mixers of their values |
| pyg-multiagent | 0.0.5 | training scripts; no network class |
| marllib | 1.0.3 | needs ray 1.8.0, which no Python that torch 2.13 runs on has |
| jaxmarl, id-mava | 0.2.0, 0.1.3 | not torch |
"""
