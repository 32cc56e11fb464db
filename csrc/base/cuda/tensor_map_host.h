// Maps of matrices for copies of boxes, made by the driver, which is asked for its function so that
// nothing links to it.
#pragma once

#include <cudaTypedefs.h>

#include "base/cuda/launch.h"
#include "base/cuda/tensor_map.h"

namespace tamis {

inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t asked = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &result);
    const bool there = asked == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(there ? function : nullptr);
  }();
  return found;
}

// The sizes and the box in elements, first those that lie side by side; strides in bytes, but for
// that of the first.
template <size_t kRank>
Status make_tensor_map(const char* function, const void* data, CUtensorMapDataType type,
                       const cuuint64_t (&sizes)[kRank], const cuuint64_t (&strides)[kRank - 1],
                       const cuuint32_t (&box)[kRank], CUtensorMapSwizzle swizzle, TensorMap* map) {
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) {
    return error(Code::no_kernel,
                 "%s: CUDA: got a driver without tensor maps, wanted 12.0 or later", function);
  }
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult made =
      encode(reinterpret_cast<CUtensorMap*>(map), type, kRank, const_cast<void*>(data), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (made == CUDA_SUCCESS) return {};
  return error(Code::no_kernel, "%s: CUDA: got result %d of a tensor map, wanted success", function,
               static_cast<int>(made));
}

inline Status make_tensor_map(const char* function, const MatrixBoxes& b, TensorMap* map) {
  return make_tensor_map<2>(
      function, b.data, CU_TENSOR_MAP_DATA_TYPE_UINT16,
      {static_cast<cuuint64_t>(b.cols), static_cast<cuuint64_t>(b.rows)},
      {static_cast<cuuint64_t>(2 * b.stride)},
      {static_cast<cuuint32_t>(kBoxCols), static_cast<cuuint32_t>(b.box_rows)},
      CU_TENSOR_MAP_SWIZZLE_128B, map);
}

inline Status make_tensor_map(const char* function, const HeadBoxes& b, TensorMap* map) {
  const auto wide = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  return make_tensor_map<4>(
      function, b.data, CU_TENSOR_MAP_DATA_TYPE_UINT16,
      {wide(b.cols), wide(b.rows), wide(b.heads), wide(b.batches)},
      {wide(2 * b.stride), wide(2 * b.head_stride), wide(2 * b.batch_stride)},
      {static_cast<cuuint32_t>(kBoxCols), static_cast<cuuint32_t>(b.box_rows), 1, 1},
      CU_TENSOR_MAP_SWIZZLE_128B, map);
}

inline Status make_tensor_map(const char* function, const RecordBoxes& b, TensorMap* map) {
  const auto words = static_cast<cuuint32_t>(b.record_bytes / 8);
  const auto bytes = static_cast<cuuint64_t>(b.record_bytes),
             cols = static_cast<cuuint64_t>(b.cols);
  return make_tensor_map<3>(function, b.data, CU_TENSOR_MAP_DATA_TYPE_INT64,
                            {words, cols, static_cast<cuuint64_t>(b.rows)}, {bytes, bytes * cols},
                            {words, 1, static_cast<cuuint32_t>(b.box_rows)},
                            CU_TENSOR_MAP_SWIZZLE_NONE, map);
}

}  // namespace tamis
