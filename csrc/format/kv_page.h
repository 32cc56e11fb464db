// kv_page: the keys and values of `tokens` consecutive tokens of one KV head, quantized. One record
// of fixed size, the same bytes on every backend; records stand one after another, so an array of
// them can be mapped and any page found by multiplication.
//
// | part        | elements                 | what                                            |
// | key_codes   | u32 [tokens/16][d/n][16] | lane = token, the n codes of a word = channels  |
// | value_codes | u32 [d/16][tokens/n][16] | lane = channel, the n codes of a word = tokens  |
// | key_scale   | f16 [d]                  | per channel over the page's tokens              |
// | key_min     | f16 [d]                  | the same                                        |
// | value_scale | f16 [d/group][tokens]    | per token over a group of channels              |
// | value_min   | f16 [d/group][tokens]    | the same                                        |
//
// x = min + scale * code. n = 32 / bits codes a word, bits = 2, 4 or 8; code j of a word is at bit
// code_shift(j): even codes in the low half, odd ones in the high half, so that one shift aligns a
// pair of neighbours for a dot product of 16-bit elements.
//
// min rounds down and scale rounds up in f16: every finite value (beyond f16's range: the nearest
// in it; NaN: the lowest) lies within the codes' range and unpacks within half a step. A group of
// equal values that f16 holds has scale 0 and codes 0.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace tamis {

struct KvPageLayout {
  int32_t head_dim = 0;    // d, a multiple of 16, at most 256
  int32_t tokens = 32;     // of a page: a multiple of 16, at most 64
  int32_t key_bits = 4;    // 2, 4 or 8
  int32_t value_bits = 4;  // 2, 4 or 8
  int32_t group = 32;      // channels that share a token's value scale: a multiple of 16, divides d

  constexpr int64_t groups() const { return head_dim / group; }
  // Offsets of the parts in bytes, in order, and the size of the record.
  constexpr int64_t key_codes() const { return 0; }
  constexpr int64_t value_codes() const { return int64_t{head_dim} * tokens * key_bits / 8; }
  constexpr int64_t key_scale() const {
    return value_codes() + int64_t{head_dim} * tokens * value_bits / 8;
  }
  constexpr int64_t key_min() const { return key_scale() + 2 * int64_t{head_dim}; }
  constexpr int64_t value_scale() const { return key_min() + 2 * int64_t{head_dim}; }
  constexpr int64_t value_min() const { return value_scale() + 2 * groups() * tokens; }
  constexpr int64_t bytes() const { return value_min() + 2 * groups() * tokens; }
};

inline constexpr int32_t kKvLanes = 16;  // tokens (keys) or channels (values) beside each other
inline constexpr int32_t kKvMaxHeadDim = 256;
inline constexpr int32_t kKvMaxTokens = 64;

// Bit of code j in its word.
constexpr int code_shift(int j, int bits) {
  return j / 2 * bits + j % 2 * 16;
}

// Whether the sizes are ones that the format has.
Status check_kv_page(const KvPageLayout& layout);

// keys, values: f32 [tokens, d] of one record; either may be null.
void unpack_kv_page(const KvPageLayout& layout, const void* record, float* keys, float* values);

}  // namespace tamis
