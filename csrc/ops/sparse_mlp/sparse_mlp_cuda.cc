// sparse_mlp on CUDA: the checks of a call, its layout and the memory between its kernels.
#include "ops/sparse_mlp/sparse_mlp_cuda.h"

#include "ops/sparse_mlp/mlp_params.h"

namespace tamis {
namespace {

constexpr SparseMlpCudaRow kRows[] = {
#define TAMIS_SPARSE_MLP_CUDA(dtype) {"sparse_mlp_" #dtype "_sm80up", DType::dtype},
#include "ops/sparse_mlp/kernels_cuda.def"
#undef TAMIS_SPARSE_MLP_CUDA
};

Status bad(const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "sparse_mlp: %s: got %lld, wanted %s", what,
               static_cast<long long>(got), wanted);
}

Status check(const SparseMlpArgs& a) {
  if (a.dtype != DType::f16 && a.dtype != DType::bf16) {
    return error(Code::unsupported_dtype, "sparse_mlp: dtype: got %s, wanted f16 or bf16 on CUDA",
                 name_of(a.dtype));
  }
  if (std::min({a.m, a.k, a.n, a.d}) < 0) return bad("m, k, n, d", -1, "0 or more");
  if (std::max(a.k, a.n) > 1 << 24) return bad("k, n", std::max(a.k, a.n), "at most 2^24");
  if (a.d > kWorkspaceTickets * kRowSumColumns) return bad("d", a.d, "at most 2^21");
  if (a.k % 8 != 0 || a.d % 8 != 0) {
    return error(Code::no_kernel,
                 "sparse_mlp: k, d: got %lld and %lld, wanted multiples of 8 on CUDA",
                 static_cast<long long>(a.k), static_cast<long long>(a.d));
  }
  for (const void* w : {a.gate, a.up, a.down}) {
    if (reinterpret_cast<uintptr_t>(w) % 16 != 0) {
      return error(Code::no_kernel,
                   "sparse_mlp: weights: got an address that is no multiple of 16; copy it");
    }
  }
  if (a.m > 1 && (a.x_stride < a.k || a.y_stride < a.d)) {
    return bad("x_stride or y_stride", std::min(a.x_stride, a.y_stride), "a whole row or more");
  }
  if (a.m * a.d > 0 &&
      (!a.y || (a.n > 0 && (!a.threshold || !a.down || (a.k > 0 && (!a.x || !a.gate || !a.up)))))) {
    return error(Code::invalid_argument,
                 "sparse_mlp: x, gate, up, down, threshold, y: got null, wanted arrays");
  }
  return {};
}

// Arrays of the workspace after its tickets, each on a multiple of 16 bytes.
struct Memory {
  int64_t counts, total, ids, activations, listed, factors, partial, end;

  Memory(const SparseMlpArgs& a, const MlpPlan& plan) {
    int64_t at = kWorkspaceTicketBytes;
    const auto take = [&](int64_t bytes) {
      const int64_t begin = at;
      at += ceil_div(bytes, 16) * 16;
      return begin;
    };
    const int64_t padded = ceil_div(a.n, kRowSumStep) * kRowSumStep;
    counts = take(4 * plan.blocks);
    total = take(4);
    ids = take(4 * a.n);
    activations = take(4 * kCudaTokens * a.n);
    listed = take(4 * padded);
    factors = take(4 * kCudaTokens * padded);
    partial =
        take(4 * (plan.pass ? plan.blocks * a.d : row_sum_partials(a.d, plan.splits, plan.tokens)));
    end = at;
  }
};

template <class T>
T* place(void* base, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<uint8_t*>(base) + offset);
}

}  // namespace

std::span<const SparseMlpCudaRow> sparse_mlp_cuda_kernels() {
  return kRows;
}

