// Activations to int8 by the row, and to MXFP8 by groups of 32.
#include "../acl/emulator.h"
#include "entry.h"

using namespace emulator;

static void dynamic_quant(const Tensor& x, const Tensor& smooth, const Tensor& groups, Tensor y, Tensor scale) {
  require(!groups.defined(), "no group_index in this emulation");
  require(x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16, "an input of float16 or bfloat16");
  require(y.scalar_type() == at::kChar, "an output of int8 in this emulation");
  if (only_checking()) return;
  Tensor wide = x.to(at::kFloat);
  if (smooth.defined()) wide = wide * smooth.to(at::kFloat);
  Tensor step = wide.abs().amax(-1, true) / 127.0;
  scale.copy_(step.view(scale.sizes()));
  y.copy_((wide / step.clamp_min(1e-30)).round().clamp(-128, 127));
}

LIMITED(DynamicQuant, (Tensor x, Tensor smooth, Tensor y, Tensor scale) { dynamic_quant(x, smooth, {}, y, scale); })
LIMITED(DynamicQuantV2, (Tensor x, Tensor smooth, Tensor groups, aclDataType, Tensor y, Tensor scale, Tensor) {
  dynamic_quant(x, smooth, groups, y, scale);
})

// One scale 2^(floor(log2(absmax)) - emax) a group along the last axis; too large values saturate (OCP MX).
static void mx_quant(const Tensor& x, int64_t axis, const Text& rounding, int64_t block, Tensor y, Tensor scale) {
  require(soc().has_fp8, "Ascend 950");
  require(axis == -1 || axis == x.dim() - 1, "the last axis in this emulation");
  require(rounding == "rint" && block == 32, "rint in blocks of 32 in this emulation");
  require(y.scalar_type() == at::kFloat8_e4m3fn, "float8_e4m3fn in this emulation");
  if (only_checking()) return;
  int64_t width = x.size(-1), groups = 2 * scale.size(-2);
  Tensor padded = at::constant_pad_nd(x.to(at::kFloat), {0, groups * 32 - width});
  Tensor grouped = padded.unflatten(-1, {groups, 32});
  Tensor exponent = at::floor(at::log2(grouped.abs().amax(-1, true))).clamp(-127, 127) - 8;
  exponent = exponent.clamp(-127, 127);
  Tensor unit = at::pow(2.0, exponent);
  Tensor rounded = (grouped / unit).clamp(-448, 448).to(at::kFloat8_e4m3fn);
  y.copy_(rounded.flatten(-2).slice(-1, 0, width));
  scale.view(at::kByte).copy_((exponent + 127).view(scale.sizes()));
}

LIMITED(DynamicMxQuant, (Tensor x, int64_t axis, Text rounding, aclDataType, int64_t block, int64_t, Tensor y,
                       Tensor scale) { mx_quant(x, axis, rounding, block, y, scale); })
LIMITED(DynamicMxQuantV2, (Tensor x, int64_t axis, Text rounding, aclDataType, int64_t block, int64_t, double,
                         Tensor y, Tensor scale) { mx_quant(x, axis, rounding, block, y, scale); })

// [groups, N] -> [rows, N] by the number of rows of each group.
static Tensor spread(const Tensor& values, const Tensor& groups) {
  if (!groups.defined()) return values.to(at::kFloat);
  return at::repeat_interleave(values.to(at::kFloat), groups.to(at::kLong), 0);
}

static void dequant_swiglu_quant(
    const Tensor& x, const Tensor& weight_scale, const Tensor& activation_scale, const Tensor& bias,
    const Tensor& quant_scale, const Tensor& quant_offset, const Tensor& groups, bool left, const Text& mode,
    int64_t swiglu_mode, double limit, double alpha, double glu_bias, Tensor y, Tensor scale) {
  auto type = x.scalar_type();
  require(x.dim() == 2 && (type == at::kInt || type == at::kBFloat16 || type == at::kHalf),
          "x [T, 2H] of int32, float16 or bfloat16");
  require(type != at::kInt || activation_scale.defined(), "with x of int32 an activation_scale");
  require(!groups.defined() || (y.size(1) <= 10496 && y.size(1) % 64 == 0),
          "with group_index an H that 64 divides, at most 10496");
  require(mode == "dynamic" && !bias.defined() && !quant_offset.defined(),
          "dynamic quantisation without bias and offset in this emulation");
  if (only_checking()) return;
  int64_t rows = groups.defined() ? groups.sum().item<int64_t>() : x.size(0);
  Tensor wide = x.narrow(0, 0, rows).to(at::kFloat);
  if (weight_scale.defined()) wide = wide * spread(weight_scale, groups);
  if (activation_scale.defined()) wide = wide * activation_scale.reshape({-1, 1}).narrow(0, 0, rows);
  Tensor gate, up;
  if (swiglu_mode == 1) {
    gate = wide.slice(1, 0, std::nullopt, 2);
    up = wide.slice(1, 1, std::nullopt, 2);
  } else {
    auto halves = wide.chunk(2, 1);
    gate = halves[left ? 0 : 1];
    up = halves[left ? 1 : 0];
  }
  Tensor inner = at::silu(gate) * up;
  if (swiglu_mode != 0) {
    gate = gate.clamp_max(limit);
    inner = gate * at::sigmoid(gate * alpha) * (up.clamp(-limit, limit) + glu_bias);
  }
  if (quant_scale.defined()) inner = inner * spread(quant_scale, groups);
  Tensor step = inner.abs().amax(-1, true) / 127.0;
  scale.narrow(0, 0, rows).copy_(step.squeeze(-1));
  y.narrow(0, 0, rows).copy_((inner / step.clamp_min(1e-30)).round().clamp(-128, 127));
}

LIMITED(DequantSwigluQuant, (Tensor x, Tensor weight_scale, Tensor activation_scale, Tensor bias, Tensor quant_scale,
                           Tensor offset, Tensor groups, bool left, Text mode, Tensor y, Tensor scale) {
  dequant_swiglu_quant(x, weight_scale, activation_scale, bias, quant_scale, offset, groups, left, mode, 0, 0, 1, 0,
                       y, scale);
})
LIMITED(DequantSwigluQuantV2,
      (Tensor x, Tensor weight_scale, Tensor activation_scale, Tensor bias, Tensor quant_scale, Tensor offset,
       Tensor groups, bool left, Text mode, aclDataType, Text, int64_t, int64_t swiglu_mode, double limit,
       double alpha, double glu_bias, Tensor y, Tensor scale) {
        dequant_swiglu_quant(x, weight_scale, activation_scale, bias, quant_scale, offset, groups, left, mode,
                             swiglu_mode, limit, alpha, glu_bias, y, scale);
      })
