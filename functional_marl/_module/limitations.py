"""Which modules are refused as the module of one agent, and which parts ``torch.func.vmap`` cannot run."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import BaseTorchFunctionMode

from functional_marl import _torch_compat
from functional_marl._errors import StructureError

__all__ = ["ATTENDING", "check_parts", "differentiable_attention", "lacks_batching_rule", "renorms", "why_not_vmap"]

_WITHOUT_RULE = (nn.RNNBase, nn.LSTMCell)
ATTENDING = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def check_parts(module: nn.Module, what: str = "build") -> None:
    """Refuse a module that has a part which cannot take its leaves from outside.

    Raises:
        StructureError: names the part, and what to write instead.
    """
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise StructureError(f"{what}: TorchScript does not take parameters from outside; give the plain nn.Module")
        if getattr(type(part), "of_several_agents", False):
            raise StructureError(
                f"{what}: {path or 'the module'} ({type(part).__name__}) is a network of several agents, and cannot be "
                "the module of one agent or a part of it; make one network of the agents of all teams: two teams of "
                "three are n_agents=6 with share_params=[0, 0, 0, 1, 1, 1] (sharing= in fm.network); or register the "
                "parameters that its functional() gives, and call apply in forward"
            )


def why_not_vmap(name: str, part: nn.Module) -> str:
    """Why ``torch.func.vmap`` cannot run a module with this part, or computes it wrongly; else an empty string."""
    kind = type(part).__name__
    where = f" ({name!r})" if name else ""
    if isinstance(part, _WITHOUT_RULE):
        return f"torch.func.vmap has no batching rule for {kind}{where}"
    if part._backward_hooks or part._backward_pre_hooks:
        return f"torch.func.vmap leaves out the backward hooks of {kind}{where}"
    # With mapped weights the padding index is lost. With mapped indices each agent's frequencies count all agents.
    if isinstance(part, nn.Embedding) and (part.padding_idx is not None or part.scale_grad_by_freq):
        return f"torch.func.vmap trains {kind}{where} wrongly with padding_idx or scale_grad_by_freq"
    return ""


def renorms(part: nn.Module) -> bool:
    """Whether the forward scales the weight in place."""
    return isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None


def lacks_batching_rule(part: nn.Module) -> bool:
    """Whether vmap lacks a batching rule for this part, and ``_lowering/rules/`` has one."""
    if isinstance(part, (nn.GRUCell, nn.RNNCell, nn.Bilinear, _torch_compat.WeightNorm)):
        return True
    return any(isinstance(hook, WeightNorm) for hook in part._forward_pre_hooks.values())


def differentiable_attention() -> contextlib.AbstractContextManager[Any]:
    """Inside, torch's attention does not use its inference kernel while a transform of ``torch.func`` is active.

    That kernel has no derivative and no batching rule. torch uses it if no tensor requires grad, and a tensor
    mapped by vmap does not show whether it does. With any torch function mode on, torch does not use it.
    """
    if torch.compiler.is_dynamo_compiling() or _torch_compat.in_transform():
        return BaseTorchFunctionMode()
    return contextlib.nullcontext()
