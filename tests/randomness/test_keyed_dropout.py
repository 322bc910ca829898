"""Keyed dropout and attention against plain loops; every other random operation raises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functional_marl as fm
from functional_marl._randomness.keyed_dropout import run_keyed
from functional_marl.random import bernoulli
from tests.builders import N, generators_untouched, numbers

KEY = fm.fold_in(fm.key(0), 7)
P = 0.25  # a multiple of 1 / 65536, so that masks and torch's own scaling have the same p


def keyed(run: Callable[[], Any], agent: int = 0, forbidden: bool = False) -> Any:
    return run_keyed(run, KEY, agent, forbidden)


# --- dropouts ------------------------------------------------------------------------------------------

# module, input shape, how many leading axes of the input the mask has
DROPOUTS: list[tuple[nn.Module, tuple[int, ...], int]] = [
    (nn.Dropout(P), (), 0),
    (nn.Dropout(P), (5,), 1),
    (nn.Dropout(P), (3, 4, 5), 3),
    (nn.Dropout(P, inplace=True), (4, 5), 2),
    (nn.Dropout1d(P), (6, 5), 1),
    (nn.Dropout1d(P), (4, 6, 5), 2),
    (nn.Dropout2d(P), (4, 6, 3, 3), 2),
    (nn.Dropout3d(P), (6, 3, 3, 2), 1),
    (nn.Dropout3d(P), (4, 6, 3, 3, 2), 2),
    (nn.AlphaDropout(P), (7, 5), 2),
    (nn.FeatureAlphaDropout(P), (4, 6, 3), 2),
    (nn.FeatureAlphaDropout(P), (4, 6, 3, 2), 2),
]


def outcomes(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of torch's own layer for each number, when it is kept and when it is dropped.

    A kept number becomes ``a x + b``: torch's layer at zeros and ones gives a and b. A dropped one becomes ``c``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        zeros, ones = (torch.stack([module(torch.full_like(x, v)) for _ in range(100)]) for v in (0.0, 1.0))
    b, c = zeros.amax(0), ones.amin(0)
    return (ones.amax(0) - b) * x + b, c


@pytest.mark.parametrize(("module", "shape", "axes"), DROPOUTS, ids=lambda v: str(v).replace(" ", ""))
def test_each_dropout_is_torchs_with_the_keys_mask(module: nn.Module, shape: tuple[int, ...], axes: int) -> None:
    x = numbers(*shape)
    kept, dropped = outcomes(module, x)
    rest = shape[axes:]
    for agent in (0, 3):
        with generators_untouched():
            got = keyed(lambda: (module(x.clone()), module(x.clone())), agent)  # two dropouts: sites 1 and 2
        for site, y in enumerate(got, start=1):
            drop = bernoulli(KEY, P, shape[:axes], site, agent)
            drop = drop.view((*shape[:axes], *[1] * len(rest))).expand(shape)
            torch.testing.assert_close(y, torch.where(drop, dropped, kept), rtol=1e-13, atol=1e-13)


def test_dropout_in_place_writes_into_its_input() -> None:
    x = torch.ones(100)
    y = keyed(lambda: F.dropout(x, P, True, True))
    assert y is x
    assert bool((x == 0).any())


@pytest.mark.parametrize(
    "module", [nn.Dropout(0.3), nn.Dropout1d(0.3), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)], ids=str
)
def test_keyed_dropout_drops_at_its_rate_and_keeps_the_mean(module: nn.Module) -> None:
    shape = (300, 100, 1)
    x = torch.zeros(shape, dtype=torch.float64) + 1.5
    y = keyed(lambda: module(x))
    n = 30_000
    values, counts = y.unique(return_counts=True)
    assert len(values) == 2
    rate = float(counts[0]) / n
    assert abs(rate - 0.3) < 5 * math.sqrt(0.3 * 0.7 / n)
    if not isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
        assert abs(float(y.mean()) - 1.5) < 5 * 1.5 * math.sqrt(0.3 / 0.7 / n)


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-9, 1 - 1e-9])
def test_p_at_and_near_0_and_1(p: float) -> None:
    x = numbers(50)
    y = keyed(lambda: F.dropout(x, p))
    assert torch.equal(y, x if p < 0.5 else torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dropout_keeps_the_dtype_and_has_gradients(dtype: torch.dtype) -> None:
    x = torch.ones(64, dtype=dtype, requires_grad=True)
    y = keyed(lambda: F.dropout(x, 0.5))
    y.sum().backward()
    assert y.dtype == dtype
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert set(y.detach().unique().tolist()) == {0.0, 2.0}


def test_a_probability_out_of_range_raises() -> None:
    with pytest.raises(ValueError, match=r"probability in \[0, 1\], got 1.5"):
        keyed(lambda: F.dropout(torch.ones(3), 1.5))


def test_dropouts_in_evaluation_sample_nothing_and_pass_where_sampling_is_forbidden() -> None:
    x = numbers(2, 3, 4)
    for module in (nn.Dropout(0.5), nn.Dropout1d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), nn.RReLU()):
        module.eval()
        with generators_untouched():
            assert torch.equal(keyed(lambda: module(x), forbidden=True), module(x))  # noqa: B023


def test_a_forbidden_dropout_raises_with_the_fix() -> None:
    with pytest.raises(fm.RandomnessError, match='randomness="error": make the network with randomness="same"'):
        keyed(lambda: F.dropout(torch.ones(3), 0.5), forbidden=True)


# --- attention -----------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Tensor, scale: float, keep: Tensor) -> Tensor:
    """Row by row: softmax of the scores of the allowed keys, dropout, weighted sum."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for row in range(q.shape[1]):
            seen = [s for s in range(k.shape[1]) if allowed[row, s]]
            scores = [math.exp(float(q[b, row] @ k[b, s]) * scale + float(bias[row, s])) for s in seen]
            for s, score in zip(seen, scores, strict=True):
                out[b, row] += float(keep[b, row, s]) / (1 - P) * score / sum(scores) * v[b, s]
    return out


