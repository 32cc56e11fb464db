// kv_rebuild from sm_80 on.
#include "base/cuda/launch.h"
#include "format/matrix.h"
#include "ops/kv_rebuild/rebuild.cuh"

namespace tamis {
namespace {

template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kRebuildThreads, 3) kv_rebuild(const RebuildParams p) {
  rebuild<Config>(p);
}

template <class Config>
Status run(const RebuildParams& p, int64_t heads, const CudaDevice& device, void* stream) {
  return launch_wide<&kv_rebuild<Config>>(
      "kv_rebuild", device, Config::kSharedBytes,
      {.grid = dim3(static_cast<uint32_t>(ceil_div(p.listed, kRebuildTokens)),
                    static_cast<uint32_t>(heads)),
       .threads = kRebuildThreads,
       .shared_bytes = static_cast<size_t>(Config::kSharedBytes),
       .early = device.capability >= 90,
       .stream = stream},
      p);
}

// In the order of rebuild_cuda_kernels(), from the same list.
constexpr Status (*kLaunchers[])(const RebuildParams&, int64_t, const CudaDevice&, void*) = {
#define TAMIS_KV_REBUILD_CUDA(dtype, d) &run<RebuildConfig<DType::dtype, d>>,
#include "ops/kv_rebuild/kernels_cuda.def"
#undef TAMIS_KV_REBUILD_CUDA
};

}  // namespace

Status kv_rebuild_cuda(const KvRebuildArgs& a, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_rebuild_cuda(a));
  const int64_t heads = a.batch * a.kv_heads;
  if (heads * a.segment.index_stride == 0) return {};
  const RebuildCudaRow* row = choose_rebuild_cuda(a.segment.storage, a.head_dim);
  return kLaunchers[row - rebuild_cuda_kernels().data()](rebuild_params(a), heads, device, stream);
}

}  // namespace tamis
