// prefill_attention from sm_80 on.
#include "base/cuda/launch.h"
#include "ops/prefill_attention/prefill.cuh"

namespace tamis {
namespace {

struct PrefillGrid {
  PrefillParams params;
  int32_t tiles;
};

template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kPrefillThreads, 2)
    prefill_attention_kernel(const PrefillGrid g) {
  prefill<Config>(g.params, g.tiles);
}

template <class Config>
Status run(const PrefillArgs& a, const CudaDevice& device, void* stream) {
  const int32_t tiles = prefill_tiles(a, Config::kQueries);
  if (tiles == 0) return {};
  return launch_wide<&prefill_attention_kernel<Config>>(
      "prefill_attention", device, Config::kSharedBytes,
      {.grid = dim3(static_cast<uint32_t>(tiles), static_cast<uint32_t>(a.batch * a.heads)),
       .threads = kPrefillThreads,
       .shared_bytes = static_cast<size_t>(Config::kSharedBytes),
       .early = device.capability >= 90,
       .stream = stream},
      PrefillGrid{prefill_params(a, Config::kQueries), tiles});
}

// In the order of prefill_cuda_kernels(), from the same list.
constexpr Status (*kLaunchers[])(const PrefillArgs&, const CudaDevice&, void*) = {
#define TAMIS_PREFILL_CUDA(dtype, d, row_tiles) &run<PrefillConfig<DType::dtype, d, row_tiles>>,
#define TAMIS_PREFILL_GROUP(dtype, d, groups) &prefill_attention_sm90,
#define TAMIS_PREFILL_SHORT(dtype, d) &prefill_attention_sm90,
#include "ops/prefill_attention/kernels_cuda.def"
#undef TAMIS_PREFILL_SHORT
#undef TAMIS_PREFILL_GROUP
#undef TAMIS_PREFILL_CUDA
};

}  // namespace

Status prefill_attention_cuda(const PrefillArgs& a, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_prefill_cuda(a));
  if (a.batch * a.heads * a.queries == 0) return {};
  const PrefillCudaRow* row = choose_prefill_cuda(a, device);
  return kLaunchers[row - prefill_cuda_kernels().data()](a, device, stream);
}

}  // namespace tamis
