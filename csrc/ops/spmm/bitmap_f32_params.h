// What the bitmap kernels for 32-bit weights get, and the shared memory they and the plan agree on.
#pragma once

#include <cstdint>

#include "ops/spmm/spmm_cuda.h"

namespace tamis {

inline constexpr int64_t kMaxBitmapF32Tokens = 16;
// Rows that a block has at a time: x of 16 tokens is more than an L1 cache holds, so that each row
// more that reads it saves L2.
constexpr int32_t bitmap_f32_rows(int32_t tokens) {
  return tokens <= 8 ? 4 : 8;
}
inline constexpr int32_t kBitmapF32Warps = 8;   // of a block, at most
inline constexpr int32_t kBitmapF32Words = 32;  // of a row that a warp has at a time, at most,
inline constexpr int32_t kBitmapF32Unit = 4;    // and of which those are multiples

// Shared memory of a block, all of it twice, for these rows and those before or behind: for each
// warp and row how many values it has; sums of its warps; for each warp words of the rows, each
// half beside the index of its first value.
inline constexpr int32_t kBitmapF32CountBytes = 4 * kBitmapF32Warps * 8;
inline constexpr int32_t kBitmapF32SumsAt = 2 * kBitmapF32CountBytes;
inline constexpr int32_t kBitmapF32SumBytes =
    kBitmapF32CountBytes * static_cast<int32_t>(kMaxBitmapF32Tokens);
inline constexpr int32_t kBitmapF32WordsAt = kBitmapF32SumsAt + 2 * kBitmapF32SumBytes;
constexpr int64_t bitmap_f32_shared(int32_t rows, int32_t warps, int32_t warp_words) {
  return kBitmapF32WordsAt + int64_t{2} * 16 * rows * warps * warp_words;
}

struct BitmapF32Params {
  const uint64_t* mask = nullptr;  // [rows, words]
  const float* values = nullptr;
  const int64_t* row_offsets = nullptr;  // [rows + 1], or null: every row has row_values
  int64_t row_values = 0;
  const float* x = nullptr;
  const float* bias = nullptr;
  float* y = nullptr;  // or where the dense weight goes
  int64_t x_stride = 0, y_stride = 0;
  int32_t rows = 0, cols = 0, m = 0;
  int32_t words = 0;                  // of a row of the mask
  int32_t warps = 0, warp_words = 0;  // of a block; words of a row that each has at a time
  int32_t parts = 0;                  // that a block takes a row in, one after another
  int32_t blocks = 0;                 // which take the rows in turns
  bool pairs = false;                 // columns of x, or of the dense weight, come as 8 bytes
};

// The plan with that many warps a block, 4 to kBitmapF32Warps, and up to so many blocks.
SpmmCudaPlan lay_out_bitmap_f32(const PackedView& w, int64_t m, int32_t warps, int64_t blocks);

Status plan_spmm_bitmap_f32(const PackedView& w, int64_t m, const CudaDevice& device,
                            SpmmCudaPlan* plan);

BitmapF32Params bitmap_f32_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);
// Written out as a call of one token would take the rows.
BitmapF32Params expand_bitmap_f32_params(const PackedView& w, const SpmmCudaPlan& plan, void* out,
                                         int64_t out_stride);

}  // namespace tamis
