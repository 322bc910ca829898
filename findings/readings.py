"""Second readings of what the laws find: what a user meets, and which promise of the library is broken.

A finding is in the tables if it has a reading here. ``run.py`` reports findings without a reading, and readings whose
finding does not reproduce.
"""

from __future__ import annotations

# library: class: law: what a user meets.
READINGS: dict[str, dict[str, dict[str, str]]] = {
    "torchrl": {
        "MultiAgentMLP": {
            "copies_are_whole": (
                "With use_td_params=False a deepcopy computes with parameters that are not its parameters(): a target"
                " network made so never changes."
            ),
            "randomness_has_one_meaning": (
                "vmap_randomness has an effect on unshared parameters only: with shared ones agents get different "
                "dropout masks under 'same', and 'error' raises nothing. A lazy network keeps 'same' after its first "
                "call."
            ),
            "nothing_is_changed": (
                "With use_td_params=False an exception in a call removes the parameters from the module."
            ),
            "threads_agree": (
                "Calls from two threads, in evaluation, raise or give wrong numbers: each call writes parameters into"
                " one common template and removes them again."
            ),
        },
        "MultiAgentConvNet": {
            "copies_are_whole": "Same as MultiAgentMLP.",
            "nothing_is_changed": "Same as MultiAgentMLP.",
            "threads_agree": "Same as MultiAgentMLP.",
        },
        "MultiAgentNetBase": {
            "agents_are_networks": (
                "With share_params=True the network of one agent gets the agent axis as one more batch axis. "
                "BatchNorm1d and attention then raise; with share_params=False they run."
            ),
            "copies_are_whole": "Same as MultiAgentMLP.",
            "number_of_parameters": (
                "With share_params=False a weight that the network of one agent uses twice becomes two parameters, "
                "which are trained separately."
            ),
            "a_reset_redraws": (
                "reset_parameters, documented to reset the parameters of the model, does not reset parameters that "
                "__init__ creates, nor those of attention."
            ),
            "nothing_is_changed": "Same as MultiAgentMLP.",
            "threads_agree": "Same as MultiAgentMLP.",
        },
        "MarlGroupMapType": {
            "group_map_is_the_callers": (
                "The group map of ALL_IN_ONE_GROUP keeps the caller's own list: appending to one changes the other."
            ),
        },
    },
    "benchmarl": {
        "Mlp": {
            "threads_agree": "Same as torchrl's networks, which it calls.",
        },
        "Cnn": {
            "threads_agree": "Same as torchrl's networks, which it calls.",
            "gradient_reaches_own_slot": (
                "A centralised model with 'a different set of parameters for each agent' gives every agent the "
                "features of all agents' convolutions: each agent's loss trains them all. Mlp trains each agent's "
                "own."
            ),
        },
        "Gru": {
            "gradient_reaches_own_slot": "The same with the features of all agents' GRUs.",
            "randomness_has_one_meaning": (
                "dropout > 0 with several layers raises in training, unless parameters are shared and the model is "
                "centralised: vmap is called without randomness=."
            ),
            "threads_agree": "Calls from two threads raise: parameters are swapped in and out, as in torchrl.",
        },
        "Lstm": {
            "gradient_reaches_own_slot": "The same with the features of all agents' LSTMs.",
            "randomness_has_one_meaning": "Same as Gru.",
            "threads_agree": "Same as Gru.",
        },
        "SequenceModel": {"threads_agree": "Same as torchrl's networks, which it calls."},
        "Model": {
            "gradient_reaches_own_slot": (
                "share_params_with, documented to make the other model 'reference the parameters' of this one, copies"
                " the numbers once: training one model does not change the other."
            ),
            "tied_agents_stay_tied": "After one step of training the two models differ.",
            "threads_agree": "Same as torchrl's networks, which it calls.",
        },
    },
    "xuance": {
        "MAAC_Policy": {
            "copies_are_whole": (
                "A policy that has been called with gradients cannot be deepcopied: its actor keeps the last "
                "distribution, with its autograd graph."
            ),
            "threads_agree": (
                "An actor returns the same distribution object at every call, and each call changes it: the result of"
                " an earlier call, or of another thread, turns into that of the latest."
            ),
        },
        "Gaussian MAAC_Policy": {
            "copies_are_whole": "Same as MAAC_Policy.",
            "threads_agree": "Same as MAAC_Policy.",
        },
        "Gaussian Basic_ISAC_Policy": {"copies_are_whole": "Same as MAAC_Policy."},
        "CommNet_Policy": {
            "copies_are_whole": "Same as MAAC_Policy, from which it inherits.",
            "threads_agree": "Same as MAAC_Policy, from which it inherits.",
        },
        "IC3Net_Policy": {
            "copies_are_whole": "Same as MAAC_Policy, from which it inherits.",
            "state_dicts_are_whole": (
                "The gates, which decide who is heard, are in a plain dict: they are in no checkpoint and in no "
                "optimizer. The learner computes a loss of them that trains nothing, and a policy that is loaded has "
                "new random gates."
            ),
        },
        "TarMAC_Policy": {
            "copies_are_whole": "Same as MAAC_Policy, from which it inherits.",
            "state_dicts_are_whole": "Same as IC3Net_Policy, from which it inherits.",
        },
    },
    "DI-engine": {
        "MAVAC": {
            "agents_are_networks": (
                "norm_type='BN', which the documentation offers, raises on the documented inputs [B, agents, "
                "features]: the agent axis is taken for the channels. Inputs [B, features] of one agent run."
            ),
        },
        "DiscreteMAQAC": {
            "agents_are_networks": "Same as MAVAC.",
        },
    },
}

