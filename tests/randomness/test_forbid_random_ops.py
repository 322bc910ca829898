"""``ForbidRandomOps`` raises at the first operation that samples, and at no other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import functional_marl as fm
from functional_marl._randomness.forbid_random_ops import ForbidRandomOps
from tests.builders import generators_untouched, numbers


def test_it_raises_before_the_operation_samples_and_only_inside_of_the_context() -> None:
    message = r"random operation aten.rand.*: because"
    with generators_untouched(), pytest.raises(fm.RandomnessError, match=message), ForbidRandomOps("because"):
        torch.rand(3)
    with torch.random.fork_rng(devices=[]):
        assert torch.rand(3).shape == (3,)


def test_operations_that_sample_nothing_pass() -> None:
    x = numbers(2, 4, 6)
    with generators_untouched(), ForbidRandomOps("because"):
        F.scaled_dot_product_attention(x, x, x)
        F.dropout(x, 0.5, training=False)
        F.rrelu(x, training=False)
        torch.native_dropout(x, 0.5, False)
