// kv_edit from sm_80 on.
#include "base/cuda/launch.h"
#include "format/matrix.h"
#include "ops/kv_edit/gather.cuh"
#include "ops/kv_edit/merge_means.cuh"

namespace tamis {
namespace {

TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kMergeThreads, 4) kv_merge_scales(const MergeParams p) {
  merge_scales(p);
}
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kTileThreads, 3) kv_merge_nearest(const MergeParams p) {
  merge_nearest<Config>(p);
}
template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kMergeThreads, kType == DType::f32 ? 2 : 3)
    kv_merge_join(const MergeParams p) {
  merge_join<kType>(p);
}
template <class Piece, bool kInPlace>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kGatherThreads, 4) kv_gather_pieces(const GatherParams p) {
  gather_pieces<Piece, kInPlace>(p);
}

CudaGrid grid(int64_t blocks, int64_t heads, int32_t threads, int32_t shared_bytes,
              const CudaDevice& device, void* stream) {
  return {.grid = dim3(static_cast<uint32_t>(blocks), static_cast<uint32_t>(heads)),
          .threads = static_cast<uint32_t>(threads),
          .shared_bytes = static_cast<size_t>(shared_bytes),
          .early = device.capability >= 90,
          .stream = stream};
}

template <DType kType>
Status merge(const MergeParams& p, int64_t heads, const CudaDevice& device, void* stream) {
  using Config = MergeConfig<kType>;
  if (p.dropped.stride > 0) {
    TAMIS_RETURN_IF_ERROR(launch("kv_merge",
                                 grid(ceil_div(p.kept.stride + p.dropped.stride, kMergeWarps),
                                      heads, kMergeThreads, 0, device, stream),
                                 &kv_merge_scales, p));
    TAMIS_RETURN_IF_ERROR((launch_wide<&kv_merge_nearest<Config>>(
        "kv_merge", device, device.shared_per_block,
        grid(ceil_div(p.dropped.stride, Config::kKept), heads, kTileThreads,
             merge_shared(p.kinds, p.row_bytes), device, stream),
        p)));
  }
  if (p.kept.stride == 0) return {};
  return launch("kv_merge",
                grid(ceil_div(p.kept.stride, kMergeWarps) * (p.out_keys ? 2 : 1), heads,
                     kMergeThreads, kMergeJoinShared, device, stream),
                &kv_merge_join<kType>, p);
}

// In the order of merge_cuda_kernels(), from the same list.
constexpr Status (*kLaunchers[])(const MergeParams&, int64_t, const CudaDevice&, void*) = {
#define TAMIS_KV_MERGE_CUDA(dtype) &merge<DType::dtype>,
#include "ops/kv_edit/kernels_cuda.def"
#undef TAMIS_KV_MERGE_CUDA
};

template <class Piece>
Status gather(const KvGatherArgs& a, const CudaDevice& device, void* stream) {
  const GatherParams p = gather_params(a);
  const bool in_place = gathers_in_place(a);
  const int64_t rows = in_place ? 1 : ceil_div(a.index.stride, gather_rows_at_once(p.slice));
  return launch(
      "kv_gather",
      grid(rows * ceil_div(p.pieces, p.slice), a.heads, kGatherThreads, 0, device, stream),
      in_place ? &kv_gather_pieces<Piece, true> : &kv_gather_pieces<Piece, false>, p);
}

}  // namespace

Status kv_merge_cuda(const KvMergeArgs& a, void* workspace, int64_t workspace_bytes,
                     const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_merge_cuda(a, device));
  if (workspace_bytes < merge_workspace(a) || reinterpret_cast<uintptr_t>(workspace) % 16 != 0) {
    return error(Code::invalid_argument,
                 "kv_merge: workspace: got %lld bytes, wanted %lld at a multiple of 16",
                 static_cast<long long>(workspace_bytes),
                 static_cast<long long>(merge_workspace(a)));
  }
  const MergeParams p = merge_params(a, workspace);
  if (a.heads == 0) return {};
  const MergeCudaRow* row = choose_merge_cuda(a.dtype);
  return kLaunchers[row - merge_cuda_kernels().data()](p, a.heads, device, stream);
}

Status kv_gather_cuda(const KvGatherArgs& a, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_gather_cuda(a));
  if (a.heads * a.index.stride * a.row_bytes == 0) return {};
  switch (gather_piece(a)) {
    case 16:
      return gather<dev::Word4>(a, device, stream);
    case 8:
      return gather<dev::Word2>(a, device, stream);
    case 4:
      return gather<uint32_t>(a, device, stream);
    case 2:
      return gather<uint16_t>(a, device, stream);
    default:
      return gather<uint8_t>(a, device, stream);
  }
}

}  // namespace tamis
