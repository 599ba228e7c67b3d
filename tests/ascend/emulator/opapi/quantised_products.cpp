// Products of quantised matrices: int8 by the row, int4 weights, FP8 by blocks, MXFP8, and MXFP8 with MXFP4
// weights; one matrix or one a group of rows.
#include "../acl/emulator.h"
#include "entry.h"

using namespace emulator;

// Sums of int8 products are exact integers, and stay below 2^53 for any K of a model.
static Tensor accumulated(const Tensor& a, const Tensor& b) {
  return at::matmul(a.to(at::kDouble), b.to(at::kDouble));
}

// e8m0 codes, one a group of 32 along the last axis, spread to `width` factors.
static Tensor e8m0_factors(const Tensor& codes, int64_t width) {
  Tensor exponents = codes.view(at::kByte).to(at::kFloat) - 127;
  return at::repeat_interleave(at::pow(2.0, exponents.flatten(-2)), 32, -1).narrow(-1, 0, width);
}

static bool is_fp8(const Tensor& x) { return x.scalar_type() == at::kFloat8_e4m3fn; }

// Scales of 128 x 128 blocks, or of groups of 128 in a row, spread to [rows, columns].
static Tensor spread_blocks(const Tensor& scale, int64_t row_size, int64_t rows, int64_t columns) {
  Tensor wide = at::repeat_interleave(scale, 128, -1).narrow(-1, 0, columns);
  return row_size == 1 ? wide : at::repeat_interleave(wide, row_size, -2).narrow(-2, 0, rows);
}

// Mode G-B: groups of 128 of each row of a, blocks of 128 x 128 of b; group sizes are packed in 32 + 16 + 16 bits.
static void fp8_by_blocks(const Tensor& a, const Tensor& b, const Tensor& a_scale, const Tensor& b_scale,
                          int64_t groups, Tensor out) {
  int64_t m = a.size(0), k = a.size(1), n = b.size(1), across = (k + 127) / 128;
  require(groups == (int64_t{1} << 32) + (128 << 16) + 128, "group_sizes [1, 128, 128] with scales of float32");
  require(is_fp8(b) && b_scale.scalar_type() == at::kFloat && a_scale.scalar_type() == at::kFloat,
          "float8_e4m3fn of both and scales of float32");
  require(a_scale.sizes() == at::IntArrayRef({m, across}) &&
              b_scale.sizes() == at::IntArrayRef({across, (n + 127) / 128}),
          "scales [M, K/128] and [K/128, N/128]");
  auto type = out.scalar_type();
  require(type == at::kBFloat16 || type == at::kHalf || type == at::kFloat, "an output of bf16, fp16 or float32");
  if (only_checking()) return;
  Tensor left = a.to(at::kFloat) * spread_blocks(a_scale, 1, m, k);
  Tensor right = b.to(at::kFloat) * spread_blocks(b_scale, 128, k, n);
  out.copy_(at::matmul(left, right));
}

LIMITED(QuantMatmulV5, (Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, Tensor, Tensor, Tensor offset, Tensor,
                      Tensor bias, bool, bool, int64_t groups, Tensor out) {
  require(!offset.defined(), "no offset in this emulation");
  if (is_fp8(a) && a_scale.defined() && a_scale.dim() == 2) {
    require(soc().has_fp8 && !bias.defined(), "FP8 by blocks: Ascend 950, and no bias");
    fp8_by_blocks(a, b, a_scale, b_scale, groups, out);
    return;
  }
  if (is_fp8(a)) {
    require(is_fp8(b) && a_scale.dim() == 3 && b_scale.dim() == 3, "MXFP8: scales [.., K/64, 2] of both");
    if (only_checking()) return;
    Tensor left = a.to(at::kFloat) * e8m0_factors(a_scale, a.size(-1));
    // b is a transposed view [K, N], and so are its scales [K/64, N, 2].
    Tensor right = b.t().to(at::kFloat) * e8m0_factors(b_scale.transpose(0, 1), b.size(0));
    out.copy_(at::matmul(left, right.t()));
    return;
  }
  require(a.scalar_type() == at::kChar && b.scalar_type() == at::kChar, "x1 and x2 of int8 in this emulation");
  auto type = out.scalar_type(), scale_type = b_scale.scalar_type();
  require(type == at::kBFloat16 || type == at::kHalf || type == at::kInt, "an output of bf16, fp16 or int32");
  require(scale_type == at::kFloat || (scale_type == at::kBFloat16 && type != at::kHalf),
          "a scale of float32, or of bfloat16 without an output of float16");
  if (only_checking()) return;
  Tensor sum = accumulated(a, b);
  if (bias.defined() && bias.scalar_type() == at::kInt) sum = sum + bias;
  if (type == at::kInt) {
    out.copy_(sum);
    return;
  }
  Tensor y = sum.to(at::kFloat) * b_scale.to(at::kFloat);
  if (a_scale.defined()) y = y * a_scale.reshape({-1, 1});
  if (bias.defined() && bias.scalar_type() != at::kInt) y = y + bias.to(at::kFloat);
  out.copy_(y);
})

