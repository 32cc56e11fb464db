// spmm on CUDA: the list of kernels, the choice, the checks of a call.
#include "ops/spmm/spmm_cuda.h"

#include "ops/spmm/kernels_cuda.h"

namespace tamis {
namespace {

constexpr SpmmCudaRow kKernels[] = {
#define TAMIS_SPMM_CUDA(format, w, x, capability, exact) \
  {"spmm_" #format "_" #w "_" #x "_sm" #capability,      \
   PackedFormat::format,                                 \
   DType::w,                                             \
   DType::x,                                             \
   capability,                                           \
   exact,                                                \
   &spmm_##format##_##w##_##x##_sm##capability},
#include "ops/spmm/kernels_cuda.def"
#undef TAMIS_SPMM_CUDA
};

Status check(const SpmmCudaArgs& a, const SpmmCudaPlan& plan) {
  if (plan.splits < 1 || a.m > plan.tokens || a.m < 1) {
    return error(Code::invalid_argument, "spmm: plan: got one for up to %d tokens, wanted %lld",
                 plan.tokens, static_cast<long long>(a.m));
  }
  if (a.m > 1 && (a.x_stride < a.w.cols || a.y_stride < a.w.rows)) {
    return error(Code::invalid_argument,
                 "spmm: x_stride, y_stride: got %lld and %lld, wanted at least %lld and %lld",
                 static_cast<long long>(a.x_stride), static_cast<long long>(a.y_stride),
                 static_cast<long long>(a.w.cols), static_cast<long long>(a.w.rows));
  }
  if (a.x == nullptr || a.y == nullptr || (a.w.records == nullptr && a.w.record_bytes > 0) ||
      (has_offsets(a.w.format) && a.w.offsets == nullptr) ||
      (has_byte_codes(a.w.format) && a.w.scales == nullptr)) {
    return error(Code::invalid_argument, "spmm: x, y, w: got null, wanted arrays on the device");
  }
  const bool wide = a.w.dtype == DType::f32;  // values are read one by one
  if (a.w.format == PackedFormat::bitmap &&
      (a.w.mask == nullptr || (!wide && reinterpret_cast<uintptr_t>(a.w.records) % 16 != 0))) {
    return error(Code::invalid_argument,
                 "spmm: w: got no mask, or values off 16 bytes, wanted both for bitmap weights");
  }
  if (wide && a.w.record_bytes / 4 > UINT32_MAX) {
    return error(Code::invalid_argument, "spmm: w: got %lld values, wanted fewer than 2^32 on CUDA",
                 static_cast<long long>(a.w.record_bytes / 4));
  }
  if (a.w.format == PackedFormat::bitmap && !wide && (a.w.rows % 8 != 0 || a.w.cols % 8 != 0)) {
    return error(Code::invalid_argument,
                 "spmm: w: got bitmap weights of %lld x %lld, wanted multiples of 8 on CUDA",
                 static_cast<long long>(a.w.rows), static_cast<long long>(a.w.cols));
  }
  if (has_byte_codes(a.w.format) && a.w.group_size % 128 != 0) {
    return error(Code::invalid_argument,
                 "spmm: w: got scales for groups of %lld columns, wanted a multiple of 128, or 0 "
                 "for whole rows, on CUDA",
                 static_cast<long long>(a.w.group_size));
  }
  if (a.workspace_bytes < plan.workspace_bytes ||
      reinterpret_cast<uintptr_t>(a.workspace) % 16 != 0) {
    return error(
        Code::invalid_argument, "spmm: workspace: got %lld bytes, wanted %lld at a multiple of 16",
        static_cast<long long>(a.workspace_bytes), static_cast<long long>(plan.workspace_bytes));
  }
  return {};
}

}  // namespace

std::span<const SpmmCudaRow> spmm_cuda_kernels() {
  return kKernels;
}

const SpmmCudaRow* choose_spmm_cuda(PackedFormat format, DType dtype, int32_t capability) {
  for (const SpmmCudaRow& row : kKernels) {
    const bool runs = row.exact ? capability == row.capability : capability >= row.capability;
    if (row.format == format && row.x_dtype == dtype && runs) return &row;
  }
  return nullptr;
}

Status spmm_cuda(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                 void* stream) {
  TAMIS_RETURN_IF_ERROR(check(a, plan));
  const SpmmCudaRow* row = choose_spmm_cuda(a.w.format, a.w.dtype, device.capability);
  if (row == nullptr) {
    return error(Code::no_kernel, "spmm: w: no kernel takes it as %s with x of %s on sm_%d",
                 name_of(a.w.format), name_of(a.w.dtype), device.capability);
  }
  return row->run(a, plan, device, stream);
}

Status expand_cuda(const PackedView& w, void* out, int64_t out_stride, const CudaDevice& device,
                   void* stream) {
  switch (w.format) {
    case PackedFormat::m24:
      return expand_m24_cuda(w, out, out_stride, stream);
    case PackedFormat::g4:
      return expand_g4_cuda(w, out, out_stride, stream);
    case PackedFormat::sell4:
      return expand_sell4_cuda(w, out, out_stride, stream);
    case PackedFormat::gap:
      return expand_gap_cuda(w, out, out_stride, stream);
    case PackedFormat::p24:
      return expand_p24_cuda(w, out, out_stride, device, stream);
    case PackedFormat::r24:
      return expand_r24_cuda(w, out, out_stride, stream);
    case PackedFormat::bitmap:
      if (w.dtype == DType::f32) return expand_bitmap_f32_cuda(w, out, out_stride, device, stream);
      return error(Code::no_kernel, "unpack: w: got %s weights, wanted the mask that they have",
                   name_of(w.format));
    case PackedFormat::m24i8:
      return expand_m24i8_cuda(w, out, out_stride, stream);
    case PackedFormat::m24i4:
      return expand_m24i4_cuda(w, out, out_stride, stream);
    case PackedFormat::t16i8:
      return expand_t16i8_cuda(w, out, out_stride, stream);
    case PackedFormat::t16:
      break;
  }
  return expand_t16_cuda(w, out, out_stride, stream);
}

}  // namespace tamis
