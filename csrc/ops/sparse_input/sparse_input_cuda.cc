// sparse_input on CUDA: the checks of a call, its layout and the memory between its blocks.
#include "ops/sparse_input/sparse_input_cuda.h"

#include "ops/sparse_input/sparse_input_params.h"

namespace tamis {
namespace {

constexpr SparseInputCudaRow kRows[] = {
#define TAMIS_SPARSE_INPUT_CUDA(dtype) {"sparse_input_" #dtype "_sm80up", DType::dtype},
#include "ops/sparse_input/kernels_cuda.def"
#undef TAMIS_SPARSE_INPUT_CUDA
};

Status bad(const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "sparse_input: %s: got %lld, wanted %s", what,
               static_cast<long long>(got), wanted);
}

Status check(const SparseInputArgs& a) {
  if (a.dtype != DType::f16 && a.dtype != DType::bf16) {
    return error(Code::unsupported_dtype, "sparse_input: dtype: got %s, wanted f16 or bf16 on CUDA",
                 name_of(a.dtype));
  }
  if (a.m < 0) return bad("m", a.m, "0 or more");
  if (a.k < 0 || a.k > 1 << 24) return bad("k", a.k, "0 to 2^24");
  if (a.n < 0 || a.n > kWorkspaceTickets * kRowSumColumns) return bad("n", a.n, "0 to 2^21");
  if (a.n % 8 != 0) {
    return error(Code::no_kernel, "sparse_input: n: got %lld, wanted a multiple of 8 on CUDA",
                 static_cast<long long>(a.n));
  }
  if (reinterpret_cast<uintptr_t>(a.w) % 16 != 0) {
    return error(Code::no_kernel,
                 "sparse_input: w: got an address that is no multiple of 16; copy it");
  }
  if (a.m > 1 && (a.x_stride < a.k || a.y_stride < a.n)) {
    return bad("x_stride or y_stride", std::min(a.x_stride, a.y_stride), "a whole row or more");
  }
  if (a.m * a.n > 0 && (!a.y || (a.k > 0 && (!a.x || !a.w || !a.threshold)))) {
    return error(Code::invalid_argument,
                 "sparse_input: x, w, threshold, y: got null, wanted arrays");
  }
  return {};
}

}  // namespace

std::span<const SparseInputCudaRow> sparse_input_cuda_kernels() {
  return kRows;
}

Status sparse_input_workspace(const SparseInputArgs& a, const CudaDevice& device, int64_t* bytes) {
  TAMIS_RETURN_IF_ERROR(check(a));
  const auto m = static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(a.m, 1), kCudaTokens));
  *bytes = kWorkspaceTicketBytes + 4 * row_sum_partials(a.n, input_splits(a, m, device), m);
  return {};
}

SparseInputParams sparse_input_params(const SparseInputArgs& a, int64_t first, void* workspace,
                                      const CudaDevice& device) {
  const auto m = static_cast<int32_t>(std::min<int64_t>(a.m - first, kCudaTokens));
  auto* base = static_cast<uint8_t*>(workspace);
  const int32_t splits = input_splits(a, m, device), groups = input_groups(a.k, splits);
  return {.sum = {.w = static_cast<const uint8_t*>(a.w),
                  .columns = static_cast<int32_t>(a.n),
                  .splits = splits,
                  .m = m,
                  .bias = static_cast<const uint16_t*>(a.bias),
                  .y = static_cast<uint16_t*>(a.y) + first * a.y_stride,
                  .y_stride = a.y_stride,
                  .tickets = reinterpret_cast<uint32_t*>(base),
                  .partial = reinterpret_cast<float*>(base + kWorkspaceTicketBytes)},
          .x = static_cast<const uint16_t*>(a.x) + first * a.x_stride,
          .x_stride = a.x_stride,
          .threshold = a.threshold,
          .k = static_cast<int32_t>(a.k),
          .groups = groups,
          .starts_at = input_starts_at(groups),
          .ids_at = input_ids_at(groups),
          .factors_at = input_factors_at(groups)};
}

}  // namespace tamis
