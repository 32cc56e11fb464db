// What the kernel of every product on CUDA gets; forms of weights add what they need.
#pragma once

#include <cstdint>

#include "ops/spmm/spmm_cuda.h"

namespace tamis {

struct ProductParams {
  const uint8_t* records = nullptr;
  const uint32_t* offsets = nullptr;
  const uint16_t* x = nullptr;
  const uint16_t* bias = nullptr;
  uint16_t* y = nullptr;
  uint32_t* tickets = nullptr;  // of what blocks share
  float* partial = nullptr;     // their sums
  int64_t x_stride = 0, y_stride = 0;
  int32_t rows = 0, cols = 0, m = 0;
  bool x_aligned = false;  // rows of x start at multiples of 16 bytes
};

inline ProductParams product_params(const SpmmCudaArgs& a) {
  auto* workspace = static_cast<uint8_t*>(a.workspace);
  return {.records = static_cast<const uint8_t*>(a.w.records),
          .offsets = a.w.offsets,
          .x = static_cast<const uint16_t*>(a.x),
          .bias = static_cast<const uint16_t*>(a.bias),
          .y = static_cast<uint16_t*>(a.y),
          .tickets = reinterpret_cast<uint32_t*>(workspace),
          .partial = reinterpret_cast<float*>(workspace + kWorkspaceTicketBytes),
          .x_stride = a.x_stride,
          .y_stride = a.y_stride,
          .rows = static_cast<int32_t>(a.w.rows),
          .cols = static_cast<int32_t>(a.w.cols),
          .m = static_cast<int32_t>(a.m),
          .x_aligned = rows_aligned(a.x, a.m, a.x_stride)};
}

}  // namespace tamis
