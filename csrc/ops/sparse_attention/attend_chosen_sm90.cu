// Attention over chosen tokens in the launch that chooses them, for sm_90: a cluster of blocks a
// head.
#include "ops/kv_select/choose_launch.h"
#include "ops/sparse_attention/attend_chosen.cuh"
#include "ops/sparse_attention/attention_cuda.h"

namespace tamis {
namespace {

template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kChooseThreads, 1)
    chosen_attention(const TAMIS_GRID_CONSTANT ChosenParams p) {
  attend_chosen<Config>(p);
}

constexpr const char* kName = "chosen_attention";

template <class Config>
Status launch_chosen(const ChosenParams& p, const CudaDevice& device, void* stream) {
  return launch_wide<&chosen_attention<Config>>(kName, device, device.shared_per_block,
                                                choose_grid(p.choose, p.shared_bytes, stream), p);
}

template <DType kType, int kDim>
Status run(const ChosenAttentionArgs& args, const CudaDevice& device, void* stream) {
  using Whole = ChosenConfig<kType, kDim, true>;
  using Half = ChosenConfig<kType, kDim, false>;
  ChooseFit fit;
  TAMIS_RETURN_IF_ERROR(find_choose_fit<&chosen_attention<Whole>>(kName, device, &fit));
  const KvChooseArgs& c = args.choose;
  const ChosenParams p =
      chosen_params(choose_params(c.estimate, c.select, device, fit),
                    attention_params({.attention = args.attention}, {.splits = 1}, 1), kDim);
  return p.choose.whole ? launch_chosen<Whole>(p, device, stream)
                        : launch_chosen<Half>(p, device, stream);
}

}  // namespace

Status chosen_attention_cuda(const ChosenAttentionArgs& args, const CudaDevice& device,
                             void* stream) {
  if (!chosen_attention_fits(args, device)) {
    return error(
        Code::no_kernel,
        "chosen_attention: got what no kernel takes, wanted labels that kv_choose takes by "
        "head and one dense segment of d = 128 in q's 16-bit type on sm_90; call both");
  }
  TAMIS_RETURN_IF_ERROR(check_estimate_cuda(args.choose.estimate));
  if (args.attention.batch * args.attention.kv_heads == 0) return {};
  return args.attention.q_dtype == DType::bf16 ? run<DType::bf16, 128>(args, device, stream)
                                               : run<DType::f16, 128>(args, device, stream);
}

}  // namespace tamis
