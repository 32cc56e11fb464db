// kv_fetch on CUDA: the checks of a call.
#include "ops/kv_fetch/kv_fetch_cuda.h"

namespace tamis {

Status check_kv_fetch_cuda(const KvFetchArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_fetch(a));
  if (a.batch * a.kv_heads > 65535) {
    return error(Code::invalid_argument, "kv_fetch: got %lld KV heads, wanted at most 65535",
                 static_cast<long long>(a.batch * a.kv_heads));
  }
  const auto place =
      reinterpret_cast<uintptr_t>(a.far_keys) | reinterpret_cast<uintptr_t>(a.far_values) |
      reinterpret_cast<uintptr_t>(a.near_keys) | reinterpret_cast<uintptr_t>(a.near_values);
  const int64_t steps = a.row_bytes | a.key_batch_stride | a.key_head_stride | a.key_token_stride |
                        a.value_batch_stride | a.value_head_stride | a.value_token_stride;
  if (a.far_keys && (place % 16 != 0 || steps % 16 != 0)) {
    return error(
        Code::invalid_argument,
        "kv_fetch: keys, values: got rows that do not start at multiples of 16 bytes; copy "
        "them");
  }
  return {};
}

}  // namespace tamis
