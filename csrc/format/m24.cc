// m24: pack from the row-major masks, unpack.
#include "format/m24.h"

#include <algorithm>
#include <cstring>

#include "format/rows.h"
#include "format/two_of_four.h"

namespace tamis::m24 {
namespace {

// Where element e of a row half (0 or 8 rows down) lies in its step, in values.
int64_t place_of(int64_t row, int64_t element) {
  const int64_t lane = row % 8 * 4 + element / 2 % 4;
  return lane * 8 + element / 8 * 4 + row / 8 * 2 + element % 2;
}

struct Record {
  uint32_t places[32];
  uint16_t values[2][256];
};
static_assert(sizeof(Record) == kRecordBytes);

// Four columns of one row: which are kept, and their values.
void put(Record* to, int64_t row, int64_t group, uint32_t bits, const uint16_t* values) {
  const TwoOfFour two(bits);
  const int64_t step = group / 8, first = group % 8 * 2;
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t element = first + i;
    to->values[step][place_of(row, element)] = two.from[i] < 0 ? uint16_t{0} : values[two.from[i]];
    to->places[row % 8 * 4 + 2 * step + element / 8] |= two.place[i]
                                                        << (16 * (row / 8) + 2 * (element % 8));
  }
}

}  // namespace

Status pack(const MatrixView& a, void* records) {
  if (a.format != Format::nm || a.of != 4 || a.keep > 2) {
    return error(Code::invalid_argument, "m24: format: got %s %d:%d, wanted nm 2:4 or 1:4",
                 name_of(a.format), a.keep, a.of);
  }
  if (a.dtype != DType::bf16 && a.dtype != DType::f16) {
    return error(Code::unsupported_dtype, "m24: dtype: got %s, wanted bf16 or f16",
                 name_of(a.dtype));
  }
  const int64_t across = t16::col_tiles(a.cols);
  const auto* values = static_cast<const uint16_t*>(a.values);
  for_rows(t16::row_tiles(a.rows), a.cols * t16::kTileRows, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin * across; tile < end * across; ++tile) {
      Record record = {};
      for (int64_t r = 0; r < t16::kTileRows; ++r) {
        const int64_t row = tile / across * t16::kTileRows + r;
        for (int64_t group = 0; group < 16; ++group) {
          const int64_t col = tile % across * t16::kTileCols + 4 * group;
          const bool inside = row < a.rows && col < a.cols;
          const uint64_t word = inside ? a.mask[row * mask_words(a.cols) + col / 64] : 0;
          const uint16_t* from = inside ? values + (row * (a.cols / 4) + col / 4) * a.keep : values;
          put(&record, r, group, static_cast<uint32_t>(word >> (col % 64) & 15), from);
        }
      }
      std::memcpy(static_cast<uint8_t*>(records) + tile * kRecordBytes, &record, sizeof record);
    }
  });
  return {};
}

void unpack(int64_t rows, int64_t cols, const void* records, uint16_t* out, int64_t out_stride) {
  const int64_t across = t16::col_tiles(cols);
  for (int64_t row = 0; row < rows; ++row) {
    uint16_t* to = out + row * out_stride;
    std::memset(to, 0, 2 * static_cast<size_t>(cols));
    for (int64_t element = 0; element < across * 32; ++element) {
      Record record;
      const int64_t tile = row / t16::kTileRows * across + element / 32;
      std::memcpy(&record, static_cast<const uint8_t*>(records) + tile * kRecordBytes,
                  sizeof record);
      const int64_t r = row % t16::kTileRows, step = element / 16 % 2, e = element % 16;
      const uint32_t place =
          record.places[r % 8 * 4 + 2 * step + e / 8] >> (16 * (r / 8) + 2 * (e % 8)) & 3;
      const int64_t col = element / 2 * 4 + place;
      const uint16_t value = record.values[step][place_of(r, e)];
      if (value != 0 && col < cols) to[col] = value;
    }
  }
}

}  // namespace tamis::m24