Status plan_mlp(const SparseMlpArgs& a, const CudaDevice& device, MlpPlan* plan) {
  TAMIS_RETURN_IF_ERROR(check(a));
  *plan = {};
  const int64_t slots = std::max(1, 2 * device.sms);
  plan->blocks = static_cast<int32_t>(
      std::clamp<int64_t>(ceil_div(a.n, kDotRows), 1, std::min<int64_t>(slots, kMostDotBlocks)));
  const auto k = static_cast<int32_t>(a.k), n = static_cast<int32_t>(a.n);
  const int32_t list = dot_list_bytes(n, plan->blocks), pitch = dot_x_pitch(k);
  plan->tokens = mlp_tokens(std::max<int64_t>(a.m, 1), list, pitch, device);
  if (plan->tokens < 1) {
    return error(Code::no_kernel,
                 "sparse_mlp: k: got %lld, wanted one token to fit in shared memory",
                 static_cast<long long>(a.k));
  }
  plan->pass = a.m == 1 && a.d <= kMostPassParts * kPassColumns;
  plan->splits = row_splits(a.d, a.n, 1, device);
  plan->gate_shared = static_cast<int32_t>(kDotListAt) + plan->tokens * pitch;
  plan->up_shared = plan->gate_shared + list;
  plan->down_shared = row_sum_shared(plan->tokens);
  plan->workspace_bytes = Memory(a, *plan).end;
  return {};
}

Status sparse_mlp_workspace(const SparseMlpArgs& a, const CudaDevice& device, int64_t* bytes) {
  MlpPlan plan;
  TAMIS_RETURN_IF_ERROR(plan_mlp(a, device, &plan));
  *bytes = plan.workspace_bytes;
  return {};
}

MlpParams mlp_params(const SparseMlpArgs& a, const MlpPlan& plan, int64_t first, void* workspace) {
  const Memory memory(a, plan);
  const auto k = static_cast<int32_t>(a.k), n = static_cast<int32_t>(a.n);
  const auto* x = static_cast<const uint16_t*>(a.x) + first * a.x_stride;
  return {.x = x,
          .gate = static_cast<const uint16_t*>(a.gate),
          .up = static_cast<const uint16_t*>(a.up),
          .down = static_cast<const uint16_t*>(a.down),
          .x_stride = a.x_stride,
          .threshold = a.threshold,
          .activation = a.activation,
          .m = static_cast<int32_t>(std::min<int64_t>(a.m - first, plan.tokens)),
          .k = k,
          .n = n,
          .d = static_cast<int32_t>(a.d),
          .blocks = plan.blocks,
          .steps = static_cast<int32_t>(ceil_div(k, kDotStep)),
          .x_pitch_bytes = static_cast<uint32_t>(dot_x_pitch(k)),
          .gate_x_at = kDotListAt,
          .up_x_at = kDotListAt + static_cast<uint32_t>(dot_list_bytes(n, plan.blocks)),
          .x_aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0 && a.x_stride % 8 == 0,
          .counts = place<int32_t>(workspace, memory.counts),
          .ids = place<int32_t>(workspace, memory.ids),
          .activations = place<float>(workspace, memory.activations),
          .total = place<int32_t>(workspace, memory.total),
          .listed = place<int32_t>(workspace, memory.listed),
          .factors = place<uint16_t>(workspace, memory.factors),
          .partial = place<float>(workspace, memory.partial),
          .y = static_cast<uint16_t*>(a.y) + first * a.y_stride};
}

RowSumParams mlp_down_params(const SparseMlpArgs& a, const MlpPlan& plan, int64_t first,
                             void* workspace) {
  return {.w = static_cast<const uint8_t*>(a.down),
          .columns = static_cast<int32_t>(a.d),
          .splits = plan.splits,
          .m = static_cast<int32_t>(std::min<int64_t>(a.m - first, plan.tokens)),
          .bias = nullptr,
          .y = static_cast<uint16_t*>(a.y) + first * a.y_stride,
          .y_stride = a.y_stride,
          .tickets = place<uint32_t>(workspace, 0),
          .partial = place<float>(workspace, Memory(a, plan).partial)};
}

}  // namespace tamis