WITHDRAWN = """
Violations that the laws reported and that a second reading removed again:

- BenchMARL's Deepsets, centralised, on sets, `share_params=False` (gradient_reaches_own_slot): by the documentation a
  second network pools over agents what each agent's first network computes from its sets. With this claim all laws
  hold.
- torchrl, shared and centralized, `vmap_randomness="different"` (randomness_has_one_meaning): a comment in the library
  says that such a network is called once and its output is expanded over agents. This case is not checked any more.
- Attention over agents in OpenRL and PyMARLzoo+ (centralized_rows_are_equal): an agent's output is that of its own
  place. The claim is now `communication=True`, with which all laws hold.
- XuanCe's joint critics, which get agents' ids, and PyMARLzoo+'s MATCritic, in which an agent's own action is zero in
  the list of all actions (equivariance, centralized_rows_are_equal): agents are meant to be told apart. The claim is
  now `ids=True`, with which all laws hold.
- PyMARLzoo+'s COMACriticNS with `obs_individual_obs=True` (centralized_sees_all): each agent adds its own observation
  to what all see, which is what that argument says. It is checked without it.

Notes on rows that stayed:

- Dropout in BenchMARL's Gru and Lstm (randomness_has_one_meaning): the library does not document how agents sample.
  The row stays because the call raises under every claim.
- Threads (threads_agree): no library claims that its modules may be called from several threads. Plain modules of torch
  may be, in evaluation. The check makes two threads take turns at submodules, so these rows do not depend on luck.
  Errors that only a race shows are not checked: torchrl's shared networks with `use_td_params=False` (seen in two
  networks of one run and in none of the next), and XuanCe's shared actors.
- XuanCe's IC3Net and TarMAC draw their gates in evaluation, too, and its SAC policies their actions: the claim is
  `samples=True`. The gates' row (state_dicts_are_whole) compares under one seed.
"""

TRIED = """
Other libraries, and why they are not checked:

| library | release | why not |
|---|---|---|
| agilerl | 2.58.0 | agents are separate networks in a dict; no module computes several agents |
| tianshou | 2.0.1 | the same: `MultiAgentPolicy` passes rows to the policies of agents |
| skrl | 2.1.1 | the same: the user creates a model for each agent |
| ray (RLlib) | 2.60.0 | by its documentation the same: a dict of modules, and a mapping from agents to modules |
| marl | 1.0.0 | the same |
| polaris-marl | 2.0.2 | networks of one agent that sees its neighbours |
| flexibuddiesrl | 1.0.4 | networks of one agent, and mixers of their values |
| pyg-multiagent | 0.0.5 | training scripts; no network class |
| marllib | 1.0.3 | needs ray 1.8.0, which is not available for any Python that torch 2.13 supports |
| machin | 0.4.2 | the same as agilerl: the user passes a list of networks |
| jaxmarl | 0.2.0 | environments; the networks are in tutorials, beside one of one agent |
| id-mava | 0.1.3 | networks of TensorFlow |
"""
