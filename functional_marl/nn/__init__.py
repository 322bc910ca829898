"""The facade: ``nn.Module`` classes for torchrl users, built on the functional core.

``from torchrl.modules import MultiAgentMLP`` becomes ``from functional_marl.nn import MultiAgentMLP``.
torchrl need not be installed.
"""

from functional_marl._groups.group_map import MarlGroupMapType as MarlGroupMapType
from functional_marl.nn._agent_axis_warning import AgentsApartWarning as AgentsApartWarning
from functional_marl.nn._base import MultiAgentNetBase as MultiAgentNetBase
from functional_marl.nn._check_marl_grouping import check_marl_grouping as check_marl_grouping
from functional_marl.nn._checkpoints import convert_state_dict as convert_state_dict
from functional_marl.nn._critics import CrossCriticGroupSpec as CrossCriticGroupSpec
from functional_marl.nn._critics import CrossGroupCritic as CrossGroupCritic
from functional_marl.nn._from_functional import from_functional as from_functional
from functional_marl.nn._mixers import Mixer as Mixer
from functional_marl.nn._mixers import QMixer as QMixer
from functional_marl.nn._mixers import VDNMixer as VDNMixer
from functional_marl.nn._multiagent import MultiAgentConvNet as MultiAgentConvNet
from functional_marl.nn._multiagent import MultiAgentMLP as MultiAgentMLP
from functional_marl.nn._single_agent_convnet import ConvNet as ConvNet
from functional_marl.nn._single_agent_convnet import SquashDims as SquashDims
from functional_marl.nn._single_agent_mlp import MLP as MLP

__all__ = [
    "MLP",
    "AgentsApartWarning",
    "ConvNet",
    "CrossCriticGroupSpec",
    "CrossGroupCritic",
    "MarlGroupMapType",
    "Mixer",
    "MultiAgentConvNet",
    "MultiAgentMLP",
    "MultiAgentNetBase",
    "QMixer",
    "SquashDims",
    "VDNMixer",
    "check_marl_grouping",
    "convert_state_dict",
    "from_functional",
]
