// Sentences shared by the formats' check functions, each "check: array: got X, wanted Y".
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/format.h"

namespace tamis {

// The element count of one array.
inline Status check_length(const char* array, int64_t got, int64_t wanted) {
  if (got == wanted) return {};
  return error(Code::corrupt, "check: %s: got %lld elements, wanted %lld", array,
               static_cast<long long>(got), static_cast<long long>(wanted));
}

// Offsets [count + 1] start at 0, never fall, and end at `total`.
inline Status check_offsets(const int64_t* offsets, int64_t count, int64_t total) {
  if (offsets[0] != 0) {
    return error(Code::corrupt, "check: row_offsets[0]: got %lld, wanted 0",
                 static_cast<long long>(offsets[0]));
  }
  for (int64_t i = 0; i < count; ++i) {
    if (offsets[i + 1] < offsets[i] || offsets[i + 1] > total) {
      return error(Code::corrupt,
                   "check: row_offsets[%lld]: got %lld, wanted at least the %lld before it and at "
                   "most %lld",
                   static_cast<long long>(i + 1), static_cast<long long>(offsets[i + 1]),
                   static_cast<long long>(offsets[i]), static_cast<long long>(total));
    }
  }
  if (offsets[count] != total) {
    return error(Code::corrupt, "check: row_offsets[%lld]: got %lld, wanted %lld at the end",
                 static_cast<long long>(count), static_cast<long long>(offsets[count]),
                 static_cast<long long>(total));
  }
  return {};
}

// Column ids of one row, ids[begin, end): ascending and in [0, limit).
inline Status check_columns(const int32_t* ids, int64_t begin, int64_t end, int64_t limit) {
  int64_t previous = -1;
  for (int64_t i = begin; i < end; ++i) {
    if (ids[i] <= previous || ids[i] >= limit) {
      return error(Code::corrupt,
                   "check: col_indices[%lld]: got %d, wanted more than %lld and "
                   "less than %lld",
                   static_cast<long long>(i), ids[i], static_cast<long long>(previous),
                   static_cast<long long>(limit));
    }
    previous = ids[i];
  }
  return {};
}

// Bits of one mask row that stand for no column are zero.
inline Status check_mask_tail(const uint64_t* words, int64_t row, int64_t cols) {
  if (cols % 64 == 0 || (words[cols / 64] >> (cols % 64)) == 0) return {};
  return error(Code::corrupt, "check: mask: got bits beyond column %lld in row %lld, wanted none",
               static_cast<long long>(cols), static_cast<long long>(row));
}

}  // namespace tamis
