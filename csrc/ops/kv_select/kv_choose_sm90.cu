// kv_choose for sm_90: a cluster of blocks a head.
#include <array>
#include <atomic>

#include "base/cuda/launch.h"
#include "ops/kv_select/choose.cuh"

namespace tamis {
namespace {

template <int kThreads>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kThreads, 1) kv_choose(const ChooseParams p) {
  choose_units(p);
}

CudaGrid grid_of(const ChooseParams& p, void* stream) {
  return {
      .grid = dim3(static_cast<uint32_t>(p.estimate.blocks), static_cast<uint32_t>(p.select.heads)),
      .threads = kChooseThreads,
      .shared_bytes = static_cast<size_t>(choose_shared(p)),
      .early = true,
      .stream = stream,
      .cluster = static_cast<uint32_t>(p.estimate.blocks)};
}

// Registers leave an SM room for one block, whatever its shared memory.
template <int kThreads>
Status find_fit(const CudaDevice& device, ChooseFit* fit) {
  static std::array<std::atomic<int32_t>, 64 * kChooseBlocks> known{};
  for (size_t i = 0; i < fit->size(); ++i) {
    std::atomic<int32_t>& at_once =
        known[static_cast<size_t>(device.index % 64) * kChooseBlocks + i];
    if (at_once.load(std::memory_order_relaxed) == 0) {
      cudaLaunchAttribute cluster{};
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {static_cast<uint32_t>(i + 1), 1, 1};
      const cudaLaunchConfig_t config{.gridDim = dim3(static_cast<uint32_t>(i + 1)),
                                      .blockDim = dim3(kThreads),
                                      .attrs = &cluster,
                                      .numAttrs = 1};
      int found = 0;
      TAMIS_RETURN_IF_ERROR(cuda_status(
          "kv_choose", cudaOccupancyMaxActiveClusters(&found, &kv_choose<kThreads>, &config)));
      at_once.store(found, std::memory_order_relaxed);
    }
    (*fit)[i] = at_once.load(std::memory_order_relaxed);
  }
  return {};
}

template <int kThreads>
Status run(const KvChooseArgs& args, const CudaDevice& device, void* stream) {
  ChooseFit fit;
  TAMIS_RETURN_IF_ERROR(find_fit<kThreads>(device, &fit));
  const ChooseParams p = choose_params(args.estimate, args.select, device, fit);
  return launch_wide<&kv_choose<kThreads>>("kv_choose", device, device.shared_per_block,
                                           grid_of(p, stream), p);
}

}  // namespace

Status kv_choose_heads_cuda(const KvChooseArgs& args, const CudaDevice& device, void* stream) {
  const KvEstimateArgs& e = args.estimate;
  if (!kv_choose_fits(args, device)) {
    return error(
        Code::no_kernel,
        "kv_choose: got %lld units and %lld rows on sm_%d, wanted at most %d labels of 32 channels "
        "at multiples of 16 bytes and %d rows on sm_90; call kv_estimate and kv_select",
        static_cast<long long>(e.units.units), static_cast<long long>(e.rows), device.capability,
        kChooseMost, kChooseRows);
  }
  return run<kChooseThreads>(args, device, stream);
}

}  // namespace tamis
