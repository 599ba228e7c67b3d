"""The native CPU kernels against the reference, for every instruction set that this machine runs.

Where the extension is not built these tests check what a user then gets: the reference, and the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fourfold import kernels
from fourfold.errors import KernelError
from fourfold.kernels import cpu, reference
from fourfold.kernels.formats import Rounding, decode, round_input

Packed = tuple[Tensor, Tensor | None]
Scaled = tuple[Tensor, Tensor]

# Tails of every kind: less than a scale, a chunk of each instruction set, a block; one row, odd rows.
SHAPES = [(1, 32), (5, 96), (130, 160), (67, 320), (256, 1056)]


def fp4(*shape: int) -> Scaled:
    weight = torch.randint(-128, 128, (*shape[:-1], shape[-1] // 2), dtype=torch.int8)
    return weight, exponents(*shape[:-1], shape[-1] // 32)


def fp4_near(*shape: int) -> Scaled:
    """Scales within three binades, as trained weights have them, but for one row in sixty."""
    weight, scale = fp4(*shape)
    near = 124 + scale.view(torch.uint8) % 4
    near[..., ::60, :] = scale.view(torch.uint8)[..., ::60, :]
    return weight, near.view(torch.float8_e8m0fnu)


def fp8(*shape: int) -> Scaled:
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    codes[codes & 127 == 127] = 0  # no NaN
    blocks = [-(-n // 128) for n in shape[-2:]]
    return codes.view(torch.float8_e4m3fn), exponents(*shape[:-2], *blocks)


def bf16(*shape: int) -> tuple[Tensor, None]:
    return torch.randn(shape).bfloat16(), None


def exponents(*shape: int) -> Tensor:
    return torch.randint(120, 128, shape, dtype=torch.uint8).view(torch.float8_e8m0fnu)


def filled(scale: Tensor, code: int) -> Tensor:
    return torch.full(scale.shape, code, dtype=torch.uint8).view(torch.float8_e8m0fnu)


def assert_near(got: Tensor, x: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    """Within a few float32 roundings of the true product, relative to the sum of absolute terms."""
    true = decode(weight, scale).double()
    bound = x.double().abs() @ true.abs().T
    error = (got.double() - x.double() @ true.T).abs()
    assert (error <= 1e-6 * bound).all(), (error / bound).max()


if not cpu.available():

    def test_the_reference_runs_and_says_why() -> None:
        assert cpu.describe()["isa"] == "reference"
        assert cpu.describe()["reason"]
        assert set(kernels.table("cpu").values()) == {"reference"}

else:
    from fourfold.kernels.cpu import ops

    native: ModuleType = ops.native

    @pytest.fixture(params=native.supported_isas())
    def isa(request: pytest.FixtureRequest) -> Iterator[str]:
        before = native.isa()
        assert native.use_isa(request.param)
        yield request.param
        native.use_isa(before)

    @pytest.fixture
    def threads() -> Iterator[Callable[[int], None]]:
        before = native.threads()
        yield native.set_threads
        native.set_threads(before)

    @pytest.mark.parametrize("make", [fp4, fp8])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_linear_equals_the_true_product(
        isa: str, make: Callable[..., Packed], shape: tuple[int, int]
    ) -> None:
        weight, scale = make(*shape)
        for n in (1, 2, 3, 4, 7, 16, 33):
            x = torch.randn(n, shape[1])
            assert_near(ops.linear(x, weight, scale), x, weight, scale)

    @pytest.mark.parametrize("exponent", [0, 1, 100, 127, 254])
    def test_every_code_is_decoded_exactly(isa: str, exponent: int) -> None:
        unit = torch.eye(256)
        bytes_of_fp4 = torch.arange(256, dtype=torch.uint8).view(torch.int8).reshape(2, 128)
        codes_of_fp8 = torch.arange(256, dtype=torch.uint8)
        codes_of_fp8[codes_of_fp8 & 127 == 127] = 0
        for weight, groups in (
            (bytes_of_fp4, 8),
            (codes_of_fp8.view(torch.float8_e4m3fn).reshape(1, 256), 2),
        ):
            scale = filled(torch.empty(weight.shape[0], groups), exponent)
            assert torch.equal(ops.linear(unit, weight, scale), decode(weight, scale).T)

    def test_each_group_has_its_own_scale(isa: str) -> None:
        for make in (fp4, fp8):
            weight, scale = make(300, 416)
            assert torch.equal(ops.linear(torch.eye(416), weight, scale), decode(weight, scale).T)

    @pytest.mark.parametrize("rounding", list(Rounding))
    def test_nan_in_weights_and_scales_is_seen(isa: str, rounding: Rounding) -> None:
        def assert_same_nans(x: Tensor, weight: Tensor, scale: Tensor | None) -> None:
            want = reference.linear(x, weight, scale, rounding).isnan()
            assert torch.equal(ops.linear(x, weight, scale, rounding).isnan(), want)

        weight, scale = fp8(8, 256)
        weight.view(torch.uint8)[2, 17] = 0x7F
        weight.view(torch.uint8)[7, 255] = 0xFF
        for n in (1, 5, 40):
            assert_same_nans(torch.randn(n, 256), weight, scale)
        weight, scale = fp4(8, 256)
        assert scale is not None
        scale.view(torch.uint8)[3, 5] = 0xFF
        for n in (1, 40):
            assert_same_nans(torch.randn(n, 256), weight, scale)

    def test_float32_scales_of_older_exports(isa: str) -> None:
        weight, _ = fp8(200, 300)
        scale = torch.rand(2, 3) + 0.5
        x = torch.randn(3, 300)
        assert_near(ops.linear(x, weight, scale), x, weight, scale)

    @pytest.mark.parametrize("rounding", list(Rounding))
    @pytest.mark.parametrize("make", [fp4, fp4_near, fp8, bf16])
    def test_bits_of_a_row_depend_on_nothing_else(
        isa: str, make: Callable[..., Packed], rounding: Rounding, threads: Callable[[int], None]
    ) -> None:
        # Large enough to be shared between threads; an odd number of rows leaves short pieces.
        weight, scale = make(1027, 1056)
        x = torch.randn(70, 1056)
        threads(1)
        alone = torch.cat([ops.linear(row, weight, scale, rounding) for row in x.split(1)])
        for count in (1, 2, 5):
            threads(count)
            for n in (1, 2, 3, 5, 16, 17, 32, 33, 70):
                assert torch.equal(ops.linear(x[:n], weight, scale, rounding), alone[:n])
        few = None if scale is None else scale[:1] if make is fp8 else scale[:128]
        assert torch.equal(ops.linear(x[:1], weight[:128], few, rounding), alone[:1, :128])

    @pytest.mark.parametrize("make", [fp4, fp4_near, fp8, bf16])
    @pytest.mark.parametrize("columns", [32, 160, 1056])
    def test_rounded_products_equal_the_reference(
        isa: str, make: Callable[..., Packed], columns: int
    ) -> None:
        weight, scale = make(131, columns)
        for n in (1, 4, 19, 40):
            x = torch.randn(n, columns)
            for rounding in (Rounding.BF16, Rounding.FP8, Rounding.INT16_GROUPS):
                got = ops.linear(x, weight, scale, rounding)
                assert_near(got, round_input(x, rounding), weight, scale)

    def test_scales_at_the_ends_of_their_range(isa: str) -> None:
        """Products that bfloat16 cannot hold are still those of the reference."""
        for make in (fp4, fp8):
            for exponent in (0, 3, 241, 244):
                weight, scale = make(32, 128)
                scale = filled(scale, exponent)
                x = torch.randn(3, 128) * (1e-3 if exponent > 127 else 1e3)
                want = reference.linear(x, weight, scale, Rounding.BF16)
                got = ops.linear(x, weight, scale, Rounding.BF16)
                assert want.isfinite().all()
                assert torch.allclose(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))

    @pytest.mark.parametrize(("make", "rows"), [(fp4, 24), (fp8, 128)])
    def test_grouped_linear_is_one_linear_a_group(isa: str, make: Callable[..., Scaled], rows: int) -> None:
        weight, scale = make(3 * rows, 160)
        x = torch.randn(2, 4, 3, 160)
        y = ops.grouped_linear(x, weight, scale, 3)
        step = rows if make is fp4 else 1
        for g in range(3):
            part = weight[g * rows : (g + 1) * rows], scale[g * step : (g + 1) * step]
            assert torch.equal(y[:, :, g], ops.linear(x[:, :, g], *part))

    def test_groups_that_share_a_block_of_scales_are_decoded_first(isa: str) -> None:
        weight, scale = fp8(3 * 24, 160)
        x = torch.randn(9, 3, 160)
        y = ops.grouped_linear(x, weight, scale, 3)
        assert torch.equal(y, ops.grouped_linear(x, decode(weight, scale), None, 3))
        want = reference.grouped_linear(x, weight, scale, 3)
        assert (y - want).abs().max() <= 2e-6 * want.abs().max()
        alone = [ops.grouped_linear(row, weight, scale, 3) for row in x.split(1)]
        assert torch.equal(y, torch.cat(alone))

    def stack(make: Callable[..., Scaled], experts: int, inner: int, width: int) -> list[Tensor]:
        shapes = ((experts, inner, width), (experts, inner, width), (experts, width, inner))
        return [t for shape in shapes for t in make(*shape)]

    @pytest.mark.parametrize("make", [fp4, fp8])
    @pytest.mark.parametrize("rounding", list(Rounding))
    @pytest.mark.parametrize("n", [1, 2, 16])
    def test_experts_equal_the_reference(
        isa: str, make: Callable[..., Packed], rounding: Rounding, n: int
    ) -> None:
        weights = stack(make, 8, 96, 160)
        x, amounts = torch.randn(n, 160) / 16, torch.rand(n, 3)
        chosen = torch.rand(n, 8).argsort(-1)[:, :3]
        got = ops.experts(x, chosen, amounts, *weights, 10.0, rounding)
        want = reference.experts(x, chosen, amounts, *weights, 10.0, rounding)
        # Rounding the inner product to FP8 may turn a last-bit difference into a step of 2^-4 in one value.
        assert (got - want).abs().max() <= (2e-6 if rounding is Rounding.NONE else 2e-3) * want.abs().max()

    def test_the_input_is_rounded_to_the_published_grid(isa: str) -> None:
        # What is on the grid stays there: rounding first with the reference must change nothing.
        x = torch.randn(40, 256) * torch.logspace(-9, 3, 40).unsqueeze(1)
        x[0] = 0
        rounded = reference.round_fp8(x, 128)
        weights = stack(fp8, 4, 128, 256)
        chosen = torch.arange(40).remainder(4).unsqueeze(1)
        amounts = torch.ones(40, 1)
        plain = ops.experts(rounded, chosen, amounts, *weights, 10.0, Rounding.FP8)
        assert torch.equal(ops.experts(x, chosen, amounts, *weights, 10.0, Rounding.FP8), plain)

    def test_a_token_alone_and_among_others_has_the_same_bits(
        isa: str, threads: Callable[[int], None]
    ) -> None:
        weights = stack(fp4, 4, 256, 512)
        x, amounts = torch.randn(16, 512), torch.rand(16, 2)
        chosen = torch.rand(16, 4).argsort(-1)[:, :2]
        for count in (1, 2):
            threads(count)
            batch = ops.experts(x, chosen, amounts, *weights, 10.0, Rounding.NONE)
            for i in range(16):
                part = slice(i, i + 1)
                alone = ops.experts(x[part], chosen[part], amounts[part], *weights, 10.0, Rounding.NONE)
                assert torch.equal(alone, batch[part])
        flipped = ops.experts(x, chosen.flip(1), amounts.flip(1), *weights, 10.0, Rounding.NONE)
        assert torch.equal(flipped, batch)

    def test_a_token_may_choose_an_expert_twice(isa: str) -> None:
        weights = stack(fp8, 3, 128, 128)
        x, amounts = torch.randn(2, 128) / 16, torch.rand(2, 2)
        chosen = torch.tensor([[1, 1], [2, 1]])
        got = ops.experts(x, chosen, amounts, *weights, 10.0, Rounding.NONE)
        want = reference.experts(x, chosen, amounts, *weights, 10.0, Rounding.NONE)
        assert (got - want).abs().max() <= 2e-6 * want.abs().max()

    def test_what_is_not_covered_runs_on_the_reference() -> None:
        x = torch.randn(3, 64, requires_grad=True)
        plain = torch.randn(8, 64)
        assert torch.equal(ops.linear(x, plain, None), reference.linear(x, plain, None))
        weight, scale = fp4(8, 64)
        ops.linear(x, weight, scale).sum().backward()
        assert x.grad is not None
        assert torch.allclose(x.grad, decode(weight, scale).sum(0).expand(3, 64))
        strided = fp4(8, 128)[0][:, ::2]
        assert_near(ops.linear(x.detach(), strided, scale), x.detach(), strided, scale)

    def test_other_layouts_of_x(isa: str) -> None:
        weight, scale = fp8(40, 64)
        x = torch.randn(64, 6).T
        assert torch.equal(ops.linear(x, weight, scale), ops.linear(x.contiguous(), weight, scale))
        half = x.to(torch.bfloat16)
        y = ops.linear(half, weight, scale)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, ops.linear(half.float(), weight, scale).to(torch.bfloat16))
        assert ops.linear(x[:0], weight, scale).shape == (0, 40)
        assert ops.linear(x.reshape(2, 1, 3, 64), weight, scale).shape == (2, 1, 3, 40)
        none = torch.zeros(0, 2, dtype=torch.int64)
        assert ops.experts(x[:0], none, none.float(), *stack(fp8, 2, 64, 64), 10.0, Rounding.NONE).shape == (
            0,
            64,
        )

    def test_wrong_arguments_are_named() -> None:
        weight, scale = fp4(8, 64)
        y = torch.empty(1, 8)
        with pytest.raises(ValueError, match="x does not fit the weight"):
            native.linear(torch.randn(1, 32), weight, scale, 0, y)
        with pytest.raises(ValueError, match="scale does not fit its weight"):
            native.linear(torch.randn(1, 64), weight, scale[:, :1].contiguous(), 0, y)
        with pytest.raises(ValueError, match="x is neither float32 nor bfloat16"):
            native.linear(torch.randn(1, 64).double(), weight, scale, 0, y)
        with pytest.raises(ValueError, match="weight is not contiguous"):
            native.linear(torch.randn(1, 64), weight.T, scale, 0, y)
        with pytest.raises(TypeError, match="x is not a tensor"):
            native.linear("x", weight, scale, 0, y)
        with pytest.raises(ValueError, match="indices names an expert that does not exist"):
            ops.experts(
                torch.randn(1, 64),
                torch.tensor([[2]]),
                torch.ones(1, 1),
                *stack(fp4, 2, 64, 64),
                10.0,
                Rounding.NONE,
            )

    def test_two_python_threads_at_once() -> None:
        weight, scale = fp4(1024, 1024)
        x = torch.randn(4, 1024)
        want = ops.linear(x, weight, scale)
        wrong: list[int] = []

        def work() -> None:
            for i in range(50):
                if not torch.equal(ops.linear(x, weight, scale), want):
                    wrong.append(i)

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong

    def test_the_table_tells_what_runs_here() -> None:
        for name, note in kernels.table("cpu").items():
            assert note == ops.NOTES.get(name, "its parts" if name in kernels.COMPOSED else "reference")


def test_environment_chooses_and_wrong_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURFOLD_ISA", "reference")
    assert cpu._load() == (None, "FOURFOLD_ISA=reference")
    if cpu.native is None:
        return
    before = cpu.native.isa(), cpu.native.threads()
    monkeypatch.setenv("FOURFOLD_ISA", "scalar")
    monkeypatch.setenv("FOURFOLD_THREADS", "3")
    try:
        assert cpu._load() == (cpu.native, "")
        assert cpu.describe() == {"isa": "scalar", "threads": 3, "reason": ""}
        for name, value in (("FOURFOLD_THREADS", "many"), ("FOURFOLD_ISA", "mmx")):
            monkeypatch.setenv(name, value)
            with pytest.raises(KernelError, match=f"{name}={value} .*allowed: "):
                cpu._load()
    finally:
        cpu.native.use_isa(before[0])
        cpu.native.set_threads(before[1])
