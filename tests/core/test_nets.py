"""Errors of the one-agent networks of ``fm.nets``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import functional_marl as fm


@pytest.mark.parametrize("activation", ["relu", torch.relu, nn.ReLU()])
def test_an_activation_that_is_no_module_class_raises(activation: Any) -> None:
    with pytest.raises(fm.StructureError, match=r"mlp: expected as activation a module class such as nn.ReLU, .* got"):
        fm.nets.mlp(4, 5, 2, activation=activation)
    with pytest.raises(fm.StructureError, match="convnet: expected as activation"):
        fm.nets.convnet([3, 4], activation=activation)