LENGTH, KEYS = 4, 5
MASK = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal", "scale"])
def test_attention_with_keyed_dropout_is_a_loop_over_rows(kind: str) -> None:
    q, k, v = numbers(2, LENGTH, 6, seed=1), numbers(2, KEYS, 6, seed=2), numbers(2, KEYS, 3, seed=3)
    bias = numbers(LENGTH, KEYS, seed=4) if kind == "float" else torch.zeros(LENGTH, KEYS)
    allowed = torch.ones(LENGTH, KEYS).tril().bool() if kind == "causal" else torch.ones(LENGTH, KEYS).bool()
    given: dict[str, Any] = {
        "bool": {"attn_mask": MASK},
        "float": {"attn_mask": bias},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.3},
    }.get(kind, {})
    got = keyed(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=P, **given), agent=2)
    keep = ~bernoulli(KEY, P, (2, LENGTH, KEYS), 1, 2)
    allowed = MASK if kind == "bool" else allowed
    expected = attend(q, k, v, allowed, bias, 0.3 if kind == "scale" else 6**-0.5, keep)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_grouped_queries_share_keys_and_values() -> None:
    q, k, v = numbers(2, 4, 3, 6, seed=1), numbers(2, 2, 5, 6, seed=2), numbers(2, 2, 5, 6, seed=3)
    grouped = keyed(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=P, enable_gqa=True))
    k, v = (torch.stack([t[:, 0], t[:, 0], t[:, 1], t[:, 1]], 1) for t in (k, v))
    assert torch.equal(grouped, keyed(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=P)))


def test_a_mask_and_causal_attention_exclude_each_other_as_in_torch() -> None:
    q, mask = numbers(1, 3, 4), torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="attn_mask and is_causal=True exclude each other"):
        keyed(lambda: F.scaled_dot_product_attention(q, q, q, mask, dropout_p=P, is_causal=True))


