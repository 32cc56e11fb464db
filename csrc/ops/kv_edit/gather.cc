// kv_gather: rows of bytes, so one function serves every dtype, pages and positions.
#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "ops/kv_edit/kv_edit.h"

namespace tamis {

Status kv_gather(const KvGatherArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_gather(a));
  const auto head = [&](int64_t h) {
    const auto* x = static_cast<const uint8_t*>(a.x) + h * a.head_stride_bytes;
    auto* out = static_cast<uint8_t*>(a.out) + h * a.out_head_stride_bytes;
    const int32_t* index = a.index.index + h * a.index.stride;
    const int64_t count = a.index.count ? a.index.count[h] : a.index.stride;
    for (int64_t i = 0; i < count; ++i) {  // ascending: in place, what is read lies behind no write
      std::memmove(out + i * a.out_token_stride_bytes, x + index[i] * a.token_stride_bytes,
                   static_cast<size_t>(a.row_bytes));
    }
  };
  // A thread is worth it from some 100 KB on.
  const int64_t work = a.heads * a.index.stride * a.row_bytes;
  const int threads = static_cast<int>(std::clamp<int64_t>(
      work >> 17, 1, std::min<int64_t>(num_threads(), std::max<int64_t>(a.heads, 1))));
  const auto run = [&](int thread, int count) {
    for (int64_t h = a.heads * thread / count; h < a.heads * (thread + 1) / count; ++h) head(h);
  };
  threads > 1 ? parallel(threads, run) : run(0, 1);
  return {};
}

}  // namespace tamis
