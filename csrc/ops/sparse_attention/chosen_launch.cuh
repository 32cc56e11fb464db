// Attention over chosen tokens in the launch that chooses them, for sm_90: a cluster of blocks a
// head. A source for each dtype and d, as a kernel takes a minute to compile.
#pragma once

#include "ops/kv_select/choose_launch.h"
#include "ops/sparse_attention/attend_chosen.cuh"
#include "ops/sparse_attention/kernels_cuda.h"

namespace tamis {

template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kChooseThreads, 1)
    chosen_attention(const TAMIS_GRID_CONSTANT ChosenParams p) {
  attend_chosen<Config>(p);
}

template <class Config>
Status launch_chosen(const ChosenParams& p, const CudaDevice& device, void* stream) {
  return launch_wide<&chosen_attention<Config>>("chosen_attention", device, device.shared_per_block,
                                                choose_grid(p.choose, p.shared_bytes, stream), p);
}

// The last token's label, as a launch of its own.
inline KvAppendLabelsArgs last_label(const ChosenAttentionArgs& args) {
  const KvUnits& units = args.choose.estimate.units;
  const KvSegment& s = args.attention.segments[0];
  const int64_t last = s.tokens - 1;
  return {.labels = units.labels,
          .keys_dtype = args.attention.q_dtype,
          .batch = args.attention.batch,
          .kv_heads = args.attention.kv_heads,
          .head_dim = args.attention.head_dim,
          .keys = static_cast<const uint16_t*>(s.keys) + last * s.key_token_stride,
          .key_batch_stride = s.key_batch_stride,
          .key_head_stride = s.key_head_stride,
          .key_token_stride = s.key_token_stride,
          .channels = units.channels,
          .first = last,
          .count = 1,
          .records = const_cast<void*>(units.data),
          .batch_stride_bytes = units.batch_stride,
          .head_stride_bytes = units.head_stride};
}

template <DType kType, int kDim, int kRows>
Status launch_chosen_rows(const ChosenAttentionArgs& args, const CudaDevice& device, void* stream) {
  using Whole = ChosenConfig<kType, kDim, true, kRows>;
  using Half = ChosenConfig<kType, kDim, false, kRows>;
  ChooseFit fit;
  TAMIS_RETURN_IF_ERROR(
      find_choose_fit<&chosen_attention<Whole>>("chosen_attention", device, &fit));
  const KvChooseArgs& c = args.choose;
  ChooseParams choose = choose_params(c.estimate, c.select, device, fit);
  if (args.new_label && choose.whole) choose.new_label = const_cast<void*>(c.estimate.units.data);
  if (args.new_label && !choose.whole) {
    TAMIS_RETURN_IF_ERROR(kv_append_labels_cuda(last_label(args), device, stream));
  }
  const ChosenParams p = chosen_params(
      choose, attention_params({.attention = args.attention}, {.splits = 1}, 1), kDim);
  return p.choose.whole ? launch_chosen<Whole>(p, device, stream)
                        : launch_chosen<Half>(p, device, stream);
}

template <DType kType, int kDim>
Status chosen_attention_sm90(const ChosenAttentionArgs& args, const CudaDevice& device,
                             void* stream) {
  return args.attention.rows <= kChooseFewRows
             ? launch_chosen_rows<kType, kDim, kChooseFewRows>(args, device, stream)
             : launch_chosen_rows<kType, kDim, kChooseRows>(args, device, stream);
}

}  // namespace tamis
