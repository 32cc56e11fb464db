// Plan of the bitmap product of 32-bit weights: warps of a block.
#include <algorithm>

#include "ops/spmm/bitmap_f32_params.h"

namespace tamis {
namespace {

int64_t words(const PackedView& w) {
  return ceil_div(w.cols, 64);
}

// Of a row that a warp has at a time: whole multiples of those on their way.
int32_t warp_words(const PackedView& w, int32_t warps) {
  const int64_t all = std::min<int64_t>(ceil_div(words(w), warps), kBitmapF32Words);
  return static_cast<int32_t>(ceil_div(all, kBitmapF32Unit) * kBitmapF32Unit);
}

BitmapF32Params weight_params(const PackedView& w, const SpmmCudaPlan& plan) {
  BitmapF32Params p{.mask = w.mask,
                    .values = static_cast<const float*>(w.records),
                    .row_offsets = w.row_offsets,
                    .row_values = w.row_values};
  p.rows = static_cast<int32_t>(w.rows);
  p.cols = static_cast<int32_t>(w.cols);
  p.words = static_cast<int32_t>(words(w));
  p.warps = plan.warps_k;
  p.warp_words = warp_words(w, plan.warps_k);
  p.parts = static_cast<int32_t>(std::max<int64_t>(ceil_div(words(w), p.warps * p.warp_words), 1));
  p.blocks = plan.blocks_n;
  return p;
}

// Whether columns of rows that lie so lie in whole pairs on multiples of 8 bytes.
bool has_pairs(const void* matrix, int64_t rows, int64_t cols, int64_t stride) {
  return reinterpret_cast<uintptr_t>(matrix) % 8 == 0 && cols % 2 == 0 &&
         (rows == 1 || stride % 2 == 0);
}

}  // namespace

SpmmCudaPlan lay_out_bitmap_f32(const PackedView& w, int64_t m, int32_t warps, int64_t blocks) {
  SpmmCudaPlan p{.tokens = m <= 1   ? 1
                           : m <= 2 ? 2
                           : m <= 4 ? 4
                           : m <= 8 ? 8
                                    : static_cast<int32_t>(kMaxBitmapF32Tokens),
                 .warps_k = warps,
                 .splits = 1};
  const int32_t rows = bitmap_f32_rows(p.tokens);
  p.blocks_n = static_cast<int32_t>(std::min(ceil_div(w.rows, rows), blocks));
  p.shared_bytes = bitmap_f32_shared(rows, warps, warp_words(w, warps));
  return p;
}

Status plan_spmm_bitmap_f32(const PackedView& w, int64_t m, const CudaDevice& device,
                            SpmmCudaPlan* plan) {
  if (m < 1 || m > kMaxBitmapF32Tokens) {
    return error(Code::invalid_argument,
                 "spmm: m: got %lld, wanted 1 to %lld for f32 bitmap weights on CUDA",
                 static_cast<long long>(m), static_cast<long long>(kMaxBitmapF32Tokens));
  }
  // As many blocks as find room side by side, so that loads of one never end before its last rows.
  // Few warps, which then have more words of a row before they meet, but where rows are long, or
  // too few to go round. Timed on an H200 (bench/results/gpu.md).
  constexpr int64_t kLong = 128;        // words
  const int64_t room = m <= 8 ? 2 : 1;  // blocks of kBitmapF32Warps on an SM
  const int64_t groups = ceil_div(w.rows, bitmap_f32_rows(static_cast<int32_t>(m)));
  const bool many = words(w) >= kLong || groups <= room * device.sms;
  const int32_t warps = many ? kBitmapF32Warps : kBitmapF32Warps / 2;
  *plan = lay_out_bitmap_f32(w, m, warps, room * device.sms * kBitmapF32Warps / warps);
  return {};
}

BitmapF32Params bitmap_f32_params(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  BitmapF32Params p = weight_params(a.w, plan);
  p.x = static_cast<const float*>(a.x);
  p.bias = static_cast<const float*>(a.bias);
  p.y = static_cast<float*>(a.y);
  p.x_stride = a.x_stride;
  p.y_stride = a.y_stride;
  p.m = static_cast<int32_t>(a.m);
  p.pairs = has_pairs(a.x, a.m, a.w.cols, a.x_stride);
  return p;
}

BitmapF32Params expand_bitmap_f32_params(const PackedView& w, const SpmmCudaPlan& plan, void* out,
                                         int64_t out_stride) {
  BitmapF32Params p = weight_params(w, plan);
  p.y = static_cast<float*>(out);
  p.y_stride = out_stride;
  p.pairs = has_pairs(out, w.rows, w.cols, out_stride);
  return p;
}

}  // namespace tamis
