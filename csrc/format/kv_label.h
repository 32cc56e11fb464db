// kv_label: a few channels of the keys of one KV head in 4 bits, what channel-label selection reads
// instead of keys. One record of fixed size for 16 consecutive tokens, so tokens can be appended
// one at a time; the same bytes on every backend.
//
// | part  | elements       | what                                                      |
// | codes | u32 [r/8][16]  | lane = token, the 8 codes of a word = channels            |
// | scale | f16 [16]       | per token over its r channels                             |
// | min   | f16 [16]       |                                                           |
//
// x = min + scale * code. Code j of a word is at bit code_bit(j): the low halves of four bytes,
// then the high halves, so that one mask or shift leaves the operand of a dot product of bytes.
// min rounds down and scale rounds up in f16, as in kv_page. Tokens past the last are zeros.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/status.h"

namespace tamis {

inline constexpr int32_t kLabelTokens = 16;
inline constexpr int32_t kLabelMaxChannels = 128;

struct KvLabelLayout {
  int32_t channels = 0;  // r, a multiple of 8, at most 128

  constexpr int64_t scale() const { return int64_t{channels} * kLabelTokens / 2; }
  constexpr int64_t min() const { return scale() + 2 * kLabelTokens; }
  constexpr int64_t bytes() const { return min() + 2 * kLabelTokens; }
};

constexpr int code_bit(int j) {
  return j % 4 * 8 + j / 4 * 4;
}

Status check_kv_label(const KvLabelLayout& layout);

// Labels of tokens [first, first + count) of one head into its records; record i holds tokens
// 16 i .. 16 i + 15 and is zeroed when its first token comes. keys: [count, d] rows of `dtype` that
// lie token_stride elements apart; channel_ids: [r], below d.
void pack_kv_labels(const KvLabelLayout& layout, DType dtype, const void* keys,
                    int64_t token_stride, const int32_t* channel_ids, int64_t first, int64_t count,
                    void* records);

// out: f32 [count, r] of tokens [0, count).
void unpack_kv_labels(const KvLabelLayout& layout, const void* records, int64_t count, float* out);

}  // namespace tamis
