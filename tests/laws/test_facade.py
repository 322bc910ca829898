"""The laws of facades: for each assertion a facade or a library that breaks just it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from functional_marl.laws import LAWS, Facade, LawViolation, facade
from functional_marl.laws._compare import Broken
from functional_marl.laws._operations import LIBRARY

MLP = Facade("mlp", 2, False, options=(("num_cells", [5]),))


def found(law: str, case: Facade) -> str:
    """What a law says of a facade that breaks it."""
    with pytest.raises(LawViolation) as raised:
        LAWS[law](case)
    return raised.value.found


def with_op(operation: str, act: Callable[..., Any], case: Facade = MLP) -> Facade:
    """The facade in a library where ``act(result, *args, **kwargs)`` changes what an operation returns."""
    library: Any = getattr(LIBRARY, operation)
    changed: Any = {operation: lambda *args, **kwargs: act(library(*args, **kwargs), *args, **kwargs)}
    return replace(case, ops=replace(LIBRARY, **changed))


def more(module: Any, change: Callable[[Any], Any], when: Callable[[Any], bool] = lambda module: True) -> Any:
    """The module, whose outputs are changed in some calls."""
    module.register_forward_hook(lambda part, _given, y: change(y) if when(part) else y)
    return module


# --- the case -----------------------------------------------------------------------------------------------------


def test_inputs_are_those_of_the_kind_and_of_the_seed() -> None:
    assert MLP.input().shape == (2, 2, 4)
    assert replace(MLP, kind="conv", n_agents=3, batch=(5,)).input().shape == (5, 3, 2, 4, 5)
    assert torch.equal(MLP.input(), MLP.input())
    assert torch.equal(MLP.input(1), replace(MLP, seed=1).input())
    assert not torch.equal(MLP.input(1), MLP.input())


def test_modules_are_those_of_the_words_and_of_the_seed() -> None:
    before = torch.get_rng_state()
    module = replace(MLP, centralized=True, randomness="same", use_td_params=False).module(share_params=True)
    assert torch.equal(torch.get_rng_state(), before)
    found = module.centralized, module.vmap_randomness, module.use_td_params, module.share_params
    assert found == (True, "same", False, True)
    for name, leaf in MLP.module(fold=1).named_parameters():
        assert torch.equal(leaf, dict(replace(MLP, seed=1).module().named_parameters())[name])
    assert any(nn.parameter.is_lazy(leaf) for leaf in MLP.module(lazy=True).parameters())
    assert not any(nn.parameter.is_lazy(leaf) for leaf in MLP.module().parameters())


def test_words_of_options_are_classes_of_torch() -> None:
    module = replace(MLP, options=(("num_cells", [5]), ("activation_class", "ReLU"))).module()
    assert "ReLU()" in str(module)
    assert "ReLU()" not in str(MLP.module())


def test_training_is_under_the_seed() -> None:
    case = replace(MLP, options=(("num_cells", [64]), ("dropout", 0.5)))
    module, x = case.module(), case.input()
    y = case.trained(module.eval(), x)
    assert module.training
    assert torch.equal(case.trained(module, x), y)
    assert not torch.equal(replace(case, seed=1).trained(module, x), y)


def test_gradients_are_those_of_outputs_and_their_squares() -> None:
    x, unused = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(3, requires_grad=True)
    first, second = facade._gradients(3 * x, [x, unused])
    assert first.tolist() == [3 * (1 + 2 * 3), 3 * (1 + 2 * 6)]
    assert second.tolist() == [0, 0, 0]


def test_other_numbers_are_half_and_an_eighth() -> None:
    module = nn.BatchNorm1d(2)
    facade._others(module)
    assert module.weight.tolist() == [0.625] * 2
    assert module.get_buffer("running_mean").tolist() == [0.125] * 2
    assert module.get_buffer("num_batches_tracked").tolist() == 0
    assert module.weight.requires_grad


def test_what_is_saved_does_not_change() -> None:
    module = nn.Linear(2, 1)
    saved, before = facade._saved(module), module.weight.detach().clone()
    facade._others(module)
    assert list(saved) == ["weight", "bias"]
    assert torch.equal(saved["weight"], before)


def test_names_are_those_behind_the_root() -> None:
    for td in (False, True):
        assert facade._names(MLP.module(use_td_params=td)) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_forms_are_names_shapes_dtypes_and_flags() -> None:
    facade._alike(nn.Linear(3, 2), nn.Linear(3, 2), "now")
    others = (
        nn.Linear(4, 2),
        nn.Linear(3, 2, bias=False),
        nn.Linear(3, 2).double(),
        nn.Linear(3, 2).requires_grad_(False),
    )
    for other in others:
        with pytest.raises(Broken) as raised:
            facade._alike(other, nn.Linear(3, 2), "now")
        words = "a lazy one now: expected the leaves {'weight': ([2, 3], 'torch.float32', True), 'bias': "
        assert str(raised.value).startswith(words)


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_checkpoints_of_ours_carry_over() -> None:
    LAWS["state_dicts_carry_over"](MLP)


def test_a_checkpoint_that_does_not_load_into_another_of_the_kind() -> None:
    def forgets(module: Any, *args: Any, **how: Any) -> Any:
        module.load_state_dict = lambda state: None
        return module

    said = found("state_dicts_carry_over", with_op("facade", forgets))
    assert said.startswith("state_dict loaded into another of the kind: outputs: expected ")


@pytest.mark.parametrize(
    ("own", "td", "where"),
    [
        (False, False, "False in one of False: outputs: expected "),
        (True, False, "True in one of False: outputs: expected "),
        (False, True, "False in one of True: outputs: expected "),
        (True, True, "True in one of False and back: state["),
    ],
)
def test_a_converted_checkpoint_with_other_numbers(own: bool, td: bool, where: str) -> None:
    def wrong(result: Any, state: Any, g: Any, **how: Any) -> Any:
        return {name: leaf + 1 for name, leaf in result.items()} if g.use_td_params is td else result

    said = found("state_dicts_carry_over", with_op("convert_state_dict", wrong, replace(MLP, use_td_params=own)))
    assert said.startswith(f"state_dict of use_td_params={where}")


def test_a_converted_checkpoint_in_another_order() -> None:
    def wrong(result: Any, state: Any, g: Any, **how: Any) -> Any:
        return dict(reversed(result.items())) if g.use_td_params else result

    said = found("state_dicts_carry_over", with_op("convert_state_dict", wrong))
    assert said.startswith(
        "state_dict of use_td_params=True in one of False and back: expected the keys in the order ["
    )


def test_a_converted_checkpoint_for_independent_agents() -> None:
    case = replace(MLP, share_params=True)

    def wrong(result: Any, state: Any, g: Any, **how: Any) -> Any:
        return {name: leaf + 1 for name, leaf in result.items()} if g.share_params is False else result

    said = found("state_dicts_carry_over", with_op("convert_state_dict", wrong, case))
    assert said.startswith("state_dict of use_td_params=True in one of False, then independent: outputs: expected ")


# --- functional ---------------------------------------------------------------------------------------------------


def test_ours_is_functional() -> None:
    LAWS["facade_is_functional"](MLP)
    LAWS["facade_is_functional"](replace(MLP, share_params=True))


def test_outputs_that_the_functional_network_does_not_give() -> None:
    case = with_op("facade", lambda module, *args, **how: more(module, lambda y: y + 1, lambda m: not m.training))
    assert found("facade_is_functional", case).startswith("at first: outputs: expected ")


def test_gradients_that_the_functional_network_does_not_give() -> None:
    case = with_op("facade", lambda module, *args, **how: more(module, lambda y: y.detach() + 0 * y))
    assert found("facade_is_functional", case).startswith("at first: gradients of the parameters")


def test_outputs_of_training_that_the_functional_network_does_not_give() -> None:
    case = with_op("facade", lambda module, *args, **how: more(module, lambda y: y + 1, lambda m: m.training))
    assert found("facade_is_functional", case).startswith("at first: outputs of training: expected ")


def test_outputs_of_a_module_that_is_made_of_a_network() -> None:
    case = with_op(
        "from_functional", lambda module, *args, **how: more(module, lambda y: y + 1, lambda m: not m.training)
    )
    assert found("facade_is_functional", case).startswith("from_functional, at first: outputs: expected ")


def test_training_of_a_module_that_is_made_of_a_network() -> None:
    case = with_op("from_functional", lambda module, *args, **how: more(module, lambda y: y + 1, lambda m: m.training))
    assert found("facade_is_functional", case).startswith("from_functional, at first: outputs of training: expected ")


def test_parameters_that_are_not_read_again() -> None:
    def stale(module: Any, *args: Any, **how: Any) -> Any:
        kept = module.functional()
        module.functional = lambda: (kept[0], {k: v.detach().clone() for k, v in first.items()}, kept[2])
        first = {k: v.detach().clone() for k, v in kept[1].items()}
        return module

    said = found("facade_is_functional", with_op("facade", stale))
    assert said.startswith("after parameters changed in place: outputs: expected ")


# --- lazy ---------------------------------------------------------------------------------------------------------


def test_ours_are_lazy() -> None:
    LAWS["lazy_is_eager"](MLP)


def test_a_lazy_one_with_other_leaves() -> None:
    def wrong(module: Any, kind: Any, n: Any, lazy: bool, **how: Any) -> Any:
        return module if lazy else module.double()

    case = with_op("facade", wrong)
    assert found("lazy_is_eager", case).startswith("a lazy one after its first call: expected the leaves {")


def test_a_lazy_one_with_other_outputs() -> None:
    def wrong(module: Any, kind: Any, n: Any, lazy: bool, **how: Any) -> Any:
        return more(module, lambda y: y + 1, lambda m: not m.training) if lazy else module

    said = found("lazy_is_eager", with_op("facade", wrong))
    assert said.startswith("a lazy one after its first call, with the eager one's numbers: outputs: expected ")


def test_a_lazy_one_with_other_outputs_of_training() -> None:
    def wrong(module: Any, kind: Any, n: Any, lazy: bool, **how: Any) -> Any:
        return more(module, lambda y: y + 1, lambda m: m.training) if lazy else module

    said = found("lazy_is_eager", with_op("facade", wrong))
    assert said.startswith("a lazy one after its first call: outputs of training: expected ")


def test_a_lazy_factory_with_other_leaves() -> None:
    case = with_op("init_params", lambda params, *args, **how: {k: v[..., None] for k, v in params.items()})
    assert found("lazy_is_eager", case).startswith("a lazy factory: expected leaves as ")


@pytest.mark.parametrize(("train", "words"), [(False, "outputs"), (True, "outputs and state of training")])
def test_a_lazy_factory_with_other_outputs(train: bool, words: str) -> None:
    def wrong(result: Any, net: Any, *args: Any, **how: Any) -> Any:
        if bool(how.get("train")) is not train or net.module_spec.example is None:
            return result
        return (result[0] + 1, result[1]) if train else result + 1

    assert found("lazy_is_eager", with_op("apply", wrong)).startswith(f"a lazy factory: {words}")
