"""The reference operations against definitions written out the slow way, in float64 and plain Python
loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.kernels import reference
from fourfold.kernels.formats import (
    E2M1_VALUES,
    Rounding,
    decode_fp4,
    decode_fp8,
    power_of_two_scale,
    round_fp4,
    round_fp8,
    round_input,
    round_int8_groups,
    round_int16_groups,
    round_to_e2m1,
    to_int8,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# formats


def test_fp4_decoding_byte_by_byte() -> None:
    weight = torch.arange(256, dtype=torch.uint8).view(2, 128).view(torch.int8)
    exponents = torch.arange(119, 135, dtype=torch.uint8).view(2, 8)
    decoded = decode_fp4(weight, exponents.view(torch.float8_e8m0fnu))
    assert decoded.shape == (2, 256)
    for row in range(2):
        for i in range(256):
            byte = row * 128 + i // 2
            code = byte & 15 if i % 2 == 0 else byte >> 4
            value = E2M1_VALUES[code & 7] * (-1 if code & 8 else 1)
            assert decoded[row, i] == value * 2.0 ** (int(exponents[row, i // 32]) - 127)


def test_int8_inputs_by_hand() -> None:
    x = torch.tensor([[127.0, -63.5, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [-2.54, 0.02, 0.01, 0.0]])
    codes, scale = to_int8(x)
    assert codes.tolist() == [[127, -64, 0, 2], [0, 0, 0, 0], [-127, 1, 0, 0]]
    assert scale[:2].tolist() == [[1.0], [1.0]]
    assert torch.equal(round_input(x.to(torch.bfloat16), Rounding.INT8)[0], torch.tensor([127.0, -64, 0, 2]))


@pytest.mark.parametrize("width", [96, 4096])
def test_int8_products_are_sums_of_whole_numbers(width: int) -> None:
    x, codes = draw(5, width), (draw(6, width, seed=1) * 40).round().clamp(-127, 127).to(torch.int8)
    scale = draw(6, seed=2).abs()
    activations, amplitude = to_int8(x)
    sums = activations.to(torch.int64) @ codes.T.to(torch.int64)
    expected = sums.to(torch.float32) * scale * amplitude
    assert torch.equal(reference.linear(x, codes, scale, Rounding.INT8), expected)
    assert torch.equal(reference.linear(x[2:3], codes, scale, Rounding.INT8), expected[2:3])


def e4m3(byte: int) -> float:
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -magnitude if sign else magnitude


def test_fp8_decoding_with_partial_blocks() -> None:
    rows, columns = 130, 257
    byte = (torch.arange(rows * columns) % 254).to(torch.uint8).view(rows, columns)
    byte[byte == 127] = 0
    exponents = torch.tensor([[120, 127, 130], [125, 128, 131]], dtype=torch.uint8)
    decoded = decode_fp8(byte.view(torch.float8_e4m3fn), exponents.view(torch.float8_e8m0fnu))
    for r in range(0, rows, 43):
        for c in range(0, columns, 7):
            scale = 2.0 ** (int(exponents[r // 128, c // 128]) - 127)
            assert decoded[r, c] == e4m3(int(byte[r, c])) * scale


@pytest.mark.parametrize("limit", [448.0, 6.0])
def test_scale_is_the_smallest_power_of_two_that_fits(limit: float) -> None:
    amax = torch.cat([limit * 2.0 ** torch.arange(-20, 20), draw(2000).abs() * 10 + 1e-6])
    scale = power_of_two_scale(amax, limit)
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))
    assert bool((amax / scale <= limit).all())
    assert bool((amax / (scale / 2) > limit).all())


@given(st.floats(-6, 6, width=32))
def test_e2m1_is_the_nearest_value_ties_to_even(x: float) -> None:
    grid = sorted({*E2M1_VALUES, *(-v for v in E2M1_VALUES)})
    best = min(abs(x - v) for v in grid)
    nearest = [v for v in grid if abs(x - v) == best]
    got = float(round_to_e2m1(torch.tensor([x], dtype=torch.float64)))
    assert got in nearest
    if len(nearest) == 2:
        assert E2M1_VALUES.index(abs(got)) % 2 == 0


def test_rounding_groups_have_their_own_scale() -> None:
    x = draw(3, 200) * torch.logspace(-3, 3, 200)
    whole = round_fp8(x, 128)
    assert torch.equal(whole[:, :128], round_fp8(x[:, :128], 128))
    assert torch.equal(whole[:, 128:], round_fp8(x[:, 128:], 128))
    assert float(((whole - x).abs() / x.abs().amax(-1, keepdim=True)).max()) < 2**-4
    assert torch.equal(round_fp8(whole, 128), whole)
    y = round_fp4(x[:, :192], 32)
    assert torch.equal(round_fp4(y, 32), y)
    assert torch.equal(round_fp4(torch.zeros(1, 32), 32), torch.zeros(1, 32))


def test_int8_rounding_is_to_the_nearest_of_255_in_each_group() -> None:
    x = (draw(3, 80) * torch.logspace(-3, 3, 80)).requires_grad_()
    y = round_int8_groups(x)
    for group in (slice(0, 32), slice(32, 64), slice(64, 80)):
        step = x[:, group].abs().amax(-1, keepdim=True) / 127
        assert ((y - x)[:, group].abs() <= step * 0.50001).all()
        assert torch.allclose(y[:, group] / step, (y[:, group] / step).round(), atol=1e-4)
    y.sum().backward()  # straight through
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.ones_like(x), atol=0.2)
    for odd in (math.inf, math.nan):
        z = torch.zeros(2, 64)
        z[1, 40] = odd
        seen = round_int8_groups(z).isnan()
        assert seen[1, 32:].all()
        assert seen.sum() == 32


def test_int16_rounding_is_to_a_power_of_two_in_each_group() -> None:
    x = draw(3, 700) * torch.logspace(-3, 3, 700)
    y = round_int16_groups(x)
    for group in (slice(0, 512), slice(512, 700)):
        largest = x[:, group].abs().amax(-1, keepdim=True)
        step = torch.exp2((largest.double() / 32639).log2().ceil()).float()
        whole = y[:, group] / step
        assert torch.equal(whole, whole.round())
        assert whole.abs().max() <= 32639
        assert ((y - x)[:, group].abs() <= step / 2).all()
    assert torch.equal(round_int16_groups(y), y)
    assert torch.equal(round_int16_groups(torch.zeros(1, 32)), torch.zeros(1, 32))
    for odd in (math.inf, math.nan):
        z = torch.zeros(2, 1024)
        z[1, 600] = odd
        seen = round_int16_groups(z).isnan()
        assert seen[1, 512:].all()
        assert seen.sum() == 512


# attention


def naive_attention(q: Tensor, kv: Tensor, seen: list[list[list[int]]], sink: Tensor, scale: float) -> Tensor:
    q, kv, sink = q.double(), kv.double(), sink.double()
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            rows = kv[b, seen[b][t]]
            for h in range(q.shape[2]):
                logits = torch.cat([rows @ q[b, t, h] * scale, sink[h : h + 1]])
                out[b, t, h] = logits.softmax(0)[:-1] @ rows
    return out


@pytest.mark.parametrize("entries", [0, 7, 200])
@pytest.mark.parametrize("choose", [False, True])
def test_attention_sees_exactly_what_it_is_told(entries: int, choose: bool) -> None:
    batch, tokens, heads, width, held = 2, 5, 3, 16, 11
    q, window, sink = draw(batch, tokens, heads, width), draw(batch, held, width, seed=1), draw(heads, seed=2)
    start = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 6, 7]])
    window_range = torch.stack([start, start + torch.tensor([1, 2, 3, 4, 4])], dim=-1)
    store = draw(batch, entries, width, seed=3) if entries else None
    entry_range = index = None
    chosen: list[list[list[int]]] = [[[] for _ in range(tokens)] for _ in range(batch)]
    if store is not None and choose:
        index = torch.stack(
            [torch.randperm(entries, generator=torch.Generator().manual_seed(i))[:6] for i in range(10)]
        )
        index = index.view(batch, tokens, 6)
        index[0, :2, 3:] = -1
        chosen = [[[i for i in row if i >= 0] for row in rows] for rows in index.tolist()]
    elif store is not None:
        end = torch.tensor([[0, 1, 2, 5, 7], [1, 1, 3, 3, 4]])
        entry_range = torch.stack([end // 2, end], dim=-1)
        chosen = [[list(range(a, b)) for a, b in rows] for rows in entry_range.tolist()]
    got = reference.sparse_attention(q, window, window_range, store, entry_range, index, sink, 0.3)
    kv = window if store is None else torch.cat([window, store], dim=1)
    seen = [
        [[*range(a, b), *(held + e for e in extra)] for (a, b), extra in zip(rows, extras, strict=True)]
        for rows, extras in zip(window_range.tolist(), chosen, strict=True)
    ]
    expected = naive_attention(q, kv, seen, sink, 0.3)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_attention_in_blocks_is_attention() -> None:
    """More queries than one block holds, a window that slides."""
    tokens, width = 700, 8
    q, window = draw(1, tokens, 1, width), draw(1, tokens, width, seed=1)
    end = torch.arange(1, tokens + 1)[None]
    ranges = torch.stack([(end - 20).clamp_min(0), end], dim=-1)
    got = reference.sparse_attention(q, window, ranges, None, None, None, torch.zeros(1), 1.0)
    seen = [[list(range(a, b)) for a, b in ranges[0].tolist()]]
    expected = naive_attention(q, window, seen, torch.zeros(1), 1.0)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 3), st.booleans())
def test_index_topk_with_ties_to_the_lower_entry(k: int, count: int, first: int, ties: bool) -> None:
    q, keys, weights = draw(1, 2, 3, 4), draw(1, max(count, 1), 4, seed=1), draw(1, 2, 3, seed=2)
    if ties:
        keys = keys.sign()
        q = q.sign()
        weights = weights.sign()
    visible = torch.tensor([[[min(first, count), count], [min(first, count), count // 2]]]).clamp_min(0)
    got = reference.index_topk(q, weights, keys, visible, k)
    assert got.shape == (1, 2, k)
    for t in range(2):
        a, b = visible[0, t].tolist()
        scores = {s: float((weights[0, t] * (q[0, t] @ keys[0, s]).relu()).sum()) for s in range(a, b)}
        if ties:
            scores = {s: round(v) for s, v in scores.items()}
        best = sorted(sorted(scores, key=lambda s: (-scores[s], s))[:k])
        assert [i for i in got[0, t].tolist() if i >= 0] == best
        assert (got[0, t] == -1).sum() == k - len(best)


# the rest


def sylvester(n: int) -> Tensor:
    h = torch.ones(1, 1)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


@pytest.mark.parametrize("n", [1, 2, 16, 128])
def test_hadamard(n: int) -> None:
    x = draw(5, n)
    torch.testing.assert_close(reference.hadamard(x), x @ sylvester(n) * n**-0.5)


def test_rope_turns_adjacent_pairs_of_the_last_dims_and_back() -> None:
    x, angle = draw(2, 3, 4, 10), draw(2, 3, 3, seed=1)
    got = reference.rope(x, angle.cos(), angle.sin(), inverse=False)
    assert torch.equal(got[..., :4], x[..., :4])
    pairs = torch.view_as_complex(x[..., 4:].reshape(2, 3, 4, 3, 2).contiguous())
    turned = torch.view_as_real(pairs * torch.exp(1j * angle)[:, :, None])
    torch.testing.assert_close(got[..., 4:], turned.flatten(-2))
    torch.testing.assert_close(reference.rope(got, angle.cos(), angle.sin(), inverse=True), x)
    flat = reference.rope(x[:, :, 0], angle.cos(), angle.sin(), inverse=False)
    torch.testing.assert_close(flat, got[:, :, 0])


def test_hyper_connections_written_out() -> None:
    n, width, eps = 3, 5, 1e-6
    streams, fn = draw(1, 2, n, width), draw((2 + n) * n, n * width, seed=1)
    scale, base = draw(3, seed=2), draw((2 + n) * n, seed=3)
    u, post, comb = reference.hc_pre(streams, fn, scale, base, iters=4, norm_eps=eps, eps=eps)
    out = draw(1, 2, width, seed=4)
    after = reference.hc_post(out, streams, post, comb)
    for t in range(2):
        x = streams[0, t].double()
        f = x.flatten()
        mix = (fn.double() @ f) / (f.square().mean() + eps).sqrt()
        pre = torch.sigmoid(mix[:n] * scale[0] + base[:n]) + eps
        c = 2 * torch.sigmoid(mix[n : 2 * n] * scale[1] + base[n : 2 * n])
        m = (mix[2 * n :] * scale[2] + base[2 * n :]).view(n, n).softmax(1) + eps
        m = m / (m.sum(0, keepdim=True) + eps)
        for _ in range(3):
            m = m / (m.sum(1, keepdim=True) + eps)
            m = m / (m.sum(0, keepdim=True) + eps)
        torch.testing.assert_close(u[0, t].double(), pre @ x, rtol=1e-5, atol=1e-5)
        expected = c[:, None] * out[0, t] + torch.stack(
            [torch.stack([m[j, k] * x[j] for j in range(n)]).sum(0) for k in range(n)]
        )
        torch.testing.assert_close(after[0, t].double(), expected, rtol=1e-5, atol=1e-5)


def test_experts_written_out() -> None:
    tokens, width, inner, count, limit = 7, 12, 10, 4, 0.5
    x = draw(tokens, width)
    w1, w3, w2 = (
        draw(count, inner, width, seed=1),
        draw(count, inner, width, seed=2),
        draw(count, width, inner, seed=3),
    )
    indices = torch.stack(
        [torch.randperm(count, generator=torch.Generator().manual_seed(i))[:2] for i in range(tokens)]
    )
    weights = draw(tokens, 2, seed=4).abs()
    got = reference.experts(x, indices, weights, w1, None, w3, None, w2, None, limit, False)
    for t in range(tokens):
        y = torch.zeros(width, dtype=torch.float64)
        for e, amount in zip(indices[t].tolist(), weights[t].double(), strict=True):
            a = (w1[e].double() @ x[t].double()).clamp(max=limit)
            b = (w3[e].double() @ x[t].double()).clamp(-limit, limit)
            y += w2[e].double() @ (amount * a * torch.sigmoid(a) * b)
        torch.testing.assert_close(got[t].double(), y, rtol=1e-5, atol=1e-5)


def test_routing_ties_bias_and_weights() -> None:
    x, weight = torch.ones(1, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, -9.0, 0.0])
    indices, weights, scores = reference.route_topk(x, weight, bias, 2, 1.5)
    assert indices.tolist() == [[0, 1]]
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.75]]))
    expected = torch.tensor([1.0, 1.0, 2.0, 1.0]).exp().log1p().sqrt()
    torch.testing.assert_close(scores[0], expected)
    chosen = torch.tensor([[2, 3]])
    _, weights, _ = reference.route_hash(x, weight, chosen, 1.5)
    torch.testing.assert_close(weights[0], expected[chosen[0]] / expected[chosen[0]].sum() * 1.5)


def test_linear_decodes_in_slabs() -> None:
    """A matrix larger than one slab, whose slabs end inside no FP8 block."""
    x = draw(2, 256)
    weight = (draw(70_000, 256, seed=1) * 0.1).to(torch.float8_e4m3fn)
    scale = (2.0 ** torch.randint(-3, 3, (547, 2), generator=torch.Generator().manual_seed(2))).to(
        torch.float8_e8m0fnu
    )
    got = reference.linear(x, weight, scale)
    torch.testing.assert_close(got, x @ decode_fp8(weight, scale).T)
