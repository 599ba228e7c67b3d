from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import CheckpointError
from fourfold.kernels.formats import E2M1_VALUES, decode_fp4, decode_fp8, round_fp4
from fourfold.weights.formats import (
    encode_e8m0,
    encode_fp4,
    encode_fp8,
    encode_fp8_exactly,
    is_e8m0,
    scale_shape,
)

E2M1 = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)])
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
E4M3 = E4M3[E4M3.isfinite()]


def matrix(rows: int, columns: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x * torch.exp2(spread * torch.randn(rows, columns, generator=generator))


def is_nearest(x: torch.Tensor, rounded: torch.Tensor, grid: torch.Tensor) -> bool:
    best = (x.flatten()[:, None] - grid).abs().amin(-1)
    return torch.equal((x - rounded).abs().flatten(), best)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_fp8_is_the_nearest_value_on_the_block_grid(rows, columns, seed):
    x = matrix(rows, columns, seed)
    weight, scale = encode_fp8(x)
    assert weight.shape == x.shape
    assert scale.shape == scale_shape((rows, columns), "fp8")
    spread = scale.float().repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    assert (x.abs() / spread).max() <= 448
    assert is_nearest((x / spread)[:7], weight.float()[:7], E4M3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 99))
def test_fp4_is_the_nearest_value_on_the_group_grid(rows, groups, seed):
    x = matrix(rows, 32 * groups, seed)
    weight, scale = encode_fp4(x)
    assert weight.shape == (rows, 16 * groups)
    assert scale.shape == scale_shape((rows, 32 * groups), "fp4")
    spread = scale.float().repeat_interleave(32, 1)
    assert (x.abs() / spread).max() <= 6
    assert is_nearest(x / spread, decode_fp4(weight, scale) / spread, E2M1)
    assert torch.equal(decode_fp4(weight, scale), round_fp4(x))


def test_scales_are_the_smallest_powers_of_two_that_fit():
    x = torch.zeros(4, 32)
    x[:, 0] = torch.tensor([6.0, 6.1, 3.0, 12.0])
    assert encode_fp4(x)[1].float().flatten().tolist() == [1.0, 2.0, 0.5, 2.0]
    for amax, scale in ((448.0, 1.0), (449.0, 2.0), (224.0, 0.5), (0.0, 1.0)):
        assert encode_fp8(torch.full((3, 3), amax))[1].item() == scale


def test_ties_go_to_even_and_low_nibble_comes_first():
    x = torch.zeros(1, 32)
    x[0, :16] = torch.tensor(
        [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, -6]
    )
    weight, scale = encode_fp4(x)
    values = decode_fp4(weight, scale)[0, :16].tolist()
    assert values == [0, 1, 1, 2, 2, 4, 4, 6, 0, -1, -1, -2, -2, -4, -4, -6]
    assert weight.view(torch.uint8)[0, 0] == 0x20  # codes 0 and 2
    ties = torch.tensor([[448.0, 17.0, 19.0, 2.0**-10, 3 * 2.0**-10]])
    assert encode_fp8(ties)[0].float().tolist() == [[448.0, 16.0, 20.0, 0.0, 2.0**-8]]


@pytest.mark.parametrize("encode", [encode_fp4, encode_fp8])
@pytest.mark.parametrize("power", [-140, -126, 0, 120])
def test_extreme_sizes_stay_finite(encode, power):
    x = torch.linspace(-1, 1, 64)[None].repeat(3, 1) * 2.0**power
    weight, scale = encode(x)
    decode = decode_fp4 if encode is encode_fp4 else decode_fp8
    assert decode(weight, scale).isfinite().all()
    assert (decode(weight, scale) - x).abs().max() <= max(2.0**-126, x.abs().max() / 5)


def test_e8m0_of_all_its_powers():
    powers = torch.exp2(torch.arange(-126, 128, dtype=torch.float32))
    assert torch.equal(encode_e8m0(powers).float(), powers)
    assert is_e8m0(powers)
    for value in (3.0, 0.0, -2.0, float("inf"), float("nan"), 1.0000001, 2.0**-130):
        assert not is_e8m0(torch.tensor([1.0, value]))


def packed(scale_powers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP4 [O, I] of all codes, with scales 2^scale_powers [O, I/32]."""
    rows, groups = scale_powers.shape
    codes = torch.arange(rows * groups * 16).view(rows, -1).to(torch.uint8).view(torch.int8)
    return codes, encode_e8m0(torch.exp2(scale_powers.float()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.integers(-110, 100), st.integers(0, 999))
def test_fp8_without_loss_exactly_where_some_scale_allows_it(spread, least, seed):
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(least, least + spread + 1, (3, 4), generator=generator)
    codes = torch.randint(-128, 128, (3, 64), generator=generator).to(torch.int8)
    values = decode_fp4(codes, encode_e8m0(torch.exp2(powers.float())))
    scales = [2.0**power for power in range(-126, 128)]
    some = any(torch.equal((values / s).to(torch.float8_e4m3fn).float() * s, values) for s in scales)
    try:
        decoded = decode_fp8(*encode_fp8_exactly(values, "w"))
    except CheckpointError:
        assert not some
    else:
        assert torch.equal(decoded.view(torch.int32), values.view(torch.int32))  # the signs of zeros too


@pytest.mark.parametrize("spread", range(15))
def test_fp4_scales_that_differ_by_up_to_2_to_the_14_fit_one_fp8_scale(spread):
    powers = torch.zeros(300, 12)
    powers[256, 4] = spread
    values = decode_fp4(*packed(powers))
    assert torch.equal(decode_fp8(*encode_fp8_exactly(values, "w")), values)


def test_what_fp8_cannot_hold_is_refused_with_tensor_and_block():
    powers = torch.zeros(300, 12)
    powers[256, 4] = 15
    message = (
        r"^x\.w1\.weight: .* in 1 of its 128x128 blocks, first rows 256-299, columns 128-255, where 0.5 would"
        r" become 0\. Keep"
    )
    with pytest.raises(CheckpointError, match=message):
        encode_fp8_exactly(decode_fp4(*packed(powers)), "x.w1.weight")


def test_fp4_scales_that_are_no_powers_of_two_are_refused_by_name():
    codes, _ = packed(torch.zeros(4, 4))
    values = decode_fp4(codes, torch.full((4, 4), 0.3))
    with pytest.raises(
        CheckpointError, match=r"^w: cannot become FP8 without loss .* rows 0-3, columns 0-127"
    ):
        encode_fp8_exactly(values, "w")


def test_groups_of_zeros_do_not_stand_in_the_way():
    powers = torch.zeros(4, 4)
    powers[1, 2] = -100
    weight, scale = packed(powers)
    weight[1, 32:48] = 0
    values = decode_fp4(weight, scale)
    assert torch.equal(decode_fp8(*encode_fp8_exactly(values, "w")), values)
