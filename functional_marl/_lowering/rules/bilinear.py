"""``nn.Bilinear``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from functional_marl._lowering.expected_leaves import ExpectedLeaves, weight_and_bias
from functional_marl._lowering.registry import Context, batching_rule, lowering_rule
from functional_marl._lowering.steps import Run, WholeNetwork, check_shape


def _leaves(module: nn.Bilinear) -> ExpectedLeaves:
    return weight_and_bias(module.out_features, module.in1_features, module.in2_features, bias=module.out_features)


@lowering_rule(nn.Bilinear, leaves=_leaves)
def lower_bilinear(module: nn.Bilinear, context: Context) -> WholeNetwork:
    """A bilinear layer as the whole network."""
    leaves = context.leaves

    def cell(run: Run, input1: Tensor, input2: Tensor) -> Tensor:
        weight, bias = leaves.rows(run, "weight"), leaves.rows(run, "bias")
        assert weight is not None
        lead = input1.shape[:-1]
        check_shape(input2, *lead, module.in2_features)
        k = weight.shape[0]
        x, y = input1.reshape(k, -1, input1.shape[-1]), input2.reshape(k, -1, input2.shape[-1])
        out = torch.einsum("kbi,koij,kbj->kbo", x, weight, y)
        out = out if bias is None else out + bias.unsqueeze(1)
        return out.reshape(*lead, out.shape[-1])

    return WholeNetwork(cell)


@batching_rule(torch.bilinear, equal_batches=True)
def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``[..., I], [..., J] -> [..., O]``."""
    out = torch.einsum("...i,oij,...j->...o", x, weight, y)
    return out if bias is None else out + bias
