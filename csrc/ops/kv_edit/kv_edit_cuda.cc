// kv_edit on CUDA: the checks of a call and the memory between its kernels.
#include "ops/kv_edit/kv_edit_cuda.h"

#include <algorithm>

#include "format/matrix.h"
#include "ops/kv_edit/kv_edit_params.h"

namespace tamis {
namespace {

constexpr int64_t kMaxHeads = 65535;  // of a grid

constexpr MergeCudaRow kMerge[] = {
#define TAMIS_KV_MERGE_CUDA(dtype) {"kv_merge_" #dtype "_sm80up", DType::dtype},
#include "ops/kv_edit/kernels_cuda.def"
#undef TAMIS_KV_MERGE_CUDA
};

Status bad(const char* function, const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "%s: %s: got %lld, wanted %s", function, what,
               static_cast<long long>(got), wanted);
}

int32_t kinds_of(const KvMergeArgs& a) {
  return a.similarity == KvSimilarity::keys_values ? 2 : 1;
}

int64_t merge_row_bytes(const KvMergeArgs& a) {
  return tile_row_bytes(a.head_dim, a.dtype == DType::f32);
}

int64_t scales_bytes(const KvMergeArgs& a) {
  return 8 * a.heads * (a.kept.stride + a.dropped.stride);
}

}  // namespace

std::span<const MergeCudaRow> merge_cuda_kernels() {
  return kMerge;
}

const MergeCudaRow* choose_merge_cuda(DType dtype) {
  for (const MergeCudaRow& row : kMerge) {
    if (row.dtype == dtype) return &row;
  }
  return nullptr;
}

Status check_merge_cuda(const KvMergeArgs& a, const CudaDevice& device) {
  TAMIS_RETURN_IF_ERROR(check_kv_merge_arrays(a));
  if (a.heads > kMaxHeads) return bad("kv_merge", "heads", a.heads, "at most 65535 on CUDA");
  if (std::max({a.tokens, a.kept.stride, a.dropped.stride}) > INT32_MAX) {
    return bad("kv_merge", "tokens", a.tokens, "below 2^31");
  }
  if (a.dtype == DType::f32 && a.head_dim > 128) {
    return error(Code::no_kernel,
                 "kv_merge: head_dim: got %lld of f32, wanted at most 128 on CUDA, or f16 or bf16",
                 static_cast<long long>(a.head_dim));
  }
  const int32_t shared = merge_shared(kinds_of(a), static_cast<int32_t>(merge_row_bytes(a)));
  if (shared > device.shared_per_block) {
    return error(Code::no_kernel,
                 "kv_merge: head_dim: got %lld of %s, whose %d bytes of shared memory this device "
                 "lacks; wanted less, or f16 or bf16",
                 static_cast<long long>(a.head_dim), name_of(a.dtype), shared);
  }
  const int64_t each = 16 / size_of(a.dtype);
  const int64_t strides =
      a.key_head_stride | a.key_token_stride | a.value_head_stride | a.value_token_stride;
  const auto place = reinterpret_cast<uintptr_t>(a.keys) | reinterpret_cast<uintptr_t>(a.values) |
                     reinterpret_cast<uintptr_t>(a.out_keys) |
                     reinterpret_cast<uintptr_t>(a.out_values);
  if (place % 16 != 0 || strides % each != 0) {
    return bad("kv_merge", "keys, values", strides, "rows at multiples of 16 bytes; copy them");
  }
  return {};
}

int64_t merge_workspace(const KvMergeArgs& a) {
  return kWorkspaceTicketBytes + scales_bytes(a) + (a.joined ? 0 : 4 * a.heads * a.dropped.stride);
}

MergeParams merge_params(const KvMergeArgs& a, void* workspace) {
  const int64_t size = size_of(a.dtype);
  auto* scales = static_cast<uint8_t*>(workspace) + kWorkspaceTicketBytes;
  auto* beside = reinterpret_cast<int32_t*>(scales + scales_bytes(a));
  return {.dtype = a.dtype,
          .keys = static_cast<const uint8_t*>(a.keys),
          .values = static_cast<const uint8_t*>(a.values),
          .key_head = size * a.key_head_stride,
          .key_token = size * a.key_token_stride,
          .value_head = size * a.value_head_stride,
          .value_token = size * a.value_token_stride,
          .tokens = static_cast<int32_t>(a.tokens),
          .dim = static_cast<int32_t>(a.head_dim),
          .row_bytes = static_cast<int32_t>(merge_row_bytes(a)),
          .kinds = kinds_of(a),
          .tau = a.tau,
          .kept = a.kept,
          .dropped = a.dropped,
          .weight = a.weight,
          .mass = a.mass,
          .out_keys = a.out_keys,
          .out_values = a.out_values,
          .out_mass = a.out_mass,
          .joined = a.joined ? a.joined : beside,
          .scales = reinterpret_cast<float*>(scales)};
}

Status check_gather_cuda(const KvGatherArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_gather_arrays(a));
  if (a.heads > kMaxHeads) return bad("kv_gather", "heads", a.heads, "at most 65535 on CUDA");
  if (std::max({a.tokens, a.index.stride, a.row_bytes}) > INT32_MAX) {
    return bad("kv_gather", "tokens", a.tokens, "below 2^31");
  }
  return {};
}

bool gathers_in_place(const KvGatherArgs& a) {
  return a.x == a.out;
}

int32_t gather_piece(const KvGatherArgs& a) {
  const auto all =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.out)) |
      a.row_bytes | a.head_stride_bytes | a.token_stride_bytes | a.out_head_stride_bytes |
      a.out_token_stride_bytes;
  int32_t piece = 16;
  while (all % piece != 0) piece /= 2;
  return piece;
}

GatherParams gather_params(const KvGatherArgs& a) {
  const auto pieces = static_cast<int32_t>(a.row_bytes / gather_piece(a));
  return {.x = static_cast<const uint8_t*>(a.x),
          .out = static_cast<uint8_t*>(a.out),
          .head = a.head_stride_bytes,
          .token = a.token_stride_bytes,
          .out_head = a.out_head_stride_bytes,
          .out_token = a.out_token_stride_bytes,
          .tokens = static_cast<int32_t>(a.tokens),
          .pieces = pieces,
          .slice = std::min(pieces, kGatherPieces),
          .index = a.index};
}

}  // namespace tamis