@pytest.mark.parametrize("weights", [True, False])
def test_multi_head_attention_drops_its_weights_by_the_key(weights: bool) -> None:
    torch_rng = torch.get_rng_state()
    module = nn.MultiheadAttention(6, 2, dropout=P, batch_first=True, dtype=torch.float64)
    torch.set_rng_state(torch_rng)
    x = numbers(3, 4, 6)
    with generators_untouched():
        got, seen = keyed(lambda: module(x, x, x, need_weights=True, average_attn_weights=False), agent=1)
        alone, _ = keyed(lambda: module(x, x, x, need_weights=weights), agent=1)
    # By hand: projections, heads, softmax, the mask of the key, output projection.
    q, k, v = (x @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in (q, k, v))  # [B, heads, L, 3]
    softmax = torch.softmax(q @ k.mT / math.sqrt(3), -1)
    drop = bernoulli(KEY, P, (6, 4, 4), 1, 1).view(3, 2, 4, 4)  # need_weights=True works on [B * heads, L, L]
    expected = torch.where(drop, 0.0, softmax / (1 - P))
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-12)
    out = module.out_proj((expected @ v).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(got, out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alone, out, rtol=1e-12, atol=1e-12)


# --- any other random operation ------------------------------------------------------------------------


class AddsSamples(nn.Module):
    """Adds the mean of what a function of the input samples."""

    def __init__(self, sample: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.sample = sample

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.sample(x).double().mean()


def _recurrent(kind: type[nn.RNNBase], x: Tensor) -> Tensor:
    weights = [torch.ones(9, 3), torch.ones(9, 3), torch.ones(9), torch.ones(9)] * 2
    if kind is nn.GRU:
        return torch.gru(x[:, None], x.new_zeros(2, 1, 3), weights, True, 2, 0.5, True, False, False)[0]
    four = [w.new_ones(12, *w.shape[1:]) for w in weights]
    start = [x.new_zeros(2, 1, 3)] * 2
    return torch.lstm(x[:, None], start, four, True, 2, 0.5, True, False, False)[0]


Normal, Categorical, Beta, Poisson = (
    getattr(torch.distributions, name) for name in ("Normal", "Categorical", "Beta", "Poisson")
)
OTHER_OPERATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "rand": ("rand", lambda x: torch.rand(3)),
    "rand_like": ("rand_like", lambda x: torch.rand_like(x)),
    "randn": ("randn", lambda x: torch.randn(3)),
    "randn_like": ("randn_like", lambda x: torch.randn_like(x)),
    "randint": ("randint", lambda x: torch.randint(0, 4, (3,))),
    "randperm": ("randperm", lambda x: torch.randperm(5)),
    "normal": ("normal", lambda x: torch.normal(0.0, 1.0, (3,))),
    "normal_": ("normal_", lambda x: torch.empty(3).normal_()),
    "exponential_": ("exponential_", lambda x: torch.empty(3).exponential_()),
    "init": ("uniform_", lambda x: nn.init.xavier_uniform_(torch.empty(3, 3))),
    "bernoulli": ("bernoulli", lambda x: torch.bernoulli(torch.full((3,), 0.5))),
    "multinomial": ("multinomial", lambda x: torch.multinomial(torch.ones(4), 2)),
    "poisson": ("poisson", lambda x: torch.poisson(torch.ones(3))),
    "gumbel_softmax": ("gumbel_softmax", lambda x: F.gumbel_softmax(x, hard=True)),
    "rrelu": ("rrelu", lambda x: F.rrelu(x, training=True)),
    "pool": ("fractional_max_pool2d", lambda x: F.fractional_max_pool2d(x.new_ones(1, 1, 8, 8), 2, 4)),
    "native": ("native_dropout", lambda x: torch.native_dropout(x, 0.5, True)[0]),
    "Normal": ("normal", lambda x: Normal(x.mean(), 1.0).sample()),
    "Normal.rsample": ("normal", lambda x: Normal(x.mean(), 1.0).rsample()),
    "Categorical": ("multinomial", lambda x: Categorical(torch.ones(4)).sample()),
    "Beta": ("_sample_dirichlet", lambda x: Beta(torch.ones(3), torch.ones(3)).sample()),
    "Poisson": ("poisson", lambda x: Poisson(torch.ones(3)).sample()),
    "lstm": ("lstm", lambda x: _recurrent(nn.LSTM, x)),
    "gru": ("gru", lambda x: _recurrent(nn.GRU, x)),
}


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize("case", OTHER_OPERATIONS)
def test_any_other_random_operation_under_a_key_raises_with_its_name(case: str, strategy: Any) -> None:
    name, sample = OTHER_OPERATIONS[case]
    net = fm.network(lambda: AddsSamples(sample), N, strategy=strategy)
    params = fm.init_params(net, 0)
    x = torch.ones(2, N, 3)
    with generators_untouched(), pytest.raises(fm.RandomnessError, match=rf"random operation \S*{name}.*the key"):
        fm.apply(net, params, x, key=1, train=True)
    with torch.random.fork_rng(devices=[]):  # without a key torch's global generator is used
        assert fm.apply(net.replace(strategy="loop"), params, x, train=True).shape == (2, N, 3)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules_with_dropout_between_layers(kind: type[nn.RNNBase]) -> None:
    net = fm.network(lambda: kind(3, 4, num_layers=2, dropout=0.5), N, agent_dim=0)  # pyright: ignore
    params, x = fm.init_params(net, 0), torch.ones(N, 5, 3)
    with generators_untouched():
        with pytest.raises(fm.RandomnessError, match="random operation"):
            fm.apply(net, params, x, key=1, train=True)
        fm.apply(net, params, x, key=1)  # in evaluation nothing drops
    plain = fm.network(lambda: kind(3, 4, num_layers=2), N, agent_dim=0)  # pyright: ignore
    with generators_untouched():
        fm.apply(plain, params, x, key=1, train=True)
