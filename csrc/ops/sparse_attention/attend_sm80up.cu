// Attention over pages and rows from sm_80 on; pages by bulk copy where there are such.
#include "base/cuda/launch.h"
#include "ops/sparse_attention/attend_pages.cuh"
#include "ops/sparse_attention/attend_rows.cuh"
#include "ops/sparse_attention/kernels_cuda.h"

namespace tamis {
namespace {

template <class Config, bool kTail>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(Config::kBound, Config::kBlocks)
    sparse_attention(const AttentionCudaParams p) {
  attend<Config, dev::kBulkCopies, kTail>(p);
}

template <class Config, bool kTail>
Status start(const AttentionCudaParams& p, const AttentionPlan& plan, int32_t heads,
             const CudaDevice& device, void* stream) {
  return launch_wide<&sparse_attention<Config, kTail>>(
      "sparse_attention", device, device.shared_per_block,
      {.grid = dim3(static_cast<uint32_t>(plan.splits), static_cast<uint32_t>(heads * p.row_tiles)),
       .threads = 32 * Config::kWarps,
       .shared_bytes = static_cast<size_t>(plan.shared_bytes),
       .early = device.capability >= 90,
       .stream = stream,
       .cluster = plan.cluster ? static_cast<uint32_t>(plan.splits) : 1},
      p);
}

template <class Config>
Status run(const AttentionCudaParams& p, const AttentionPlan& plan, int32_t heads,
           const CudaDevice& device, void* stream) {
  if constexpr (Config::kTail) {
    if (plan.tail >= 0) return start<Config, true>(p, plan, heads, device, stream);
  }
  return start<Config, false>(p, plan, heads, device, stream);
}

}  // namespace

#define TAMIS_ATTENTION_PAGES(name, bits, d, tokens, group)                                \
  Status sparse_attention_##name##_d##d##_sm80up(const AttentionCudaParams& p,             \
                                                 const AttentionPlan& plan, int32_t heads, \
                                                 const CudaDevice& device, void* stream) { \
    return run<PageConfig<bits, d, tokens, group>>(p, plan, heads, device, stream);        \
  }
#define TAMIS_ATTENTION_ROWS(dtype, d)                                                      \
  Status sparse_attention_##dtype##_d##d##_sm80up(const AttentionCudaParams& p,             \
                                                  const AttentionPlan& plan, int32_t heads, \
                                                  const CudaDevice& device, void* stream) { \
    return run<RowConfig<DType::dtype, d>>(p, plan, heads, device, stream);                 \
  }
#include "ops/sparse_attention/kernels_cuda.def"
#undef TAMIS_ATTENTION_PAGES
#undef TAMIS_ATTENTION_ROWS

}  // namespace tamis
