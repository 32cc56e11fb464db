// spmm_grad on CUDA: the checks of a call.
#include "ops/spmm_grad/spmm_grad_cuda.h"

#include "ops/spmm_grad/grad_params.h"

namespace tamis {
namespace {

constexpr SpmmGradCudaRow kRows[] = {
#define TAMIS_SPMM_GRAD_CUDA(dtype) {"spmm_grad_" #dtype "_sm80up", DType::dtype},
#include "ops/spmm_grad/kernels_cuda.def"
#undef TAMIS_SPMM_GRAD_CUDA
};

int64_t parts(const MatrixView& w) {
  return ceil_div(mask_words(w.cols), kUnpackWords);
}

}  // namespace

std::span<const SpmmGradCudaRow> spmm_grad_cuda_kernels() {
  return kRows;
}

Status check_dense(const char* op, const MatrixView& w, const void* dense) {
  if (w.format != Format::bitmap && w.format != Format::nm) {
    return error(Code::no_kernel, "%s: w: got %s, wanted bitmap or nm on CUDA", op,
                 name_of(w.format));
  }
  if (w.dtype != DType::f16 && w.dtype != DType::bf16) {
    return error(Code::unsupported_dtype, "%s: dtype: got %s, wanted f16 or bf16 on CUDA", op,
                 name_of(w.dtype));
  }
  if (w.nnz > UINT32_MAX || parts(w) * ceil_div(w.rows, kUnpackWarps) > INT32_MAX) {
    return error(Code::invalid_argument,
                 "%s: n, k, nnz: got %lld, %lld and %lld, too many for one launch", op,
                 static_cast<long long>(w.rows), static_cast<long long>(w.cols),
                 static_cast<long long>(w.nnz));
  }
  if (w.rows % 8 != 0 || w.cols % 8 != 0 || reinterpret_cast<uintptr_t>(dense) % 16 != 0) {
    return error(Code::no_kernel,
                 "%s: n, k: got %lld and %lld, wanted multiples of 8 and arrays on 16 bytes", op,
                 static_cast<long long>(w.rows), static_cast<long long>(w.cols));
  }
  return {};
}

DenseParams dense_params(const MatrixView& w, void* values, void* dense) {
  return {.mask = w.mask,
          .row_offsets = w.format == Format::nm ? nullptr : w.row_offsets,
          .row_values = w.format == Format::nm ? w.cols / w.of * w.keep : 0,
          .values = static_cast<uint16_t*>(values),
          .nnz = w.nnz,
          .dense = static_cast<uint16_t*>(dense),
          .rows = static_cast<int32_t>(w.rows),
          .k = static_cast<int32_t>(w.cols),
          .words = static_cast<int32_t>(mask_words(w.cols)),
          .parts = static_cast<int32_t>(parts(w))};
}

}  // namespace tamis
