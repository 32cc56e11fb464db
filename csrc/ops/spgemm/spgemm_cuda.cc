// spgemm on CUDA: the checks of a call and the memory between its kernels.
#include "ops/spgemm/spgemm_cuda.h"

#include "ops/spgemm/spgemm_params.h"

namespace tamis {
namespace {

constexpr SpgemmCudaRow kRows[] = {
#define TAMIS_SPGEMM_CUDA(dtype) {"spgemm_csr_" #dtype "_sm80up", DType::dtype},
#include "ops/spgemm/kernels_cuda.def"
#undef TAMIS_SPGEMM_CUDA
};

int64_t round16(int64_t bytes) {
  return ceil_div(bytes, 16) * 16;
}

}  // namespace

std::span<const SpgemmCudaRow> spgemm_cuda_kernels() {
  return kRows;
}

Status spgemm_workspace(const SpgemmArgs& a, const CudaDevice& device, int64_t* bytes) {
  TAMIS_RETURN_IF_ERROR(check_spgemm(a));
  *bytes = kWorkspaceTicketBytes + 16 + 3 * round16(4 * a.a.rows) +
           dense_blocks(a.b.cols, device) * dense_bytes(a.b.cols);
  return {};
}

SpgemmParams spgemm_params(const SpgemmArgs& a, void* workspace, const CudaDevice& device) {
  auto* base = static_cast<uint8_t*>(workspace) + kWorkspaceTicketBytes;
  const int64_t rows = round16(4 * a.a.rows);
  return {.a_offsets = a.a.row_offsets,
          .b_offsets = a.b.row_offsets,
          .a_columns = a.a.col_indices,
          .b_columns = a.b.col_indices,
          .a_values = static_cast<const float*>(a.a.values),
          .b_values = static_cast<const float*>(a.b.values),
          .rows = static_cast<int32_t>(a.a.rows),
          .columns = static_cast<int32_t>(a.b.cols),
          .bounds = reinterpret_cast<uint32_t*>(base + 16),
          .numbers = reinterpret_cast<uint32_t*>(base),
          .lists = reinterpret_cast<int32_t*>(base + 16 + rows),
          .dense = base + 16 + 3 * rows,
          .dense_bytes = dense_bytes(a.b.cols),
          .dense_blocks = dense_blocks(a.b.cols, device),
          .counts = nullptr,
          .row_offsets = nullptr,
          .col_indices = nullptr,
          .values = nullptr};
}

}  // namespace tamis