// Eight int4 lie in an int32, the first in its lowest bits: [.., N/8] int32 -> [.., N] int8.
static Tensor unpacked(const Tensor& words) {
  Tensor shifts = at::arange(0, 32, 4, words.options());
  Tensor nibbles = at::bitwise_and(at::bitwise_right_shift(words.unsqueeze(-1), shifts), 15);
  return at::where(nibbles > 7, nibbles - 16, nibbles).flatten(-2).to(at::kChar);
}


// FP4 weights [g, K, N], transposed and so with neighbours of K in a byte, the first in its low bits -> [g, N, K].
static Tensor e2m1_values(const Tensor& weight) {
  int64_t groups = weight.size(0), k = weight.size(1), n = weight.size(2);
  auto* bytes = const_cast<void*>(weight.const_data_ptr());
  Tensor pairs = at::from_blob(bytes, {groups, n, k / 2}, {weight.stride(0) / 2, weight.stride(2) / 2, 1}, at::kByte);
  Tensor codes = at::stack({at::bitwise_and(pairs, 15), at::bitwise_right_shift(pairs, 4)}, -1).flatten(-2);
  Tensor values = at::tensor({0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f});
  values = at::cat({values, -values});
  return values.index_select(0, codes.flatten().to(at::kLong)).view({groups, n, k});
}

static Tensor first(const Tensors& list) { return list.empty() ? Tensor() : list[0]; }
static Tensor row(const Tensor& stack, int64_t group) { return stack.defined() ? stack[group] : Tensor(); }

static Tensor one_group(const Tensor& rows, const Tensor& row_scale, const Tensor& weight, const Tensor& scale,
                        const Tensor& bias, at::ScalarType type) {
  if (rows.scalar_type() != at::kChar) {
    Tensor y = at::matmul(rows.to(at::kFloat), weight.to(at::kFloat));
    return bias.defined() ? y + bias.to(at::kFloat) : y;
  }
  bool int4 = weight.scalar_type() == at::kInt;
  Tensor sum = accumulated(rows, int4 ? unpacked(weight) : weight);
  if (type == at::kInt) return sum;
  Tensor y = sum.to(at::kFloat);
  // The int4 operator adds its float bias, 8 times the sum of the weights of a channel, before the row's scale.
  if (scale.defined() && int4) y = y * scale.view(at::kInt).slice(-1, 0, std::nullopt, 2).view(at::kFloat);
  if (scale.defined() && !int4) y = y * scale.to(at::kFloat);
  if (bias.defined()) y = y + bias.to(at::kFloat);
  return row_scale.defined() ? y * row_scale.unsqueeze(1) : y;
}

static void check_types(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& out) {
  auto type = x.scalar_type(), kind = weight.scalar_type(), result = out.scalar_type();
  if (type != at::kChar) {
    require(type == kind && type == result, "x, weight and y of one float type");
    return;
  }
  require(kind == at::kChar || kind == at::kInt, "with x of int8 a weight of int8, or of int4 in int32");
  if (kind == at::kInt) {
    require(scale.defined() && scale.itemsize() == 8, "with int4 weights a scale of int64 or uint64");
  } else if (scale.defined() && result != at::kInt) {
    bool fits = (scale.scalar_type() == at::kBFloat16 && result == at::kBFloat16) ||
                (scale.scalar_type() == at::kFloat && result == at::kHalf);
    require(fits, "a scale of bfloat16 for y of bfloat16, or of float32 for y of float16");
  }
}

