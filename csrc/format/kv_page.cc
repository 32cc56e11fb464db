// Quantized KV pages: checked, read back.
#include "format/kv_page.h"

#include <cstdint>
#include <cstring>

#include "base/numeric.h"
#include "base/status.h"

namespace tamis {
namespace {

template <class T>
T read(const uint8_t* part, int64_t i) {
  T value;
  std::memcpy(&value, part + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float read_f16(const uint8_t* part, int64_t i) {
  return f32_from_f16(read<uint16_t>(part, i));
}

// Code of (lane axis, word axis) = (i, j) where `length` is the extent of the word axis.
uint32_t code_at(const uint8_t* codes, int bits, int64_t length, int64_t i, int64_t j) {
  const int64_t per_word = 32 / bits;
  const int64_t word =
      (i / kKvLanes * (length / per_word) + j / per_word) * kKvLanes + i % kKvLanes;
  const int shift = code_shift(static_cast<int>(j % per_word), bits);
  return read<uint32_t>(codes, word) >> shift & ((1u << bits) - 1);
}

bool is_width(int bits) {
  return bits == 2 || bits == 4 || bits == 8;
}

}  // namespace

Status check_kv_page(const KvPageLayout& a) {
  if (a.head_dim < 16 || a.head_dim > kKvMaxHeadDim || a.head_dim % 16 != 0) {
    return error(Code::invalid_argument,
                 "kv_page: head_dim: got %d, wanted a multiple of 16 from 16 to %d", a.head_dim,
                 kKvMaxHeadDim);
  }
  if (a.tokens < 16 || a.tokens > kKvMaxTokens || a.tokens % 16 != 0) {
    return error(Code::invalid_argument,
                 "kv_page: tokens: got %d, wanted a multiple of 16 from 16 to %d", a.tokens,
                 kKvMaxTokens);
  }
  if (!is_width(a.key_bits) || !is_width(a.value_bits)) {
    return error(Code::invalid_argument, "kv_page: bits: got %d (keys) and %d, wanted 2, 4 or 8",
                 a.key_bits, a.value_bits);
  }
  if (a.group < 16 || a.group % 16 != 0 || a.head_dim % a.group != 0) {
    return error(Code::invalid_argument,
                 "kv_page: group: got %d, wanted a multiple of 16 that divides head_dim %d",
                 a.group, a.head_dim);
  }
  return {};
}

void unpack_kv_page(const KvPageLayout& a, const void* record, float* keys, float* values) {
  const auto* bytes = static_cast<const uint8_t*>(record);
  const int64_t d = a.head_dim;
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t c = 0; c < d; ++c) {
      if (keys != nullptr) {
        const uint32_t code = code_at(bytes + a.key_codes(), a.key_bits, d, t, c);
        keys[t * d + c] = read_f16(bytes + a.key_min(), c) +
                          read_f16(bytes + a.key_scale(), c) * static_cast<float>(code);
      }
      if (values != nullptr) {
        const uint32_t code = code_at(bytes + a.value_codes(), a.value_bits, a.tokens, c, t);
        const int64_t at = c / a.group * a.tokens + t;
        values[t * d + c] = read_f16(bytes + a.value_min(), at) +
                            read_f16(bytes + a.value_scale(), at) * static_cast<float>(code);
      }
    }
  }
}

}  // namespace tamis
