// sparse_attention on CUDA: a call is checked and planned in attention_plan.cc, launched here.
#include "ops/sparse_attention/kernels_cuda.h"

namespace tamis {
namespace {

// In the order of attention_cuda_kernels(), from the same list.
constexpr AttentionCudaKernel kLaunchers[] = {
#define TAMIS_ATTENTION_PAGES(name, bits, d, tokens, group) \
  &sparse_attention_##name##_d##d##_sm80up,
#define TAMIS_ATTENTION_ROWS(dtype, d) &sparse_attention_##dtype##_d##d##_sm80up,
#include "ops/sparse_attention/kernels_cuda.def"
#undef TAMIS_ATTENTION_PAGES
#undef TAMIS_ATTENTION_ROWS
};

}  // namespace

Status sparse_attention_cuda(const SparseAttentionCudaArgs& args, const CudaDevice& device,
                             void* stream) {
  const SparseAttentionArgs& a = args.attention;
  AttentionPlan plans[kMaxSegments];
  int32_t all_splits = 0;
  TAMIS_RETURN_IF_ERROR(plan_attention(a, device, plans, &all_splits));
  int64_t bytes = 0;
  TAMIS_RETURN_IF_ERROR(attention_workspace(a, device, &bytes));
  if (args.workspace_bytes < bytes || reinterpret_cast<uintptr_t>(args.workspace) % 16 != 0) {
    return error(Code::invalid_argument,
                 "sparse_attention: workspace: got %lld bytes, wanted %lld at a multiple of 16",
                 static_cast<long long>(args.workspace_bytes), static_cast<long long>(bytes));
  }
  if (a.batch * a.kv_heads * a.rows == 0) return {};
  const auto heads = static_cast<int32_t>(a.batch * a.kv_heads);
  for (const AttentionPlan& plan : std::span(plans, a.segments.size())) {
    if (plan.splits == 0) continue;
    const KvSegment& segment = a.segments[static_cast<size_t>(plan.segment)];
    const AttentionCudaRow& row = *choose_attention_cuda(segment, a.head_dim);
    const AttentionCudaKernel kernel = kLaunchers[&row - attention_cuda_kernels().data()];
    TAMIS_RETURN_IF_ERROR(
        kernel(attention_params(args, plan, all_splits), plan, heads, device, stream));
  }
  return {};
}

Status chosen_attention_cuda(const ChosenAttentionArgs& args, const CudaDevice& device,
                             void* stream) {
  if (!chosen_attention_fits(args, device)) {
    return error(
        Code::no_kernel,
        "chosen_attention: got what no kernel takes, wanted labels that kv_choose takes by "
        "head and one dense segment of d = 64 or 128 in q's 16-bit type on sm_90; call both");
  }
  TAMIS_RETURN_IF_ERROR(check_estimate_cuda(args.choose.estimate));
  const SparseAttentionArgs& a = args.attention;
  if (a.batch * a.kv_heads == 0) return {};
  const bool bf16 = a.q_dtype == DType::bf16;
  const auto launch = a.head_dim == 64 ? (bf16 ? &chosen_attention_sm90<DType::bf16, 64>
                                               : &chosen_attention_sm90<DType::f16, 64>)
                                       : (bf16 ? &chosen_attention_sm90<DType::bf16, 128>
                                               : &chosen_attention_sm90<DType::f16, 128>);
  return launch(args, device, stream);
}

}  // namespace tamis
