// prefill_attention for sm_90a: tensor cores by warpgroups.
#include "base/cuda/launch.h"
#include "base/cuda/tensor_map_host.h"
#include "ops/prefill_attention/prefill_pack.cuh"
#include "ops/prefill_attention/prefill_short.cuh"
#include "ops/prefill_attention/prefill_wgmma.cuh"

namespace tamis {
namespace {

TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kPrefillPackThreads, 4)
    prefill_attention_pack(const PrefillPackParams g) {
  prefill_pack(g);
}

template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(Config::kThreads, 1)
    prefill_attention_group(const TAMIS_GRID_CONSTANT PrefillGroupParams g) {
  prefill_group<Config>(g);
}

template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(Config::kThreads, 1)
    prefill_attention_short(const TAMIS_GRID_CONSTANT PrefillShortParams g) {
  prefill_short<Config>(g);
}

Status make(const PrefillArgs& a, const PrefillArray& x, int64_t heads, int64_t rows,
            TensorMap* map) {
  return make_tensor_map("prefill_attention", prefill_boxes(a, x, heads, rows), map);
}

template <class Config>
Status run(const PrefillArgs& a, const CudaDevice& device, void* stream) {
  PrefillGroupParams params = prefill_group_params(a, device, Config::kGroups);
  if (params.works == 0) return {};
  if (params.packed) {
    const PrefillPackParams pack = prefill_pack_params(a);
    TAMIS_RETURN_IF_ERROR(
        launch("prefill_attention",
               {.grid = dim3(static_cast<uint32_t>(ceil_div(a.columns.stride, kPrefillPackRows)),
                             static_cast<uint32_t>(a.batch * a.kv_heads)),
                .threads = kPrefillPackThreads,
                .shared_bytes = 0,
                .early = true,
                .stream = stream},
               &prefill_attention_pack, pack));
    TAMIS_RETURN_IF_ERROR(
        make(a, prefill_packed(a, pack.keys), a.kv_heads, a.columns.stride, &params.key_boxes));
    TAMIS_RETURN_IF_ERROR(
        make(a, prefill_packed(a, pack.values), a.kv_heads, a.columns.stride, &params.value_boxes));
  } else if (params.boxes) {  // strides of 0 have none
    params.boxes = make(a, a.keys, a.kv_heads, a.tokens, &params.key_boxes).ok() &&
                   make(a, a.values, a.kv_heads, a.tokens, &params.value_boxes).ok();
  }
  params.query_boxed =
      params.query_boxed && make(a, a.q, a.heads, a.queries, &params.query_boxes).ok();
  if constexpr (Config::kBoxes) {
    using Fewer = PrefillGroupConfig<Config::kType, Config::kDim, 2>;
    if (!params.boxes) return run<Fewer>(a, device, stream);
  }
  return launch_wide<&prefill_attention_group<Config>>(
      "prefill_attention", device, Config::kSharedBytes,
      {.grid = dim3(static_cast<uint32_t>(params.blocks)),
       .threads = Config::kThreads,
       .shared_bytes = static_cast<size_t>(Config::kSharedBytes),
       .early = true,
       .stream = stream},
      params);
}

template <class Config>
Status launch_short(const PrefillArgs& a, const PrefillShortParams& params,
                    const CudaDevice& device, void* stream) {
  return launch_wide<&prefill_attention_short<Config>>(
      "prefill_attention", device,
      prefill_short_shared(Config::kDim, Config::kTiles, Config::kMostHeld),
      {.grid = dim3(static_cast<uint32_t>(a.batch * a.heads),
                    static_cast<uint32_t>(ceil_div(params.tiles, Config::kTiles))),
       .threads = Config::kThreads,
       .shared_bytes =
           static_cast<size_t>(prefill_short_shared(Config::kDim, Config::kTiles, params.held)),
       .early = true,
       .stream = stream},
      params);
}

template <DType kType>
Status run_dim(const PrefillArgs& a, const CudaDevice& device, void* stream) {
  if (choose_prefill_cuda(a, device)->queries == 64) {
    PrefillShortParams params = prefill_short_params(a);
    const bool boxes = make(a, a.q, a.heads, a.queries, &params.query_boxes).ok() &&
                       make(a, a.keys, a.kv_heads, a.tokens, &params.key_boxes).ok() &&
                       make(a, a.values, a.kv_heads, a.tokens, &params.value_boxes).ok();
    if (boxes && a.head_dim == 128) {
      return launch_short<PrefillShortConfig<kType, 128, 1>>(a, params, device, stream);
    }
    if (boxes) {
      return prefill_short_tiles_of_block(a, device) == 1
                 ? launch_short<PrefillShortConfig<kType, 64, 1>>(a, params, device, stream)
                 : launch_short<PrefillShortConfig<kType, 64, 2>>(a, params, device, stream);
    }
  }
  if (a.head_dim == 128) return run<PrefillGroupConfig<kType, 128, 2>>(a, device, stream);
  return choose_prefill_cuda(a, device)->queries == 192
             ? run<PrefillGroupConfig<kType, 64, 3>>(a, device, stream)
             : run<PrefillGroupConfig<kType, 64, 2>>(a, device, stream);
}

}  // namespace

Status prefill_attention_sm90(const PrefillArgs& a, const CudaDevice& device, void* stream) {
  return a.q_dtype == DType::bf16 ? run_dim<DType::bf16>(a, device, stream)
                                  : run_dim<DType::f16>(a, device, stream);
}

}  // namespace tamis
