"""The report of a check."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from functional_marl.laws import check


def test_an_unknown_law_raises_and_lists_the_laws_of_the_report() -> None:
    report = check(nn.Linear(4, 2), n_agents=2, example=torch.zeros(3, 2, 4), laws="sharing", examples=1)
    with pytest.raises(KeyError, match="no verdict on 'missing'; the laws are"):
        report["missing"]
