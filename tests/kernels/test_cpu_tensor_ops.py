"""The native CPU kernels that are no matrix products, for every instruction set that this machine runs.

tests/kernels/test_contract.py holds them to the reference on the contract's cases; here are odd sizes, other
layouts, and the promise that a token's bits depend on nothing but its own data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fourfold.conformance.kernel_cases import cases
from fourfold.conformance.kernels import run_case
from fourfold.kernels import cpu, reference
from fourfold.kernels.formats import Rounding

if not cpu.available():

    def test_without_the_extension_the_reference_runs() -> None:
        assert cpu.describe()["isa"] == "reference"

else:
    from fourfold.kernels.cpu import tensor_ops as ops

    native: ModuleType = ops.native
    HC = {"norm_eps": 1e-6, "eps": 1e-6}
    FLOATS = (torch.float32, torch.bfloat16)
    Threads = Callable[[int], None]

    @pytest.fixture(params=native.supported_isas())
    def isa(request: pytest.FixtureRequest) -> Iterator[str]:
        before = native.isa()
        assert native.use_isa(request.param)
        yield request.param
        native.use_isa(before)

    @pytest.fixture
    def threads() -> Iterator[Threads]:
        before = native.threads()
        yield native.set_threads
        native.set_threads(before)

    @pytest.fixture(autouse=True)
    def seed() -> None:
        torch.manual_seed(0)

    def assert_near(got: Tensor, want: Tensor, bound: float = 2e-6) -> None:
        """Errors against the largest value: one bf16 step more where that is the dtype."""
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        bound += 2**-8 if got.dtype == torch.bfloat16 else 0
        error = (got.double() - want.double()).abs().max() if got.numel() else torch.zeros(())
        assert error <= bound * want.double().abs().max(), error

    def same(got: Any, want: Any) -> bool:
        if isinstance(got, Tensor):
            return torch.equal(got, want)
        return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))

    def apart(x: Tensor, gap: int = 3) -> Tensor:
        """The same values in rows that lie `gap` elements apart, at an odd offset."""
        wide = x.new_full((*x.shape[:-1], x.shape[-1] + gap), float("nan"))
        wide[..., 1 : 1 + x.shape[-1]] = x
        return wide[..., 1 : 1 + x.shape[-1]]

    def test_the_contract_on_every_instruction_set(isa: str) -> None:
        for case in cases():
            if case.operation in ops.OPS:
                assert run_case(case, "cpu").relative <= case.bound, (case.operation, case.label)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("width", [1, 7, 16, 33, 130])
    def test_rows_of_any_width_and_layout(isa: str, dtype: torch.dtype, width: int) -> None:
        x = torch.randn(2, 5, width).mul(9).to(dtype)
        weight = torch.randn(width).to(torch.bfloat16)
        for a in (x, apart(x), x.mT.contiguous().mT, x[:, ::2]):
            assert_near(ops.rms_norm(a, weight, 1e-6), reference.rms_norm(a, weight, 1e-6))
            assert torch.equal(ops.round_fp8(a, 24), reference.round_fp8(a, 24))
            assert torch.equal(ops.round_fp4(a, 24), reference.round_fp4(a, 24))
        scores = x.float().masked_fill(torch.rand(2, 5, width) < 0.2, float("-inf"))
        scores[:, 0] = 0.0
        values = apart(torch.randn(2, 5, width))
        assert_near(ops.pool(values, scores), reference.pool(values, scores))

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("pairs", [1, 3, 8, 20])
    def test_rope_turns_the_last_dims(isa: str, dtype: torch.dtype, pairs: int) -> None:
        angles = torch.randn(2, 3, pairs) * 50
        for shape in ((2, 3, 5, 45), (2, 3, 45)):
            x = apart(torch.randn(shape).to(dtype))
            for inverse in (False, True):
                arguments = (x, angles.cos(), angles.sin(), inverse)
                assert_near(ops.rope(*arguments), reference.rope(*arguments))
        one_angle_for_all = (x, angles[:1, :1].cos(), angles[:1, :1].sin(), False)
        assert_near(ops.rope(*one_angle_for_all), reference.rope(*one_angle_for_all))

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 256])
    def test_hadamard_equals_the_reference_bit_for_bit(isa: str, dtype: torch.dtype, width: int) -> None:
        x = torch.randn(3, 2, width).to(dtype)
        assert torch.equal(ops.hadamard(apart(x)), reference.hadamard(x))

    @pytest.mark.parametrize(("width", "last", "bits"), [(512, 64, 8), (64, 32, 8), (99, 7, 8), (96, 0, 4)])
    def test_packed_rows_are_the_references_bytes_and_come_back_with_all_bits(
        isa: str, width: int, last: int, bits: int
    ) -> None:
        x = (torch.randn(40, width) * 10.0 ** torch.linspace(-30, 30, 40)[:, None]).to(torch.bfloat16)
        x[1], x[2], x[3, 2], x[4, 2] = 0.0, -0.0, float("inf"), float("nan")
        packed = ops.pack_rows(apart(x), last, bits)
        assert torch.equal(packed, reference.pack_rows(x, last, bits))
        rows = torch.randint(0, 40, (90,))
        got = ops.unpack_rows(packed, rows, width, last, bits)
        want = reference.unpack_rows(packed, rows, width, last, bits)
        body = x[:, : width - last]
        rounded = reference.round_fp8(body, 64) if bits == 8 else reference.round_fp4(body)
        kept = torch.cat([rounded, x[:, width - last :]], dim=-1)[rows]
        odd = rows == 4  # a group with a NaN is all NaN
        for other in (want, kept):
            assert torch.equal(got[~odd].view(torch.int16), other[~odd].view(torch.int16))
        assert bool(got[odd].isnan().any(-1).all())

    def test_what_does_not_fit_is_refused() -> None:
        packed = ops.pack_rows(torch.randn(3, 64), 32, 8)
        with pytest.raises(ValueError, match="rows names rows that do not exist"):
            ops.unpack_rows(packed, torch.tensor([3]), 64, 32, 8)
        with pytest.raises(ValueError, match=r"packed is not \[L, row_bytes\]"):
            ops.unpack_rows(packed, torch.tensor([0]), 65, 32, 8)

    @pytest.mark.parametrize("rounded", ["round_fp8", "round_fp4"])
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_rounding_of_every_exponent_of_ties_and_of_what_is_not_finite(
        isa: str, rounded: str, dtype: torch.dtype
    ) -> None:
        # Every pattern of sign, exponent and leading bits, ties among them, in groups of one magnitude.
        bits = torch.arange(1 << 16, dtype=torch.int32).mul(1 << 16)
        every = bits.view(torch.float32)
        every = every[every.isfinite()].to(dtype)
        steps = torch.arange(-512.0, 512.0).mul(0.25).to(dtype)
        odd = torch.tensor([float("inf"), 1.0, -460.0, 500.0, float("nan"), -3.0, 464.0, float("-inf")]).to(
            dtype
        )
        for x in (every, steps, odd, odd[1:4], odd[4:7]):
            for group in (32, 5):
                got, want = (getattr(m, rounded)(x.view(1, -1), group) for m in (ops, reference))
                assert torch.equal(got.isnan(), want.isnan())
                assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))
                assert torch.equal(got.signbit()[~got.isnan()], want.signbit()[~want.isnan()])

    @pytest.mark.parametrize("stored", FLOATS)
    @pytest.mark.parametrize("n", [1, 3, 4, 70])
    def test_routing(isa: str, stored: torch.dtype, n: int) -> None:
        # Whole numbers: scores, and so ties, are exact in any order of sums.
        x = torch.randint(-2, 3, (n, 75)).float()
        weight = torch.randint(-2, 3, (37, 75)).to(stored)
        bias = torch.randint(0, 2, (37,)).float()
        for k in (1, 6, 37):
            got, want = (m.route_topk(x, weight, bias, k, 2.5) for m in (ops, reference))
            assert torch.equal(got[0], want[0])
            assert_near(got[1], want[1])
            assert_near(got[2], want[2])
            hashed, wanted = (m.route_hash(x, weight, got[0].flip(1), 2.5) for m in (ops, reference))
            assert same(hashed[0], wanted[0])
            assert_near(hashed[1], wanted[1])

    def test_a_nan_score_is_chosen_and_seen(isa: str) -> None:
        x = torch.randn(2, 16)
        x[1, 3] = float("nan")
        _, weights, _ = ops.route_topk(x, torch.randn(8, 16), torch.zeros(8), 2, 1.0)
        assert not weights[0].isnan().any()
        assert weights[1].isnan().all()

    def test_extreme_scores(isa: str) -> None:
        x = torch.tensor([[-200.0], [-30.0], [-1.0], [0.0], [1e-3], [1.0], [21.0], [1e6]])
        got, want = (
            m.route_hash(x, torch.ones(1, 1), torch.zeros(8, 1).long(), 1.0)[2] for m in (ops, reference)
        )
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-18)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("n", [1, 2, 4, 5, 17])
    def test_hyper_connections(isa: str, dtype: torch.dtype, n: int) -> None:
        streams, output = torch.randn(2, 9, n, 37).to(dtype), torch.randn(2, 9, 37).to(dtype)
        mixing = (torch.randn((2 + n) * n, n * 37) / 8, torch.randn(3), torch.randn((2 + n) * n))
        got, want = (m.hc_pre(streams, *mixing, iters=5, **HC) for m in (ops, reference))
        for a, b in zip(got, want, strict=True):
            assert_near(a, b, 5e-6)
        _, post, comb = got
        assert_near(ops.hc_post(output, streams, post, comb), reference.hc_post(output, streams, post, comb))
        head = (mixing[0][:n], mixing[1][:1], mixing[2][:n])
        assert_near(ops.hc_head(streams, *head, **HC), reference.hc_head(streams, *head, **HC))

    def attention_case(
        tokens: int, heads: int, width: int, q: torch.dtype, kv: torch.dtype, source: str
    ) -> list[Any]:
        held, stored = tokens + 20, 150
        ends = torch.arange(held - tokens + 1, held + 1)
        rows = torch.stack([(ends - 14).clamp_min(0), ends], -1).expand(2, tokens, 2).clone()
        rows[1, 0] = torch.tensor([4, 4])  # sees nothing of the window
        reach = torch.stack([torch.zeros(tokens).long(), torch.arange(tokens) * 23 % stored], -1)
        index = torch.rand(2, tokens, stored).argsort(-1)[..., :9].sort(-1).values
        index[:, ::2, 5:] = -1
        return [
            torch.randn(2, tokens, heads, width).to(q),
            torch.randn(2, held, width).to(kv),
            rows,
            None if source == "window" else torch.randn(2, stored, width).to(kv),
            reach.expand(2, tokens, 2) if source == "range" else None,
            index if source == "index" else None,
            torch.randn(heads),
            width**-0.5,
        ]

    @pytest.mark.parametrize("source", ["window", "range", "index"])
    @pytest.mark.parametrize("dtypes", [FLOATS[:1] * 2, FLOATS, FLOATS[1:] * 2])
    @pytest.mark.parametrize(("heads", "width"), [(1, 5), (6, 64), (19, 133), (35, 32)])
    def test_attention(
        isa: str, source: str, dtypes: tuple[torch.dtype, torch.dtype], heads: int, width: int
    ) -> None:
        case = attention_case(7, heads, width, *dtypes, source)
        for rounding, bound in ((Rounding.NONE, 5e-6), (Rounding.BF16, 5e-3)):
            got, want = (m.sparse_attention(*case, rounding) for m in (ops, reference))
            assert_near(got, want, bound)

    @pytest.mark.parametrize("source", ["window", "range", "index"])
    @pytest.mark.parametrize(("dtype", "width"), [(FLOATS[0], 72), (FLOATS[1], 72), (FLOATS[1], 96)])
    def test_bits_of_an_attention_depend_on_its_own_rows_alone(
        isa: str, source: str, dtype: torch.dtype, width: int, threads: Threads
    ) -> None:
        case = attention_case(9, 20, width, torch.float32, dtype, source)
        q, window, rows, entries, reach, index = case[:6]
        rounding = Rounding.NONE if dtype is torch.float32 else Rounding.BF16
        threads(1)
        whole = ops.sparse_attention(*case, rounding)
        # Each query alone, in buffers that hold other rows before and after, in another layout.
        for count in (1, 2, 3):
            threads(count)
            assert torch.equal(ops.sparse_attention(*case, rounding), whole)
            for b in range(2):
                for t in range(0, 9, 4):
                    one, row, shift = slice(b, b + 1), slice(t, t + 1), 3 + t
                    moved = torch.cat([torch.randn(1, shift, width).to(dtype), window[one]], 1)
                    alone = [q[one, row], apart(moved, 7), rows[one, row] + shift, *[None] * 3, *case[6:]]
                    if entries is not None:
                        shifted = torch.cat([torch.randn(1, shift, width).to(dtype), entries[one]], 1)
                        alone[3] = apart(shifted)[:, : shift + 150]
                    if reach is not None:
                        alone[4] = reach[one, row] + shift
                    if index is not None:
                        alone[5] = index[one, row].where(index[one, row] < 0, index[one, row] + shift)
                    assert torch.equal(ops.sparse_attention(*alone, rounding), whole[one, row])

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize(("heads", "width"), [(1, 3), (6, 40), (8, 128)])
    def test_index_choice_with_ties(isa: str, dtype: torch.dtype, heads: int, width: int) -> None:
        q = torch.randint(-2, 3, (2, 5, heads, width)).to(dtype)
        keys = torch.randint(-2, 3, (2, 300, width)).to(dtype)
        weights = torch.randint(-1, 3, (2, 5, heads)).float()
        visible = torch.tensor([[0, 300], [17, 290], [5, 9], [8, 8], [299, 300]]).expand(2, 5, 2)
        for k in (1, 8, 128, 400):
            want = reference.index_topk(q, weights, keys, visible, k)
            assert torch.equal(ops.index_topk(q, weights, keys, visible, k), want)
            assert torch.equal(ops.index_topk(q, weights, apart(keys), visible, k), want)

    def test_selection_by_value(isa: str) -> None:
        # One head of width one: scores are the keys themselves, of every sign and size.
        keys = torch.randn(1, 5000, 1) * torch.logspace(-20, 20, 5000).view(1, -1, 1)
        keys[0, 100:200] = keys[0, 42]
        visible = torch.tensor([[[0, 5000], [50, 4000]]])
        for sign in (1.0, -1.0):
            q, weights = torch.full((1, 2, 1, 1), sign), torch.full((1, 2, 1), sign)
            for k in (1, 100, 3000):
                got, want = (m.index_topk(q, weights, keys, visible, k) for m in (ops, reference))
                assert torch.equal(got, want)

    def test_bits_of_a_token_depend_on_nothing_else(isa: str, threads: Threads) -> None:
        """Whole batches, large enough to be shared, against each token alone."""
        n, width = 4, 96
        tokens = 150
        streams, output = torch.randn(1, tokens, n, width), torch.randn(1, tokens, width)
        fn, scale, base = torch.randn(24, n * width) / 8, torch.randn(3), torch.randn(24)
        x, weight, bias = torch.randn(tokens, 300), torch.randn(60, 300), torch.randn(60)
        angles = torch.randn(tokens, 16)
        q, keys = torch.randn(1, tokens, 8, 64), torch.randn(1, 500, 64)
        narrow_q, narrow_keys = q.to(torch.bfloat16), keys.to(torch.bfloat16)
        head_weights, visible = torch.rand(1, tokens, 8), torch.tensor([[[3, 490]]]).expand(1, tokens, 2)
        post, comb = torch.rand(1, tokens, n), torch.rand(1, tokens, n, n)
        gates = apart(x)
        calls: list[tuple[Callable[..., Any], int]] = [
            (lambda s: ops.rms_norm(x[s], weight[0], 1e-6), 0),
            (lambda s: ops.rope(x[s], angles[s].cos(), angles[s].sin(), False), 0),
            (lambda s: ops.round_fp8(gates[s], 128), 0),
            (lambda s: ops.route_topk(x[s], weight, bias, 6, 1.5), 0),
            (lambda s: ops.hadamard(q[:, s]), 1),
            (lambda s: ops.hc_pre(streams[:, s], fn, scale, base, iters=4, **HC), 1),
            (lambda s: ops.hc_post(output[:, s], streams[:, s], post[:, s], comb[:, s]), 1),
            (lambda s: ops.hc_head(streams[:, s], fn[:n], scale[:1], base[:n], **HC), 1),
            (lambda s: ops.pool(streams[:, s], streams[:, s]), 1),
            (lambda s: ops.index_topk(q[:, s], head_weights[:, s], keys, visible[:, s], 20), 1),
            (lambda s: ops.index_topk(narrow_q[:, s], head_weights[:, s], narrow_keys, visible[:, s], 20), 1),
        ]
        for call, dim in calls:
            threads(1)
            whole = call(slice(0, tokens))
            for count in (1, 2, 3):
                threads(count)
                assert same(call(slice(0, tokens)), whole)
                for begin, end in ((0, 1), (7, 9), (64, 131), (tokens - 1, tokens)):
                    part = (whole,) if isinstance(whole, Tensor) else whole
                    got = call(slice(begin, end))
                    got = (got,) if isinstance(got, Tensor) else got
                    assert all(
                        torch.equal(g, w.narrow(dim, begin, end - begin))
                        for g, w in zip(got, part, strict=True)
                    )

    def test_gradients_run_on_the_reference() -> None:
        x = torch.randn(2, 3, 4, 8, requires_grad=True)
        fn, scale, base = torch.randn(24, 32), torch.randn(3), torch.randn(24)
        mixed, post, comb = ops.hc_pre(x, fn, scale, base, iters=3, **HC)
        y = ops.hc_post(ops.rms_norm(mixed, None, 1e-6), x, post, comb)
        (y * ops.hadamard(y)).sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
        with torch.no_grad():
            assert not ops.rms_norm(x, None, 1e-6).requires_grad

    def test_empty_calls(isa: str) -> None:
        none = torch.empty(1, 0, 4, 8)
        assert ops.rms_norm(none, None, 1e-6).shape == none.shape
        assert ops.pool(none, none).shape == (1, 0, 8)
        ranges = torch.empty(1, 0, 2, dtype=torch.int64)
        window = torch.randn(1, 3, 8)
        got = ops.sparse_attention(none, window, ranges, None, None, None, torch.zeros(4), 1.0)
        assert got.shape == none.shape
        assert ops.index_topk(none, torch.empty(1, 0, 4), window, ranges, 5).shape == (1, 0, 5)
        arguments = (torch.empty(0, 8), torch.randn(6, 8), torch.zeros(6), 2, 1.0)
        assert [t.shape for t in ops.route_topk(*arguments)] == [(0, 2), (0, 2), (0, 6)]

    def test_wrong_arguments_are_named() -> None:
        q, window, sink = torch.randn(1, 2, 3, 8), torch.randn(1, 4, 8), torch.zeros(3)
        ranges = torch.tensor([[[0, 2], [1, 5]]])
        with pytest.raises(ValueError, match="window_range names rows that do not exist"):
            ops.sparse_attention(q, window, ranges, None, None, None, sink, 1.0)
        index = torch.tensor([[[0], [4]]])
        with pytest.raises(ValueError, match="entry_index names entries that do not exist"):
            ops.sparse_attention(q, window, ranges.clamp_max(4), window, None, index, sink, 1.0)
        with pytest.raises(ValueError, match="sink is not"):
            ops.sparse_attention(q, window, ranges.clamp_max(4), None, None, None, sink[:2], 1.0)
        with pytest.raises(ValueError, match="visible names rows that do not exist"):
            ops.index_topk(q, torch.rand(1, 2, 3), window, ranges, 2)
        with pytest.raises(ValueError, match="indices names an expert that does not exist"):
            ops.route_hash(torch.randn(1, 8), torch.randn(3, 8), torch.tensor([[3]]), 1.0)
        with pytest.raises(ValueError, match="power of two"):
            ops.hadamard(torch.randn(2, 12))
        with pytest.raises(ValueError, match="fn does not fit streams"):
            ops.hc_head(torch.randn(1, 2, 8), torch.randn(2, 8), torch.ones(1), torch.ones(2), **HC)
