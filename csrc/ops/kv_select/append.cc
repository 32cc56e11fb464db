// kv_append_labels: the packing of format/kv_label over all heads, on the threads of this process.
#include <algorithm>

#include "base/parallel.h"
#include "ops/kv_select/kv_select.h"

namespace tamis {

Status kv_append_labels(const KvAppendLabelsArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_label(a.labels));
  if (a.keys_dtype != DType::f32 && a.keys_dtype != DType::f16 && a.keys_dtype != DType::bf16) {
    return error(Code::unsupported_dtype, "kv_append_labels: keys: got %s, wanted f32, f16 or bf16",
                 name_of(a.keys_dtype));
  }
  if (std::min({a.batch, a.kv_heads, a.first, a.count}) < 0) {
    return error(Code::invalid_argument, "kv_append_labels: keys: got a size below 0");
  }
  const int64_t heads = a.batch * a.kv_heads;
  if (heads * a.count == 0) return {};
  if (!a.keys || !a.channels || !a.records) {
    return error(Code::invalid_argument, "kv_append_labels: keys, channels, records: got null");
  }
  for (int64_t i = 0; i < a.kv_heads * a.labels.channels; ++i) {
    if (a.channels[i] < 0 || a.channels[i] >= a.head_dim) {
      return error(Code::invalid_argument, "kv_append_labels: channels: got %d, wanted below %lld",
                   a.channels[i], static_cast<long long>(a.head_dim));
    }
  }
  const int64_t size = size_of(a.keys_dtype);
  const auto run = [&](int thread, int threads) {
    for (int64_t h = heads * thread / threads; h < heads * (thread + 1) / threads; ++h) {
      const int64_t batch = h / a.kv_heads, g = h % a.kv_heads;
      const auto* keys = static_cast<const uint8_t*>(a.keys) +
                         (batch * a.key_batch_stride + g * a.key_head_stride) * size;
      auto* records =
          static_cast<uint8_t*>(a.records) + batch * a.batch_stride_bytes + g * a.head_stride_bytes;
      pack_kv_labels(a.labels, a.keys_dtype, keys, a.key_token_stride,
                     a.channels + g * a.labels.channels, a.first, a.count, records);
    }
  };
  // A label takes some 100 ns, a thread some microseconds.
  const int threads = static_cast<int>(
      std::clamp<int64_t>(heads * a.count >> 7, 1, std::min<int64_t>(num_threads(), heads)));
  threads > 1 ? parallel(threads, run) : run(0, 1);
  return {};
}

}  // namespace tamis
