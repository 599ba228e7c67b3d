// Mixture of experts: choosing experts, sorting tokens by expert, adding the results up again.
#include "entry.h"

using namespace emulator;

static Tensor normed(const Tensor& x, int64_t type) {
  if (type == 0) return at::softmax(x, -1);
  if (type == 1) return at::sigmoid(x);
  // Missing in the documentation; the two public V4 engines for Ascend call it with 2 for sqrt(softplus).
  require(type == 2, "norm_type 0, 1 or 2");
  return at::softplus(x).sqrt();
}

static void weigh(const Tensor& scores, const Tensor& chosen, int64_t type, double factor, double eps, Tensor y) {
  Tensor picked = scores.gather(-1, chosen);
  if (type != 0) picked = picked / (picked.sum(-1, true) + eps);
  y.copy_(picked * factor);
}

LIMITED(MoeGatingTopK,
      (Tensor x, Tensor bias, int64_t k, int64_t k_group, int64_t groups, int64_t, int64_t renorm, int64_t type,
       bool out_flag, double factor, double eps, Tensor y, Tensor experts, Tensor out) {
        require(x.size(1) <= 2048, "at most 2048 experts");
        require(renorm == 0, "renorm 0");
        require(groups == 1 && k_group == 1, "one group in this emulation");
        if (only_checking()) return;
        Tensor scores = normed(x.to(at::kFloat), type);
        Tensor ranked = bias.defined() ? scores + bias.to(at::kFloat) : scores;
        Tensor chosen = std::get<1>(at::sort(ranked, /*stable=*/true, -1, /*descending=*/true)).narrow(-1, 0, k);
        experts.copy_(chosen);
        weigh(scores, chosen, type, factor, eps, y);
        if (out_flag) out.copy_(scores);
      })

LIMITED(MoeGatingTopKV2,
      (Tensor x, Tensor, Tensor ids, Tensor table, int64_t, int64_t, int64_t, int64_t, int64_t renorm, int64_t type,
       bool out_flag, double factor, double eps, Tensor y, Tensor experts, Tensor out) {
        require(x.size(1) <= 2048, "at most 2048 experts");
        require(renorm == 0, "renorm 0");
        if (only_checking()) return;
        Tensor scores = normed(x.to(at::kFloat), type);
        Tensor chosen = table.index_select(0, ids.to(at::kLong)).to(at::kLong);
        experts.copy_(chosen);
        weigh(scores, chosen, type, factor, eps, y);
        if (out_flag) out.copy_(scores);
      })

// scales is float32 absmax / 127 a row, as in aclnnDynamicQuant.
static void quantise_rows(const Tensor& rows, Tensor y, Tensor scales) {
  Tensor scale = rows.abs().amax(-1, true) / 127.0;
  y.copy_((rows / scale.clamp_min(1e-30)).round().clamp(-128, 127));
  scales.copy_(scale.view(scales.sizes()));
}

LIMITED(MoeInitRoutingV3,
      (Tensor x, Tensor expert_idx, Tensor scale, Tensor offset, int64_t active, int64_t, int64_t experts,
       int64_t drop_pad, int64_t count_type, bool, int64_t quant_mode, Ints range, int64_t row_type, Tensor expanded,
       Tensor rows, Tensor counts, Tensor expanded_scale) {
        require(expert_idx.scalar_type() == at::kInt, "expert_idx of int32");
        require(quant_mode == -1 || quant_mode == 1, "quant_mode -1 or 1 in this emulation");
        require(drop_pad == 0, "drop_pad_mode 0 in this emulation");
        require(count_type == 0 || count_type == 1, "expert_tokens_num_type 0 or 1 in this emulation");
        require(!offset.defined(), "no offset without static quantisation");
        require(range[0] >= 0 && range[1] <= experts, "an active_expert_range inside the experts");
        if (only_checking()) return;
        int64_t k = expert_idx.size(1);
        Tensor flat = expert_idx.flatten().to(at::kLong);
        Tensor present = (flat >= range[0]) & (flat < range[1]);
        // Those of other ranks go last and are no part of the result.
        Tensor order = std::get<1>(at::sort(flat.masked_fill(~present, experts), /*stable=*/true, -1, false));
        int64_t kept = present.sum().item<int64_t>();
        if (active > 0) kept = std::min(kept, active);
        Tensor sources = order.narrow(0, 0, kept);
        Tensor tokens = x.index_select(0, at::floor_divide(sources, k));
        if (quant_mode == 1) {
          Tensor wide = tokens.to(at::kFloat);
          if (scale.defined()) {
            Tensor expert = flat.index_select(0, sources) - range[0];
            wide = wide * (scale.size(0) == 1 ? scale : scale.index_select(0, expert));
          }
          quantise_rows(wide, expanded.narrow(0, 0, kept), expanded_scale.narrow(0, 0, kept));
        } else {
          expanded.narrow(0, 0, kept).copy_(tokens);
          if (scale.defined()) {
            expanded_scale.narrow(0, 0, kept).copy_(scale.index_select(0, at::floor_divide(sources, k)));
          }
        }
        if (row_type == 1) {
          rows.narrow(0, 0, kept).copy_(sources);
        } else {
          rows.fill_(-1);
          rows.index_copy_(0, sources, at::arange(kept, rows.options()));
        }
        Tensor amounts = at::bincount(flat.masked_select(present) - range[0], {}, range[1] - range[0]);
        counts.copy_(count_type == 1 ? amounts : amounts.cumsum(0));
      })

LIMITED(MoeFinalizeRoutingV2,
      (Tensor rows, Tensor places, Tensor skip1, Tensor skip2, Tensor bias, Tensor scales, Tensor experts,
       int64_t mode, Tensor out) {
        require(mode >= 0 && mode <= 3, "drop_pad_mode 0 to 3");
        if (only_checking()) return;
        int64_t tokens = out.size(0), k = places.numel() / tokens;
        Tensor flat = rows.to(at::kFloat).reshape({-1, rows.size(-1)});
        // Modes 0 and 1 keep the places choice by choice, 2 and 3 token by token.
        Tensor at_token = mode < 2 ? places.view({k, tokens}).t() : places.view({tokens, k});
        Tensor picked = flat.index_select(0, at_token.flatten().clamp_min(0).to(at::kLong)).view({tokens, k, -1});
        picked = picked.masked_fill((at_token < 0).unsqueeze(-1), 0.0);
        if (bias.defined()) picked = picked + bias.to(at::kFloat).index_select(0, experts.flatten()).view_as(picked);
        if (scales.defined()) picked = picked * scales.to(at::kFloat).unsqueeze(-1);
        Tensor sum = picked.sum(1);
        if (skip1.defined()) sum = sum + skip1;
        if (skip2.defined()) sum = sum + skip2;
        out.copy_(sum);
      })
