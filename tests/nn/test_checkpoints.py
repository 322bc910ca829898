"""``convert_state_dict``, and checkpoints with buffers from and to torchrl."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import functional_marl as fm
from functional_marl.nn import convert_state_dict
from tests.nn.facade_cases import OURS, TORCHRL, mlp, shared, stored, subclass

X = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))

SHARES: list[Any] = [True, False, "shared", [0, 0, 1], {"0.*": "shared", "*": [1, 0, 1]}, fm.Sharing([2, 1, 2], 3)]


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def maps(net: Any) -> dict[str, fm.Sharing]:
    return net.functional()[0].sharing


@pytest.mark.parametrize(("source", "target"), list(itertools.product(SHARES, SHARES)), ids=str)
def test_checkpoints_convert_between_storages_and_sharings(source: Any, target: Any) -> None:
    for td in (True, False):
        old = mlp(OURS, share_params=source, use_td_params=td)
        new = mlp(OURS, share_params=target, use_td_params=not td)
        lossless = all(a.refines(b) for a, b in zip(maps(new).values(), maps(old).values(), strict=True))
        if not lossless:
            with pytest.raises(fm.SharingError, match="merge="):
                convert_state_dict(old.state_dict(), new, sharing=source)
        new.load_state_dict(convert_state_dict(old.state_dict(), new, sharing=source, merge="first"))
        if lossless:
            torch.testing.assert_close(new(X), old(X))


def test_the_shapes_decide_between_shared_and_independent() -> None:
    for source, target in itertools.product((True, False, "shared"), (False, {"*": "independent"})):
        old, new = mlp(OURS, share_params=source), mlp(OURS, share_params=target)
        state = {f"policy.{k}": v for k, v in old.state_dict().items()} | {"other": torch.zeros(1)}
        converted = convert_state_dict(state, new, prefix="policy.")
        assert converted.pop("other") is state["other"]
        new.load_state_dict({k.removeprefix("policy."): v for k, v in converted.items()})
        torch.testing.assert_close(new(X), old(X))


@stored
def test_slots_without_agents_keep_their_numbers(td: bool) -> None:
    spare, root = fm.Sharing([2, 0, 2], n_slots=4), "params." if td else "_empty_net."
    old, new, own = (mlp(OURS, share_params=s, use_td_params=td) for s in ([0, 1, 0], spare, spare))
    for p in new.parameters():
        p.data.add_(1)
    before = {k: p.clone() for k, p in new.state_dict().items()}
    converted = convert_state_dict(old.state_dict(), new, sharing=[0, 1, 0])
    assert all(torch.equal(p, before[k]) for k, p in new.state_dict().items())
    for name, rows in old.state_dict().items():
        assert torch.equal(converted[name], torch.stack([rows[1], before[name][1], rows[0], before[name][3]]))
    new.load_state_dict(converted)
    torch.testing.assert_close(new(X), old(X))
    # of the same sharing: nothing of the checkpoint is lost
    same = convert_state_dict(own.state_dict(), new, sharing=spare)
    assert all(torch.equal(leaf, own.state_dict()[k]) for k, leaf in same.items())
    assert root + "0.weight" in same
    back = convert_state_dict(new.state_dict(), old, sharing=spare)
    assert all(torch.equal(leaf, old.state_dict()[k]) for k, leaf in back.items())


def test_the_converter_names_what_does_not_fit() -> None:
    new = mlp(OURS)
    with pytest.raises(fm.StructureError, match=r"params\.\*"):
        convert_state_dict({"weight": torch.zeros(1)}, new)
    state = mlp(OURS).state_dict()
    state["params.0.weight"] = torch.zeros(3, 8, 5)
    del state["params.2.bias"]
    state["params.9.bias"] = torch.zeros(3, 2)
    with pytest.raises(fm.StructureError) as error:
        convert_state_dict(state, new)
    for part in ("params.0.weight: expected [8, 6]", "got [3, 8, 5]", "params.2.bias: missing", "params.9.bias: not a"):
        assert part in str(error.value)
    with pytest.raises(fm.StructureError, match="sharing="):
        convert_state_dict(mlp(OURS, share_params=[0, 0, 1]).state_dict(), new)


# --- with buffers -----------------------------------------------------------------------------------


@stored
@shared
def test_checkpoints_with_buffers(td: bool, share: bool) -> None:
    ours, theirs = (subclass(lib, normed)(share, use_td_params=td) for lib in (OURS, TORCHRL))
    with torch.no_grad():
        for leaf in (*ours.parameters(), *ours.buffers()):
            leaf.copy_(torch.arange(leaf.numel()).reshape(leaf.shape))
    own, other = ours.state_dict(), theirs.state_dict()
    # With td_params torchrl writes the buffers of its one-agent module too, as tensors on the meta device.
    empty = {k for k, t in other.items() if t.is_meta}
    assert empty == (
        {f"_empty_net.1.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")} if td else set()
    )
    assert {k: t.shape for k, t in own.items()} == {k: t.shape for k, t in other.items() if k not in empty}
    again = subclass(OURS, normed)(share, use_td_params=td)
    again.load_state_dict(other)  # strict
    # a strict load in torchrl needs them; nothing else is missing
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert (set(missing), unexpected) == (empty, [])
    assert all(torch.equal(t, own[k]) for k, t in theirs.state_dict().items() if k not in empty)
    theirs.load_state_dict({**own, **{k: other[k] for k in empty}})


@stored
def test_a_checkpoint_with_buffers_is_all_numbers(td: bool) -> None:
    # why ours leaves out torchrl's meta tensors: a checkpoint with them can neither be stored nor averaged
    own, other = (dict(subclass(lib, normed)(False, use_td_params=td).state_dict()) for lib in (OURS, TORCHRL))
    loaded = safetensors.torch.load(safetensors.torch.save(own))
    assert all(torch.equal(t, own[k]) for k, t in loaded.items())
    if td:
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            {k: t.cpu() for k, t in other.items()}
