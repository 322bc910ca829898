"""Embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from functional_marl._errors import Unsupported
from functional_marl._lowering.expected_leaves import ExpectedLeaves
from functional_marl._lowering.registry import Context, lowering_rule
from functional_marl._lowering.rows import Rows, over_rows
from functional_marl._lowering.steps import Run, Step


def _leaves(module: nn.Embedding) -> ExpectedLeaves:
    return ExpectedLeaves({"weight": (module.num_embeddings, module.embedding_dim)})


@lowering_rule(nn.Embedding, leaves=_leaves)
def embedding(module: nn.Embedding, context: Context) -> Step:
    """Each agent's rows of its own table."""
    if module.max_norm is not None or module.sparse or module.scale_grad_by_freq or module.padding_idx is not None:
        raise Unsupported("Embedding with max_norm, sparse, scale_grad_by_freq or padding_idx")

    def inner(x: Tensor, rows: Rows, run: Run) -> Tensor:
        table = rows("weight")
        assert table is not None
        if table.shape[0] == 1 or x.dtype not in (torch.int64, torch.int32):
            return F.embedding(x, table[0])
        # Not one long table with offsets: an index out of range would read the next agent's row.
        index = x.long()[..., None].expand(-1, -1, table.shape[2])
        return table.gather(1, index)

    return over_rows(context.leaves, inner, lambda ndim: 0)
