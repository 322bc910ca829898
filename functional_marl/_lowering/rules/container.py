"""Modules that only run their parts: ``nn.Sequential`` and the network of ``fm.nets.convnet``."""

from __future__ import annotations

from torch import nn

from functional_marl._lowering.fusion import over_images
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.steps import Layer, Step
from functional_marl.nets import ConvNet


@lowering_rule(nn.Sequential, container=True)
def sequential(module: nn.Sequential, context: Context) -> list[Layer]:
    """Its children in order."""
    return context.children(module)


@lowering_rule(ConvNet, container=True)
def convnet(module: ConvNet, context: Context) -> Step:
    """Its layers over one batch axis."""
    return over_images(context.lower(module.layers, "layers"), lone_as_is=False)
