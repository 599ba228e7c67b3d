"""int8 and int4: packing by hand, decoding, and the search for each channel's range."""

from __future__ import annotations

import pytest
import torch

from fourfold.errors import CheckpointError
from fourfold.kernels.formats import channel_scale, decode, decode_fp4, integer_codes, is_integer
from fourfold.weights import quantise as quantise_module
from fourfold.weights.formats import encode_fp4, encode_integer, int4_assist, pack_int4, scale_bits
from fourfold.weights.quantise import CLIP_RATIOS, best_scales, quantise


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def squares(w: torch.Tensor, scale: torch.Tensor, largest: int, weights: torch.Tensor) -> torch.Tensor:
    codes = (w / scale[:, None]).round().clamp(-largest, largest)
    return ((codes * scale[:, None] - w).square() * weights).sum(-1)


# Channels 0 and 1 share the first row of bytes: 5 below -7 is 0x95, as the recipes' own example has it.
CODES = torch.tensor([[5, 1, -8], [-7, -1, 7], [0, 3, -2], [-4, 2, 6]], dtype=torch.int8)
BYTES = torch.tensor([[0x95, 0xF1, 0x78], [0xC0, 0x23, 0x6E]], dtype=torch.uint8)


def test_int4_packing_by_hand() -> None:
    assert torch.equal(pack_int4(CODES), BYTES)
    assert torch.equal(integer_codes(BYTES), CODES)
    # The recipes multiply [I, O]: transposed, each row of bytes runs along the output channels.
    along = [code & 15 for code in CODES[:, 0].tolist()]
    assert BYTES.T[0].tolist() == [along[0] | along[1] << 4, along[2] | along[3] << 4]


def test_every_pair_of_codes_comes_back() -> None:
    codes = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).T.to(torch.int8)
    assert pack_int4(codes).unique().numel() == 256
    assert torch.equal(integer_codes(pack_int4(codes)), codes)


def test_scale_bits_and_assist_by_hand() -> None:
    scale = torch.tensor([1.0, -0.0, 0.15625, 2.0])
    assert scale_bits(scale).tolist() == [0x3F800000, 0x80000000 - (1 << 32), 0x3E200000, 0x40000000]
    positive = torch.tensor([1.0, 0.5, 0.25, 2.0])
    assert (scale_bits(positive) >> 32 == 0).all()
    assert torch.equal(channel_scale(scale_bits(positive)), positive)
    assert int4_assist(CODES, positive).tolist() == [-16.0, -4.0, 2.0, 64.0]


@pytest.mark.parametrize("bits", [False, True])
def test_decoding(bits) -> None:
    scale = torch.tensor([1.0, 0.5, 0.25, 2.0])
    stored = scale_bits(scale) if bits else scale
    expected = CODES * scale[:, None]
    assert torch.equal(decode(BYTES, stored), expected)
    assert torch.equal(decode(CODES, stored), expected)
    stacked = torch.stack([BYTES, BYTES]), torch.stack([stored, stored])
    assert torch.equal(decode(*stacked), torch.stack([expected, expected]))
    assert is_integer(BYTES, stored)
    assert is_integer(CODES, stored)
    assert not is_integer(*encode_fp4(matrix(4, 32)))


@pytest.mark.parametrize("largest", [7, 127])
@pytest.mark.parametrize("few_values", [False, True])
def test_the_search_finds_the_best_ratio_of_the_grid(largest, few_values) -> None:
    w = matrix(6, 384, seed=largest)
    w = decode_fp4(*encode_fp4(w)) if few_values else w + 1e-6
    importance = matrix(1, 384, seed=1).square()[0]
    amax = w.abs().amax(-1)
    scale = best_scales(w, amax, largest, importance)
    tried = torch.stack([squares(w, r * amax / largest, largest, importance) for r in CLIP_RATIOS])
    assert (squares(w, scale, largest, importance) <= tried.amin(0) * (1 + 1e-5)).all()
    assert len(CLIP_RATIOS) == 61
    assert (min(CLIP_RATIOS), max(CLIP_RATIOS)) == (0.7, 1.3)


def test_few_values_are_summed_as_terms_without_changing_the_choice(monkeypatch) -> None:
    w = decode_fp4(*encode_fp4(matrix(64, 512)))
    terms, _ = quantise_module._magnitudes(w, None)
    assert terms.shape[1] < 256
    fast = quantise(w, "int4", "w")
    monkeypatch.setattr(quantise_module, "_magnitudes", lambda w, _: (w.abs(), torch.ones(1, w.shape[1])))
    slow = quantise(w, "int4", "w")
    assert fast.error.error == pytest.approx(slow.error.error, rel=1e-5)
    assert (fast.weight == slow.weight).double().mean() > 0.99


def test_int8_holds_fp4_without_loss_where_scales_lie_close() -> None:
    weight, scale = encode_fp4(matrix(64, 512) / 3)
    w = decode_fp4(weight, scale)
    done = quantise(w, "int8", "w")
    assert torch.equal(decode(done.weight, done.scale[:, 0]), w)
    assert done.error.error == 0.0
    assert done.error.unclipped is not None
    assert done.error.unclipped > 0.004


@pytest.mark.parametrize(("fmt", "bound"), [("int8", 0.012), ("int4", 0.16)])
def test_the_report_says_what_decoding_gives(fmt, bound) -> None:
    w = matrix(96, 640)
    done = quantise(w, fmt, "layers.0.w", importance=matrix(1, 640).square()[0])
    stored = decode(done.weight, done.scale[:, 0])
    assert done.error.error == pytest.approx(float((w - stored).norm() / w.norm()), rel=1e-4)
    assert done.error.error < bound
    assert done.error.weighted is not None
    assert done.error.weighted_unclipped is not None
    assert done.error.weighted < done.error.weighted_unclipped
    assert (done.error.name, done.error.format) == ("layers.0.w", fmt)
    assert (done.assist is None) == (fmt == "int8")


def test_importance_moves_the_clip() -> None:
    w = torch.full((2, 64), 0.1)
    w[:, 0] = 1.3
    near = torch.ones(64)
    near[0] = 1e-9
    plain, weighted = quantise(w, "int4", "w"), quantise(w, "int4", "w", near)
    assert weighted.error.clip is not None
    assert plain.error.clip is not None
    assert weighted.error.clip < plain.error.clip
    assert weighted.error.weighted is not None
    assert plain.error.error < weighted.error.error


def test_channels_of_zeros_and_blocks_of_rows(monkeypatch) -> None:
    w = matrix(10, 32)
    w[3] = 0
    whole = quantise(w, "int4", "w")
    assert (integer_codes(whole.weight)[3] == 0).all()
    monkeypatch.setattr(quantise_module, "_BLOCK", 3 * 32)
    parts = quantise(w, "int4", "w")
    assert torch.equal(parts.weight, whole.weight)
    assert torch.equal(parts.scale, whole.scale)
    assert quantise(torch.zeros(2, 32), "int8", "w").error.error == 0.0


def test_an_odd_number_of_channels_cannot_be_paired() -> None:
    with pytest.raises(CheckpointError, match=r"w1: int4 needs an even number of output channels, found 3"):
        quantise(matrix(3, 32), "int4", "w1")


def test_codes_stay_in_their_range() -> None:
    w = torch.tensor([[1.0, -1.0, 0.4]])
    assert encode_integer(w, torch.tensor([0.1]), 7).tolist() == [[7, -7, 4]]
