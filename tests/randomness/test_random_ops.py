"""The tag by which random operations are found is on every operation that takes a generator."""

from __future__ import annotations

import torch


def test_every_operation_with_a_generator_is_tagged_as_random() -> None:
    found = 0
    for packet in dir(torch.ops.aten):
        overloads = getattr(getattr(torch.ops.aten, packet), "overloads", list)()
        for overload in (getattr(getattr(torch.ops.aten, packet), name) for name in overloads):
            if any("Generator" in str(argument.type) for argument in overload._schema.arguments):
                found += 1
                assert torch.Tag.nondeterministic_seeded in overload.tags, overload
    assert found > 50
