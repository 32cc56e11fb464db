// Mask words: bit j of word w of a row stands for column 64w+j. Everything here touches exactly
// the elements it is told about.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>

#include "base/numeric.h"
#include "format/format.h"
#include "format/rows.h"

namespace tamis {

// Columns that word `w` of a row really has.
inline int word_columns(int64_t cols, int64_t w) {
  return static_cast<int>(std::min<int64_t>(64, cols - 64 * w));
}

// Bit i of the result = byte i of 64 is nonzero.
inline uint64_t pack_bytes(const uint8_t* bytes) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t x;
    std::memcpy(&x, bytes + 8 * i, 8);
    constexpr uint64_t kLow7 = 0x7f7f7f7f7f7f7f7fu;
    const uint64_t nonzero = ((((x & kLow7) + kLow7) | x) & ~kLow7) >> 7;  // 0 or 1 in each byte
    // The product moves byte b's bit to bit 56 + b; no two partial products meet.
    word |= ((nonzero * 0x0102040810204080u) >> 56) << (8 * i);
  }
  return word;
}

// One typed row source: which of its weights are kept.
template <class T>  // uint32_t for f32, uint16_t for f16 and bf16
struct KeptRows {
  const T* w;
  const uint8_t* keep;  // null: every weight but +0 and -0
  int64_t stride, cols;

  // Bit j = column col + j is kept; n in [0, 64], bits from n on are zero.
  uint64_t word(int64_t row, int64_t col, int n) const {
    uint8_t bytes[64];
    if (n < 64) std::memset(bytes, 0, sizeof bytes);
    if (keep != nullptr) {
      const uint8_t* k = keep + row * cols + col;
      if (n == 64) return pack_bytes(k);
      std::memcpy(bytes, k, static_cast<size_t>(n));
      return pack_bytes(bytes);
    }
    const T* source = w + row * stride + col;
    const auto nonzero = [&](int count) {  // branch-free, so that the compiler vectorizes it
      for (int j = 0; j < count; ++j) bytes[j] = static_cast<T>(source[j] << 1) != 0;
    };
    n == 64 ? nonzero(64) : nonzero(n);
    return pack_bytes(bytes);
  }

  // Whether any of columns [col, col + n) is kept; n any length.
  bool any(int64_t row, int64_t col, int64_t n) const {
    T seen = 0;
    if (keep != nullptr) {
      const uint8_t* k = keep + row * cols + col;
      uint64_t eight = 0, bytes;
      int64_t j = 0;
      for (; j + 8 <= n; j += 8) {
        std::memcpy(&bytes, k + j, 8);
        eight |= bytes;
      }
      for (; j < n; ++j) eight |= k[j];
      return eight != 0;
    } else {
      const T* source = w + row * stride + col;
      for (int64_t j = 0; j < n; ++j) seen |= static_cast<T>(source[j] << 1);
    }
    return seen != 0;
  }
};

// Calls fn(KeptRows<T>) with the element type of w.
template <class Fn>
auto with_kept(const DenseView& w, const Fn& fn) {
  if (w.dtype == DType::f32) {
    return fn(KeptRows<uint32_t>{static_cast<const uint32_t*>(w.data), w.keep, w.stride, w.cols});
  }
  return fn(KeptRows<uint16_t>{static_cast<const uint16_t*>(w.data), w.keep, w.stride, w.cols});
}

// Writes the mask words of one row and returns how many bits are set.
template <class T>
int64_t write_mask_row(const KeptRows<T>& kept, int64_t row, uint64_t* words) {
  int64_t count = 0;
  for (int64_t w = 0; w < mask_words(kept.cols); ++w) {
    words[w] = kept.word(row, 64 * w, word_columns(kept.cols, w));
    count += popcount(words[w]);
  }
  return count;
}

template <class T>
int64_t count_row(const KeptRows<T>& kept, int64_t row) {
  int64_t count = 0;
  for (int64_t w = 0; w < mask_words(kept.cols); ++w) {
    count += popcount(kept.word(row, 64 * w, word_columns(kept.cols, w)));
  }
  return count;
}

inline int64_t count_kept(const DenseView& w) {
  std::atomic<int64_t> total{0};
  with_kept(w, [&](const auto& kept) {
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      int64_t count = 0;
      for (int64_t r = begin; r < end; ++r) count += count_row(kept, r);
      total.fetch_add(count, std::memory_order_relaxed);
    });
  });
  return total;
}

// Counts in offsets[1..count] become running totals.
inline void accumulate(int64_t* offsets, int64_t count) {
  for (int64_t i = 0; i < count; ++i) offsets[i + 1] += offsets[i];
}

// `length` <= 32 bits starting at bit `position`, which may cross a word.
inline uint64_t bits_at(const uint64_t* words, int64_t position, int length) {
  const int64_t w = position >> 6;
  const int shift = static_cast<int>(position & 63);
  uint64_t bits = words[w] >> shift;
  if (shift + length > 64) bits |= words[w + 1] << (64 - shift);
  return bits & ((uint64_t{1} << length) - 1);
}

// Calls fn(j) for every set bit j, ascending.
template <class Fn>
void for_each_bit(uint64_t word, const Fn& fn) {
  for (; word != 0; word &= word - 1) fn(std::countr_zero(word));
}

// keep[cols] of one row, 1 where a bit is set.
inline void expand_mask_row(const uint64_t* words, int64_t cols, uint8_t* keep) {
  for (int64_t j = 0; j < cols; ++j) keep[j] = (words[j >> 6] >> (j & 63)) & 1;
}

}  // namespace tamis
