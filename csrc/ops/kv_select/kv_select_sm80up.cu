// kv_select from sm_80 on.
#include "base/cuda/launch.h"
#include "format/matrix.h"
#include "ops/kv_select/estimate.cuh"
#include "ops/kv_select/labels.cuh"
#include "ops/kv_select/select.cuh"
#include "ops/kv_select/share.cuh"
#include "ops/kv_select/unite.cuh"

namespace tamis {
namespace {

template <int kRows, bool kStats>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kEstimateThreads, kRows > 4 ? 2 : 3)
    kv_estimate(const EstimateParams p) {
  score_units<kRows, kStats>(p);
}
template <bool kOne>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kSelectThreads, 1) kv_select_kernel(const SelectParams p) {
  select_units<kOne>(p);
}
template <bool kOne>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kSelectThreads, 1) kv_select_share(const ShareParams p) {
  select_share<kOne>(p);
}
template <bool kOne, int kThreads>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kThreads, kThreads < kSelectThreads ? 3 : 1)
    kv_select_rows(const UniteParams p) {
  select_rows<kOne, kThreads>(p);
}
template <int kWords>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kEstimateThreads, 4)
    kv_append_labels_kernel(const LabelParams p) {
  append_labels<kWords>(p);
}

dim3 grid(int64_t blocks, int64_t heads) {
  return dim3(static_cast<uint32_t>(blocks), static_cast<uint32_t>(heads));
}

Status check_workspace(const char* function, const void* workspace, int64_t bytes, int64_t wanted) {
  if (bytes >= wanted && reinterpret_cast<uintptr_t>(workspace) % 16 == 0) return {};
  return error(Code::invalid_argument,
               "%s: workspace: got %lld bytes, wanted %lld at a multiple of 16", function,
               static_cast<long long>(bytes), static_cast<long long>(wanted));
}

Status estimate(const EstimateParams& p, const CudaDevice& device, void* stream) {
  const KvEstimateArgs& a = p.args;
  const CudaGrid g{
      .grid = grid(p.blocks, a.batch * a.kv_heads),
      .threads = kEstimateThreads,
      .shared_bytes = static_cast<size_t>(estimate_shared(static_cast<int32_t>(a.rows), p.width)),
      .early = device.capability >= 90,
      .stream = stream};
  return with_estimate_rows(a.rows, [&](auto tag) -> Status {
    constexpr int kRows = decltype(tag)::kRows;
    if (p.weighted) {
      TAMIS_RETURN_IF_ERROR(launch("kv_estimate", g, &kv_estimate<kRows, true>, p));
    }
    return launch("kv_estimate", g, &kv_estimate<kRows, false>, p);
  });
}

}  // namespace

Status kv_estimate_cuda(const KvEstimateArgs& a, void* workspace, int64_t workspace_bytes,
                        const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_estimate_cuda(a));
  TAMIS_RETURN_IF_ERROR(
      check_workspace("kv_estimate", workspace, workspace_bytes, estimate_workspace(a)));
  if (a.batch * a.kv_heads * a.rows * a.units.units == 0) return {};
  if (!a.out) return error(Code::invalid_argument, "kv_estimate: out: got null");
  return estimate(estimate_params(a, workspace, device), device, stream);
}

Status kv_choose_cuda(const KvChooseArgs& args, void* workspace, int64_t workspace_bytes,
                      const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_choose_cuda(args));
  const KvEstimateArgs& e = args.estimate;
  const KvSelectArgs& a = args.select;
  if (a.heads == 0) return {};
  if (!args.by_row) return kv_choose_heads_cuda(args, device, stream);
  TAMIS_RETURN_IF_ERROR(
      check_workspace("kv_choose", workspace, workspace_bytes, choose_workspace(args)));
  if (a.units > 0) {
    TAMIS_RETURN_IF_ERROR(estimate(rows_params(e, workspace, device), device, stream));
  }
  const bool few = a.units <= kSelectHeld * kUniteFewThreads, once = a.units <= kSelectAtOnce;
  return launch("kv_choose",
                {.grid = grid(e.rows, a.heads),
                 .threads = static_cast<uint32_t>(few ? kUniteFewThreads : kSelectThreads),
                 .shared_bytes = kSelectShared,
                 .early = device.capability >= 90,
                 .stream = stream},
                few    ? &kv_select_rows<true, kUniteFewThreads>
                : once ? &kv_select_rows<true, kSelectThreads>
                       : &kv_select_rows<false, kSelectThreads>,
                unite_params(e, a, workspace));
}

Status kv_select_cuda(const KvSelectArgs& a, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_select_cuda(a));
  if (a.heads == 0) return {};
  if (a.units > 0 && !a.scores) {
    return error(Code::invalid_argument, "kv_select: scores: got null");
  }
  const CudaGrid g{.grid = grid(a.heads, 1),
                   .threads = kSelectThreads,
                   .shared_bytes = a.top_p > 0 ? kShareShared : kSelectShared,
                   .early = device.capability >= 90,
                   .stream = stream};
  const bool once = a.units <= kSelectAtOnce;
  if (a.top_p > 0) {
    return launch("kv_select", g, once ? &kv_select_share<true> : &kv_select_share<false>,
                  share_params(a));
  }
  return launch("kv_select", g, once ? &kv_select_kernel<true> : &kv_select_kernel<false>,
                SelectParams{a});
}

Status kv_append_labels_cuda(const KvAppendLabelsArgs& a, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_append_labels_cuda(a));
  const int64_t heads = a.batch * a.kv_heads;
  if (heads * a.count == 0) return {};
  return launch("kv_append_labels",
                {.grid = grid(label_blocks(a), heads),
                 .threads = kEstimateThreads,
                 .shared_bytes = 0,
                 .early = device.capability >= 90,
                 .stream = stream},
                a.labels.channels <= 32 ? &kv_append_labels_kernel<4>
                                        : &kv_append_labels_kernel<kLabelMaxChannels / 8>,
                label_params(a));
}

}  // namespace tamis
