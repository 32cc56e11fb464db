// kv_rebuild on CUDA: the list of its kernels, the checks of a call, the reference.
#include "ops/kv_rebuild/kv_rebuild_cuda.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/numeric.h"
#include "format/matrix.h"
#include "ops/kv_rebuild/rebuild_params.h"

namespace tamis {
namespace {

constexpr RebuildCudaRow kRebuild[] = {
#define TAMIS_KV_REBUILD_CUDA(dtype, d) {"kv_rebuild_" #dtype "_d" #d "_sm80up", DType::dtype, d},
#include "ops/kv_rebuild/kernels_cuda.def"
#undef TAMIS_KV_REBUILD_CUDA
};

Status bad(const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "kv_rebuild: %s: got %lld, wanted %s", what,
               static_cast<long long>(got), wanted);
}

double element(KvStorage storage, const void* x, int64_t i) {
  const uint16_t bits = static_cast<const uint16_t*>(x)[i];
  return storage == KvStorage::lowrank_f16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

}  // namespace

std::span<const RebuildCudaRow> rebuild_cuda_kernels() {
  return kRebuild;
}

const RebuildCudaRow* choose_rebuild_cuda(KvStorage storage, int64_t head_dim) {
  for (const RebuildCudaRow& row : kRebuild) {
    const KvStorage of = row.dtype == DType::f16 ? KvStorage::lowrank_f16 : KvStorage::lowrank_bf16;
    if (of == storage && row.head_dim == head_dim) return &row;
  }
  return nullptr;
}

Status check_rebuild_cuda(const KvRebuildArgs& a) {
  const KvSegment& s = a.segment;
  const KvLowRank& l = s.low_rank;
  if (!choose_rebuild_cuda(s.storage, a.head_dim)) {
    return error(
        Code::no_kernel,
        "kv_rebuild: no CUDA kernel takes %s of d = %lld; it has bf16 and f16 of 64 and 128",
        name_of(s.storage), static_cast<long long>(a.head_dim));
  }
  const int64_t heads = a.batch * a.kv_heads;
  if (std::min(a.batch, a.kv_heads) < 0 || heads > 65535) {
    return bad("KV heads", heads, "0 to 65535");
  }
  if (s.tokens < 1 || s.tokens > INT32_MAX) return bad("tokens", s.tokens, "1 to 2^31 - 1");
  if (s.index_stride < 0 || s.index_stride > INT32_MAX) {
    return bad("index", s.index_stride, "0 to 2^31 - 1 entries");
  }
  if (l.rank < 8 || l.rank % 8 != 0) return bad("rank", l.rank, "a multiple of 8 on CUDA");
  if (l.pairs < 0 || l.pairs % 4 != 0 || 2 * l.pairs > a.head_dim) {
    return bad("pairs", l.pairs, "a multiple of 4, at most half of the channels, on CUDA");
  }
  if (heads * s.index_stride > 0 && (!s.index || !s.keys || !s.values || !l.basis || !a.keys ||
                                     !a.values || (l.pairs > 0 && !l.turns))) {
    return error(Code::invalid_argument, "kv_rebuild: got null, wanted arrays");
  }
  const int64_t strides = s.key_batch_stride | s.key_token_stride | s.value_batch_stride |
                          s.value_head_stride | s.value_token_stride;
  const auto place = reinterpret_cast<uintptr_t>(s.keys) | reinterpret_cast<uintptr_t>(s.values) |
                     reinterpret_cast<uintptr_t>(l.basis) | reinterpret_cast<uintptr_t>(l.turns) |
                     reinterpret_cast<uintptr_t>(a.keys) | reinterpret_cast<uintptr_t>(a.values);
  if (place % 16 != 0 || strides % 8 != 0) {
    return bad("coordinates, basis, values", strides, "rows at multiples of 16 bytes; copy them");
  }
  return {};
}

RebuildParams rebuild_params(const KvRebuildArgs& a) {
  const KvSegment& s = a.segment;
  return {.coordinates = static_cast<const uint8_t*>(s.keys),
          .basis = static_cast<const uint8_t*>(s.low_rank.basis),
          .values = static_cast<const uint8_t*>(s.values),
          .coordinate_batch = 2 * s.key_batch_stride,
          .coordinate_token = 2 * s.key_token_stride,
          .value_batch = 2 * s.value_batch_stride,
          .value_head = 2 * s.value_head_stride,
          .value_token = 2 * s.value_token_stride,
          .rank = static_cast<int32_t>(s.low_rank.rank),
          .pairs = static_cast<int32_t>(s.low_rank.pairs),
          .turns = s.low_rank.turns,
          .index = s.index,
          .listed = static_cast<int32_t>(s.index_stride),
          .tokens = static_cast<int32_t>(s.tokens),
          .kv_heads = static_cast<int32_t>(a.kv_heads),
          .out_keys = static_cast<uint8_t*>(a.keys),
          .out_values = static_cast<uint8_t*>(a.values)};
}

Status kv_rebuild_reference(const KvRebuildArgs& a, double* keys, double* values) {
  TAMIS_RETURN_IF_ERROR(check_rebuild_cuda(a));
  const KvSegment& s = a.segment;
  const KvLowRank& l = s.low_rank;
  const int64_t d = a.head_dim;
  std::vector<double> plain(static_cast<size_t>(d));
  for (int64_t head = 0; head < a.batch * a.kv_heads; ++head) {
    const int64_t batch = head / a.kv_heads, kv_head = head % a.kv_heads;
    for (int64_t i = 0; i < s.index_stride; ++i) {
      const int64_t at = head * s.index_stride + i;
      const int64_t t = std::clamp<int64_t>(s.index[at], 0, s.tokens - 1);
      const int64_t row = batch * s.key_batch_stride + t * s.key_token_stride;
      for (int64_t c = 0; c < d; ++c) {
        plain[static_cast<size_t>(c)] = 0;
        for (int64_t r = 0; r < l.rank; ++r) {
          plain[static_cast<size_t>(c)] += element(s.storage, s.keys, row + r) *
                                           element(s.storage, l.basis, (head * l.rank + r) * d + c);
        }
        keys[at * d + c] = plain[static_cast<size_t>(c)];
        values[at * d + c] = element(s.storage, s.values,
                                     batch * s.value_batch_stride + kv_head * s.value_head_stride +
                                         t * s.value_token_stride + c);
      }
      for (int64_t pair = 0; pair < l.pairs; ++pair) {
        const float* fine = l.turns + 2 * (t % kTurnFine) * l.pairs + pair;
        const float* coarse = l.turns + 2 * (kTurnFine + t / kTurnFine) * l.pairs + pair;
        const double angle = std::atan2(double{fine[l.pairs]}, double{fine[0]}) +
                             std::atan2(double{coarse[l.pairs]}, double{coarse[0]});
        const double x = plain[static_cast<size_t>(pair)];
        const double y = plain[static_cast<size_t>(pair + l.pairs)];
        keys[at * d + pair] = x * std::cos(angle) - y * std::sin(angle);
        keys[at * d + pair + l.pairs] = y * std::cos(angle) + x * std::sin(angle);
      }
    }
  }
  return {};
}

}  // namespace tamis
