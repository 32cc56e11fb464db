// kv_fetch from sm_80 on.
#include "base/cuda/launch.h"
#include "format/matrix.h"
#include "ops/kv_fetch/kv_fetch.cuh"

namespace tamis {
namespace {

TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kFetchThreads, 1) kv_fetch_maps(const FetchParams p) {
  fetch_maps(p);
}
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kFetchCopyThreads, 4) kv_fetch_units(const FetchParams p) {
  fetch_units(p);
}

}  // namespace

Status kv_fetch_cuda(const KvFetchArgs& a, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_kv_fetch_cuda(a));
  const int64_t heads = a.batch * a.kv_heads;
  if (heads == 0) return {};
  const bool early = device.capability >= 90;
  TAMIS_RETURN_IF_ERROR(launch("kv_fetch",
                               {.grid = dim3(static_cast<uint32_t>(heads)),
                                .threads = kFetchThreads,
                                .shared_bytes = kFetchShared,
                                .early = early,
                                .stream = stream},
                               &kv_fetch_maps, FetchParams{a}));
  if (!a.far_keys || a.index_stride == 0) return {};
  const int64_t blocks = ceil_div(a.index_stride / a.unit, kFetchCopyThreads / 32);
  return launch("kv_fetch",
                {.grid = dim3(static_cast<uint32_t>(blocks), static_cast<uint32_t>(heads)),
                 .threads = kFetchCopyThreads,
                 .shared_bytes = 0,
                 .early = early,
                 .stream = stream},
                &kv_fetch_units, FetchParams{a});
}

}  // namespace tamis
