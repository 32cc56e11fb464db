// Maps of matrices for copies of boxes, made by the driver, which is asked for its function so that
// nothing links to it.
#pragma once

#include <cudaTypedefs.h>

#include "base/cuda/launch.h"
#include "base/cuda/tensor_map.h"
#include "base/dtype.h"

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

inline Status make_tensor_map(const char* function, const MatrixBoxes& boxes, DType dtype,
                              TensorMap* map) {
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) {
    return error(Code::no_kernel,
                 "%s: CUDA: got a driver without tensor maps, wanted 12.0 or later", function);
  }
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(boxes.cols),
                              static_cast<cuuint64_t>(boxes.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(2 * boxes.stride)};  // bytes
  const cuuint32_t box[] = {static_cast<cuuint32_t>(kBoxCols),
                            static_cast<cuuint32_t>(boxes.box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult made = encode(
      reinterpret_cast<CUtensorMap*>(map),
      dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
      const_cast<void*>(boxes.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (made == CUDA_SUCCESS) return {};
  return error(Code::no_kernel, "%s: CUDA: got result %d of a tensor map, wanted success", function,
               static_cast<int>(made));
}

}  // namespace tamis
