// Every line of kernels_cuda.def with 16-bit weights on the simulator: compiled once for the tests
// that take a part each.
#include <string>
#include <vector>

#include "cuda_sim/problem.h"

namespace tamis::test {
namespace {

template <PackedFormat kFormat, DType kType, bool kBulk>
std::string simulate(sim::Launch launch, const SpmmCudaArgs& args, const SpmmCudaPlan& plan) {
  if constexpr (kFormat == PackedFormat::gap) {
    launch.block = {static_cast<uint32_t>(32 * plan.warps_k)};
    const SpmmGapParams p = spmm_gap_params(args, plan);
    return with_constant<1, 2, 4>(
        plan.tokens, [&]<int kTokens>(std::integral_constant<int, kTokens>) {
          return sim::launch(launch, [&] { spmm_gap<GapConfig<kType, kTokens>>(p); });
        });
  } else if constexpr (kFormat == PackedFormat::p24) {
    launch.block = {static_cast<uint32_t>(32 * plan.block_warps)};
    const SpmmP24Params p = spmm_p24_params(args, plan);
    if (plan.cluster) {
      launch.grid = {static_cast<uint32_t>(plan.blocks_n * plan.splits)};
      launch.cluster = static_cast<uint32_t>(plan.splits);
    }
    const bool triples = args.w.max_record_bytes == p24::kTripleBytes;
    return with_constant<1, 2, 3, 4, 5, 6, 8>(
        plan.token_tiles, [&]<int kTokenTiles>(std::integral_constant<int, kTokenTiles>) {
          return triples ? sim::launch(launch,
                                       [&] { spmm_p24<P24Config<kType, kTokenTiles, true>>(p); })
                         : sim::launch(launch,
                                       [&] { spmm_p24<P24Config<kType, kTokenTiles, false>>(p); });
        });
  } else if constexpr (kFormat == PackedFormat::sell4) {
    launch.block = {static_cast<uint32_t>(32 * plan.warps_k)};
    launch.grid = {static_cast<uint32_t>(plan.blocks_n * plan.splits)};
    launch.cluster = static_cast<uint32_t>(plan.splits);
    const SpmmSell4Params p = spmm_sell4_params(args, plan);
    return with_constant<1, 2, 4, 8>(
        plan.tokens, [&]<int kTokens>(std::integral_constant<int, kTokens>) {
          return sim::launch(launch, [&] { spmm_sell4<Sell4Config<kType, kTokens>>(p); });
        });
  } else {
    launch.block = {kBlockThreads};
    const SpmmT16Params p = spmm_t16_params(args, plan);
    return with_constant<1, 2, 4, 8>(
        plan.token_tiles, [&]<int kTokenTiles>(std::integral_constant<int, kTokenTiles>) {
          return sim::launch(launch,
                             [&] { spmm_t16<T16Config<kFormat, kType, kTokenTiles, kBulk>>(p); });
        });
  }
}

}  // namespace

const std::vector<SimRow>& sim_rows() {
  static const std::vector<SimRow> rows = {
#define TAMIS_SPMM_CUDA(format, w, x, capability, exact)                            \
  {"spmm_" #format "_" #w "_" #x "_sm" #capability, PackedFormat::format, DType::x, \
   &simulate<PackedFormat::format, DType::x, (capability >= 90)>},
#define TAMIS_SPMM_CUDA_I8(format, w, x, capability, exact)    // in spmm_i8.cc
#define TAMIS_SPMM_CUDA_MANY(format, w, x, capability, exact)  // in bitmap_wgmma.cc
#define TAMIS_SPMM_CUDA_F32(format, w, x, capability, exact)   // in bitmap_f32.cc
#include "ops/spmm/kernels_cuda.def"
#undef TAMIS_SPMM_CUDA
  };
  return rows;
}

}  // namespace tamis::test
