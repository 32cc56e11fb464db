// kv_choose for sm_90: a cluster of blocks a head.
#include "ops/kv_select/choose.cuh"
#include "ops/kv_select/choose_launch.h"

namespace tamis {
namespace {

template <bool kWhole, int kRows>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kChooseThreads, 1) kv_choose(const ChooseParams p) {
  NoReader none;
  choose_units<kWhole, kRows>(p, none);
}

template <bool kWhole, int kRows>
Status launch_choose(const ChooseParams& p, const CudaDevice& device, void* stream) {
  return launch_wide<&kv_choose<kWhole, kRows>>("kv_choose", device, device.shared_per_block,
                                                choose_grid(p, choose_shared(p), stream), p);
}

template <int kRows>
Status run(const KvChooseArgs& args, const CudaDevice& device, void* stream) {
  ChooseFit fit;
  constexpr auto* kKernel = &kv_choose<true, kRows>;
  TAMIS_RETURN_IF_ERROR(find_choose_fit<kKernel>("kv_choose", device, &fit));
  const ChooseParams p = choose_params(args.estimate, args.select, device, fit);
  return p.whole ? launch_choose<true, kRows>(p, device, stream)
                 : launch_choose<false, kRows>(p, device, stream);
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
        choose_most(choose_rows(e.rows)), kChooseRows);
  }
  return e.rows <= kChooseFewRows ? run<kChooseFewRows>(args, device, stream)
                                  : run<kChooseRows>(args, device, stream);
}

}  // namespace tamis