// MXFP8 rows with MXFP4 weights.
static void check_mx(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& row_scale,
                     const Tensor& out) {
  int64_t m = x.size(0), k = weight.size(1), n = weight.size(2);
  auto type = out.scalar_type();
  require(soc().has_fp8, "Ascend 950");
  require(is_fp8(x) && weight.scalar_type() == at::kFloat4_e2m1fn_x2 && weight.stride(1) == 1,
          "with antiquant_scale an x of float8_e4m3fn and a transposed weight of float4_e2m1fn_x2");
  require(x.size(1) == k && k % 64 == 0 && n % 32 == 0, "K that 64 divides and weights of whole 32 bytes");
  require(scale.scalar_type() == at::kByte && scale.sizes() == at::IntArrayRef({weight.size(0), n, k / 64, 2}),
          "an antiquant_scale [g, N, K/64, 2] of uint8");
  require(row_scale.defined() && row_scale.scalar_type() == at::kFloat8_e8m0fnu &&
              row_scale.sizes() == at::IntArrayRef({m, k / 64, 2}),
          "a per_token_scale [M, K/64, 2] of float8_e8m0fnu");
  require(type == at::kBFloat16 || type == at::kHalf, "y of bfloat16 or float16");
}

static void grouped(const Tensors& xs, const Tensors& weights, const Tensors& biases, const Tensors& scales,
                    const Tensors& antiquant, const Tensors& row_scales, const Tensor& groups, int64_t split,
                    int64_t group_type, int64_t list_type, const Tensors& outs) {
  Tensor x = first(xs), weight = first(weights), scale = first(scales), bias = first(biases), out = first(outs);
  require(xs.size() == 1 && weights.size() == 1 && weight.dim() == 3, "one x and one stacked weight in this emulation");
  require((split == 2 || split == 3) && group_type == 0, "split_item 2 or 3 and group_type 0 in this emulation");
  require(groups.defined() && groups.numel() <= 1024 && groups.scalar_type() == at::kLong,
          "a group_list of int64 with at most 1024 groups");
  require(list_type == 0 || list_type == 1, "group_list_type 0 or 1 in this emulation");
  require(x.size(1) < 65536 && weight.size(2) < 65536, "inner axes below 65536");
  Tensor row_scale = first(row_scales), spread = first(antiquant);
  if (spread.defined()) {
    check_mx(x, weight, spread, row_scale, out);
  } else {
    check_types(x, weight, scale, out);
  }
  if (only_checking()) return;
  if (spread.defined()) {
    x = x.to(at::kFloat) * e8m0_factors(row_scale, x.size(1));
    weight = (e2m1_values(weight) * e8m0_factors(spread, x.size(1))).transpose(1, 2);
    row_scale = Tensor();
  }
  int64_t begin = 0;
  for (int64_t group = 0; group < groups.numel(); ++group) {
    int64_t listed = groups[group].item<int64_t>();
    int64_t end = list_type == 1 ? begin + listed : listed;
    if (end > begin) {
      Tensor rows = x.slice(0, begin, end);
      Tensor of_rows = row_scale.defined() ? row_scale.flatten().slice(0, begin, end) : Tensor();
      Tensor y = one_group(rows, of_rows, weight[group], row(scale, group), row(bias, group), out.scalar_type());
      out.slice(0, begin, end).copy_(y);
    }
    begin = end;
  }
}

LIMITED(GroupedMatmulV4,
      (Tensors x, Tensors weight, Tensors bias, Tensors scale, Tensors, Tensors antiquant, Tensors, Tensors row_scale,
       Tensor groups, Tensors, Tensors, Tensors, int64_t split, int64_t type, int64_t list_type, int64_t, Tensors out,
       Tensors, Tensors) {
        grouped(x, weight, bias, scale, antiquant, row_scale, groups, split, type, list_type, out);
      })
LIMITED(GroupedMatmulV5,
      (Tensors x, Tensors weight, Tensors bias, Tensors scale, Tensors, Tensors antiquant, Tensors, Tensors row_scale,
       Tensor groups, Tensors, Tensors, Tensors, int64_t split, int64_t type, int64_t list_type, int64_t, Ints,
       Tensors out, Tensors, Tensors) {
        grouped(x, weight, bias, scale, antiquant, row_scale, groups, split, type, list_type, out);
      })
