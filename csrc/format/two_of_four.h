// Tiles of weights with at most two of every four columns kept, as sparse tensor cores read them.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/numeric.h"
#include "base/status.h"
#include "format/rows.h"
#include "format/t16.h"

namespace tamis {

// From the bits of four columns: two rising places, and which of the kept values lies at each;
// where fewer are kept, none (-1), so a zero.
struct TwoOfFour {
  uint32_t place[2] = {0, 1};
  int from[2] = {-1, -1};

  explicit TwoOfFour(uint32_t bits) {
    const int kept = popcount(bits);
    if (kept == 2) {
      place[0] = static_cast<uint32_t>(__builtin_ctz(bits));
      place[1] = 31 - static_cast<uint32_t>(__builtin_clz(bits));
      from[0] = 0;
      from[1] = 1;
    } else if (kept == 1) {  // beside any other place, in order
      const auto only = static_cast<uint32_t>(__builtin_ctz(bits));
      place[0] = only == 3 ? 0 : only;
      place[1] = 3;
      from[only == 3 ? 1 : 0] = 0;
    }
  }
};

inline Status check_two_of_four(const char* name, const MatrixView& a) {
  if (a.format == Format::nm && a.of == 4 && a.keep <= 2) return {};
  return error(Code::invalid_argument, "%s: format: got %s %d:%d, wanted nm 2:4 or 1:4", name,
               name_of(a.format), a.keep, a.of);
}

// A Record is a tile: of kept element e of row r, of 32 and 16, it has value(r, e), two bits of
// places[word(r, e)] from bit(r, e) on.
template <class Record>
void pack_two_of_four(const MatrixView& a, void* records) {
  const int64_t across = t16::col_tiles(a.cols);
  const auto* values = static_cast<const typename Record::Value*>(a.values);
  for_rows(t16::row_tiles(a.rows), a.cols * t16::kTileRows, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin * across; tile < end * across; ++tile) {
      Record record = {};
      for (int64_t r = 0; r < t16::kTileRows; ++r) {
        const int64_t row = tile / across * t16::kTileRows + r;
        for (int64_t group = 0; group < t16::kTileCols / 4; ++group) {
          const int64_t col = tile % across * t16::kTileCols + 4 * group;
          const bool inside = row < a.rows && col < a.cols;
          const uint64_t word = inside ? a.mask[row * mask_words(a.cols) + col / 64] : 0;
          const auto* from = inside ? values + (row * (a.cols / 4) + col / 4) * a.keep : values;
          const TwoOfFour two(static_cast<uint32_t>(word >> (col % 64) & 15));
          for (int64_t i = 0; i < 2; ++i) {
            const int64_t e = 2 * group + i;
            if (two.from[i] >= 0) record.value(r, e) = from[two.from[i]];
            record.places[Record::word(r, e)] |= two.place[i] << Record::bit(r, e);
          }
        }
      }
      std::memcpy(static_cast<uint8_t*>(records) + tile * static_cast<int64_t>(sizeof record),
                  &record, sizeof record);
    }
  });
}

// Of a value that is zero nothing tells whether it was kept: it comes back as one that was not.
template <class Record>
void unpack_two_of_four(int64_t rows, int64_t cols, const void* records,
                        typename Record::Value* out, int64_t out_stride) {
  const int64_t across = t16::col_tiles(cols);
  for (int64_t row = 0; row < rows; ++row) {
    auto* to = out + row * out_stride;
    std::memset(to, 0, sizeof *to * static_cast<size_t>(cols));
    for (int64_t i = 0; i < across * 32; ++i) {
      Record record;
      const int64_t tile = row / t16::kTileRows * across + i / 32;
      std::memcpy(&record,
                  static_cast<const uint8_t*>(records) + tile * static_cast<int64_t>(sizeof record),
                  sizeof record);
      const int64_t r = row % t16::kTileRows, e = i % 32;
      const int64_t col = i / 2 * 4 + (record.places[Record::word(r, e)] >> Record::bit(r, e) & 3);
      if (record.value(r, e) != 0 && col < cols) to[col] = record.value(r, e);
    }
  }
}

}  // namespace tamis
