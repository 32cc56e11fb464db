// m24i8: pack from the row-major masks, unpack.
#include "format/m24i8.h"

#include <cstring>

#include "base/numeric.h"
#include "format/rows.h"
#include "format/two_of_four.h"

namespace tamis::m24i8 {
namespace {

// Where kept element e of a row of a tile lies among the codes.
int64_t code_at(int64_t row, int64_t element) {
  const int64_t lane = row % 8 * 4 + element / 4 % 4;
  return lane * 16 + element / 16 * 8 + row / 8 * 4 + element % 4;
}
// The word that has its place; two bits from 2 * (element % 16) on.
int64_t word_of(int64_t row, int64_t element) {
  return row % 8 * 4 + element / 16 * 2 + row / 8;
}

struct Record {
  uint32_t places[32];
  int8_t codes[512];
};
static_assert(sizeof(Record) == kRecordBytes);

void put(Record* to, int64_t row, int64_t group, uint32_t bits, const int8_t* codes) {
  const TwoOfFour two(bits);
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t element = 2 * group + i;
    to->codes[code_at(row, element)] = two.from[i] < 0 ? int8_t{0} : codes[two.from[i]];
    to->places[word_of(row, element)] |= two.place[i] << (2 * (element % 16));
  }
}

}  // namespace

Status pack(const MatrixView& a, void* records) {
  if (a.format != Format::nm || a.of != 4 || a.keep > 2) {
    return error(Code::invalid_argument, "m24i8: format: got %s %d:%d, wanted nm 2:4 or 1:4",
                 name_of(a.format), a.keep, a.of);
  }
  if (a.dtype != DType::i8) {
    return error(Code::unsupported_dtype, "m24i8: dtype: got %s, wanted i8", name_of(a.dtype));
  }
  const int64_t across = t16::col_tiles(a.cols);
  const auto* codes = static_cast<const int8_t*>(a.values);
  for_rows(t16::row_tiles(a.rows), a.cols * t16::kTileRows, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin * across; tile < end * across; ++tile) {
      Record record = {};
      for (int64_t r = 0; r < t16::kTileRows; ++r) {
        const int64_t row = tile / across * t16::kTileRows + r;
        for (int64_t group = 0; group < 16; ++group) {
          const int64_t col = tile % across * t16::kTileCols + 4 * group;
          const bool inside = row < a.rows && col < a.cols;
          const uint64_t word = inside ? a.mask[row * mask_words(a.cols) + col / 64] : 0;
          const int8_t* from = inside ? codes + (row * (a.cols / 4) + col / 4) * a.keep : codes;
          put(&record, r, group, static_cast<uint32_t>(word >> (col % 64) & 15), from);
        }
      }
      std::memcpy(static_cast<uint8_t*>(records) + tile * kRecordBytes, &record, sizeof record);
    }
  });
  return {};
}

void unpack(int64_t rows, int64_t cols, const void* records, int8_t* out, int64_t out_stride) {
  const int64_t across = t16::col_tiles(cols);
  for (int64_t row = 0; row < rows; ++row) {
    int8_t* to = out + row * out_stride;
    std::memset(to, 0, static_cast<size_t>(cols));
    for (int64_t i = 0; i < across * 32; ++i) {
      Record record;
      const int64_t tile = row / t16::kTileRows * across + i / 32;
      std::memcpy(&record, static_cast<const uint8_t*>(records) + tile * kRecordBytes,
                  sizeof record);
      const int64_t r = row % t16::kTileRows, e = i % 32;
      const uint32_t place = record.places[word_of(r, e)] >> (2 * (e % 16)) & 3;
      const int64_t col = i / 2 * 4 + place;
      const int8_t code = record.codes[code_at(r, e)];
      if (code != 0 && col < cols) to[col] = code;
    }
  }
}

}  // namespace tamis::m24i8
