// spmm_grad on CUDA: the checks of a call and the memory between its kernels.
#include "ops/spmm_grad/spmm_grad_cuda.h"

#include "ops/spmm_grad/grad_params.h"

namespace tamis {
namespace {

constexpr SpmmGradCudaRow kRows[] = {
#define TAMIS_SPMM_GRAD_CUDA(dtype) {"spmm_grad_" #dtype "_sm80up", DType::dtype},
#include "ops/spmm_grad/kernels_cuda.def"
#undef TAMIS_SPMM_GRAD_CUDA
};

bool aligned(const void* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 8 == 0;
}

// What both ops ask of a device's arrays beyond check_*.
Status check(const char* op, const MatrixView& w, DType dtype, int64_t m, bool all_aligned) {
  if (w.format == Format::csr) {
    return error(Code::no_kernel, "%s: w: got csr, wanted bitmap or nm on CUDA", op);
  }
  if (dtype == DType::f32 || w.dtype != dtype) {
    return error(Code::unsupported_dtype,
                 "%s: dtype: got %s with %s weights, wanted f16 or bf16 for both on CUDA", op,
                 name_of(dtype), name_of(w.dtype));
  }
  if (m > 1 << 30 || w.nnz > UINT32_MAX || ceil_div(m, kGradTile) * kMostGradSplits > 65535 ||
      ceil_div(w.rows, kGradTile) > 65535) {
    return error(Code::invalid_argument, "%s: m, nnz: got %lld and %lld, too many for one launch",
                 op, static_cast<long long>(m), static_cast<long long>(w.nnz));
  }
  if (w.rows % 8 != 0 || w.cols % 8 != 0 || !all_aligned) {
    return error(Code::no_kernel,
                 "%s: n, k: got %lld and %lld, wanted multiples of 8 and arrays on 16 bytes", op,
                 static_cast<long long>(w.rows), static_cast<long long>(w.cols));
  }
  return {};
}

Status check(const SpmmTArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_spmm_t(a));
  return check("spmm_t", a.w, a.dtype, a.m,
               aligned(a.dy, a.dy_stride) && aligned(a.dx, a.dx_stride));
}

Status check(const SddmmArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_sddmm(a));
  return check("sddmm", a.w, a.dtype, a.m, aligned(a.dy, a.dy_stride) && aligned(a.x, a.x_stride));
}

int64_t places_bytes(const MatrixView& w) {
  return ceil_div(4 * w.rows * mask_words(w.cols), 16) * 16;
}

GradMask mask_of(const MatrixView& w, void* workspace) {
  return {.mask = w.mask,
          .row_offsets = w.format == Format::nm ? nullptr : w.row_offsets,
          .row_values = w.format == Format::nm ? w.cols / w.of * w.keep : 0,
          .rows = static_cast<int32_t>(w.rows),
          .words = static_cast<int32_t>(mask_words(w.cols)),
          .places = workspace == nullptr
                        ? nullptr
                        : reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(workspace) +
                                                      kWorkspaceTicketBytes)};
}

}  // namespace

std::span<const SpmmGradCudaRow> spmm_grad_cuda_kernels() {
  return kRows;
}

Status spmm_t_workspace(const SpmmTArgs& a, const CudaDevice& device, int64_t* bytes) {
  TAMIS_RETURN_IF_ERROR(check(a));
  const int64_t splits = spmm_t_splits(a.m, a.w.rows, a.w.cols, device);
  *bytes =
      kWorkspaceTicketBytes + places_bytes(a.w) + (splits > 1 ? 4 * splits * a.m * a.w.cols : 0);
  return {};
}

Status sddmm_workspace(const SddmmArgs& a, const CudaDevice&, int64_t* bytes) {
  TAMIS_RETURN_IF_ERROR(check(a));
  *bytes = kWorkspaceTicketBytes + places_bytes(a.w);
  return {};
}

Status check_dense(const char* op, const MatrixView& w, const void* dense) {
  return check(op, w, w.dtype, 0, aligned(dense, 8));
}

SpmmTParams spmm_t_params(const SpmmTArgs& a, void* workspace, const CudaDevice& device) {
  const GradMask w = mask_of(a.w, workspace);
  return {.w = w,
          .values = static_cast<const uint16_t*>(a.w.values),
          .dy = static_cast<const uint16_t*>(a.dy),
          .dy_stride = a.dy_stride,
          .dx = static_cast<uint16_t*>(a.dx),
          .dx_stride = a.dx_stride,
          .m = static_cast<int32_t>(a.m),
          .k = static_cast<int32_t>(a.w.cols),
          .splits = spmm_t_splits(a.m, a.w.rows, a.w.cols, device),
          .partial =
              reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(w.places) + places_bytes(a.w))};
}

DenseParams dense_params(const MatrixView& w, void* values, void* dense) {
  return {.w = mask_of(w, nullptr),
          .values = static_cast<uint16_t*>(values),
          .dense = static_cast<uint16_t*>(dense),
          .k = static_cast<int32_t>(w.cols),
          .parts = static_cast<int32_t>(ceil_div(w.cols, 64 * 32)),
          .nnz = w.nnz};
}

SddmmParams sddmm_params(const SddmmArgs& a, void* workspace) {
  return {.w = mask_of(a.w, workspace),
          .dy = static_cast<const uint16_t*>(a.dy),
          .dy_stride = a.dy_stride,
          .x = static_cast<const uint16_t*>(a.x),
          .x_stride = a.x_stride,
          .dw = static_cast<uint16_t*>(a.dw),
          .m = static_cast<int32_t>(a.m),
          .k = static_cast<int32_t>(a.w.cols)};
}

}  // namespace tamis
