// kv_choose for sm_90: a cluster of blocks a head.
#include "ops/kv_select/choose.cuh"
#include "ops/kv_select/choose_launch.h"

namespace tamis {
namespace {

template <bool kWhole>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kChooseThreads, 1) kv_choose(const ChooseParams p) {
  NoReader none;
  choose_units<kWhole>(p, none);
}

template <bool kWhole>
Status launch_choose(const ChooseParams& p, const CudaDevice& device, void* stream) {
  return launch_wide<&kv_choose<kWhole>>("kv_choose", device, device.shared_per_block,
                                         choose_grid(p, choose_shared(p), stream), p);
}

Status run(const KvChooseArgs& args, const CudaDevice& device, void* stream) {
  ChooseFit fit;
  TAMIS_RETURN_IF_ERROR(find_choose_fit<&kv_choose<true>>("kv_choose", device, &fit));
  const ChooseParams p = choose_params(args.estimate, args.select, device, fit);
  return p.whole ? launch_choose<true>(p, device, stream) : launch_choose<false>(p, device, stream);
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
  return run(args, device, stream);
}

}  // namespace tamis
