"""Errors of the facade that name the fix."""

from __future__ import annotations

import pytest
from torch import nn

import functional_marl as fm
from functional_marl.nn import MultiAgentMLP, convert_state_dict


def test_the_argument_sharing_raises_and_names_share_params() -> None:
    with pytest.raises(TypeError, match="these classes call it share_params"):
        MultiAgentMLP(4, 2, 3, centralized=False, sharing=[0, 0, 1])


def test_a_checkpoint_of_a_module_around_ours_raises_and_names_prefix() -> None:
    own = MultiAgentMLP(4, 2, 3, centralized=False, share_params=True, depth=0)
    around = nn.Sequential(own)
    with pytest.raises(fm.StructureError, match=r"got Sequential; it holds one: give that, and prefix='0.'"):
        convert_state_dict(around.state_dict(), around)  # pyright: ignore[reportArgumentType]
    with pytest.raises(fm.StructureError, match="prefix= is the module"):
        convert_state_dict(around.state_dict(), own)
    assert convert_state_dict(around.state_dict(), own, prefix="0.").keys() == around.state_dict().keys()
