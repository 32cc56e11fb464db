// kv_choose for sm_90: a cluster of blocks a head.
#include "base/cuda/launch.h"
#include "ops/kv_select/choose.cuh"

namespace tamis {
namespace {

template <int kRows>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kChooseThreads, 2) kv_choose(const ChooseParams p) {
  choose_units<kRows>(p);
}

template <int kRows>
Status run(const ChooseParams& p, const CudaDevice& device, void* stream) {
  constexpr cudaFuncAttribute kLargeClusters = cudaFuncAttributeNonPortableClusterSizeAllowed;
  TAMIS_RETURN_IF_ERROR((set_once<&kv_choose<kRows>, kLargeClusters>("kv_choose", device, 1)));
  return launch_wide<&kv_choose<kRows>>("kv_choose", device, device.shared_per_block,
                                        {.grid = dim3(static_cast<uint32_t>(p.estimate.blocks),
                                                      static_cast<uint32_t>(p.select.heads)),
                                         .threads = kChooseThreads,
                                         .shared_bytes = static_cast<size_t>(choose_shared(p)),
                                         .early = true,
                                         .stream = stream,
                                         .cluster = static_cast<uint32_t>(p.estimate.blocks)},
                                        p);
}

}  // namespace

Status kv_choose_heads_cuda(const KvChooseArgs& args, const CudaDevice& device, void* stream) {
  const KvEstimateArgs& e = args.estimate;
  if (!kv_choose_fits(args, device)) {
    return error(
        Code::no_kernel,
        "kv_choose: got %lld units and %lld rows on sm_%d, wanted at most %d labels of 32 channels "
        "and %d rows on sm_90; call kv_estimate and kv_select",
        static_cast<long long>(e.units.units), static_cast<long long>(e.rows), device.capability,
        kChooseMost, kChooseRows);
  }
  const ChooseParams p = choose_params(e, args.select, device);
  return choose_rows(e.rows) == 1 ? run<1>(p, device, stream) : run<kChooseRows>(p, device, stream);
}

}  // namespace tamis
