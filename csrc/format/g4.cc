// g4: pack from groupq.
#include "format/g4.h"

#include <cstring>

#include "base/numeric.h"
#include "format/tile_records.h"

namespace tamis::g4 {
namespace {

// The tile's mask; row and column of a unit by its bit.
int64_t row_of(int bit) {
  return bit % 32 / 4 + bit / 32 * 8;
}
int64_t col_of(int bit) {
  return kUnitColumns * (bit % 4);
}

// Index of the stored group that holds this column of this row, -1 if it is dropped.
int64_t group_at(const MatrixView& a, int64_t row, int64_t col) {
  if (row >= a.rows || col >= a.cols) return -1;
  const int64_t group = col / a.group_size, word = group / 64;
  const uint64_t* words = a.mask + row * mask_words(a.cols / a.group_size);
  if ((words[word] >> (group % 64) & 1) == 0) return -1;
  int64_t before = a.row_offsets[row];
  for (int64_t w = 0; w < word; ++w) before += popcount(words[w]);
  return before + popcount(words[word] & ((uint64_t{1} << (group % 64)) - 1));
}

struct Tile {
  int64_t group[64];  // of each unit, or -1
  int kept = 0;
};

Tile tile_of(const MatrixView& a, int64_t row_tile, int64_t col_tile) {
  Tile tile;
  for (int bit = 0; bit < 64; ++bit) {
    tile.group[bit] = group_at(a, row_tile * t16::kTileRows + row_of(bit),
                               col_tile * t16::kTileCols + col_of(bit));
    tile.kept += tile.group[bit] < 0 ? 0 : 1;
  }
  return tile;
}

int64_t units_of(const Tile& tile) {
  return ceil_div(kMaskBytes + tile.kept * (kCodeBytes + kScaleBytes), t16::kUnit);
}

uint32_t code_at(const MatrixView& a, int64_t group, int64_t column) {
  const int64_t half = a.group_size / 2;
  const auto* bytes = static_cast<const uint8_t*>(a.values) + group * half;
  return column < half ? bytes[column] & 15u : bytes[column - half] >> 4;
}

void write_record(const MatrixView& a, const Tile& tile, int64_t col, uint8_t* record,
                  int64_t bytes) {
  std::memset(record, 0, static_cast<size_t>(bytes));
  uint64_t mask = 0;
  uint8_t* codes = record + kMaskBytes;
  uint8_t* scales = codes + tile.kept * kCodeBytes;
  for (int bit = 0; bit < 64; ++bit) {
    const int64_t group = tile.group[bit];
    if (group < 0) continue;
    mask |= uint64_t{1} << bit;
    const int64_t first = (col + col_of(bit)) % a.group_size;
    uint32_t words[2];
    unit_codes(a, group, first, words);
    std::memcpy(codes, words, sizeof words);
    codes += sizeof words;
    std::memcpy(scales, a.group_scales + 2 * group, kScaleBytes);
    scales += kScaleBytes;
  }
  std::memcpy(record, &mask, sizeof mask);
}

// As tile_records.h takes it.
struct Tiles {
  const MatrixView& a;

  template <class Fn>
  void operator()(int64_t begin, int64_t end, const Fn& fn) const {
    const int64_t across = t16::col_tiles(a.cols);
    for (int64_t tile = begin * across; tile < end * across; ++tile) {
      fn(tile, tile_of(a, tile / across, tile % across));
    }
  }
};

}  // namespace

Status check_source(const char* format, const MatrixView& a) {
  if (a.format != Format::groupq || a.dtype != DType::u4) {
    return error(Code::invalid_argument, "%s: format: got %s of %s, wanted groupq of u4", format,
                 name_of(a.format), name_of(a.dtype));
  }
  const int64_t groups = a.row_offsets[a.rows];
  for (int64_t g = 0; g < groups; ++g) {
    const float zero = f32_from_f16(a.group_scales[2 * g + 1]);
    if (!(zero >= 0 && zero <= 15 && zero == static_cast<float>(static_cast<int>(zero)))) {
      return error(Code::no_kernel, "%s: zero: got %g, wanted a whole number from 0 to 15", format,
                   static_cast<double>(zero));
    }
  }
  return {};
}

void unit_codes(const MatrixView& a, int64_t group, int64_t first, uint32_t (&words)[2]) {
  for (int64_t word = 0; word < 2; ++word) {
    words[word] = 0;
    for (int j = 0; j < 8; ++j) {
      words[word] |= code_at(a, group, first + 8 * word + j) << (j / 2 * 4 + j % 2 * 16);
    }
  }
}

Status pack_sizes(const MatrixView& a, t16::Sizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_source("g4", a));
  return record_sizes("g4", a, Tiles{a}, units_of, sizes);
}

Status pack(const MatrixView& a, uint32_t* offsets, void* records) {
  TAMIS_RETURN_IF_ERROR(check_source("g4", a));
  const int64_t across = t16::col_tiles(a.cols);
  const auto write = [&](int64_t i, const Tile& tile, uint8_t* record, int64_t bytes) {
    write_record(a, tile, i % across * t16::kTileCols, record, bytes);
  };
  write_records(a, Tiles{a}, units_of, write, offsets, records);
  return {};
}

}  // namespace tamis::g4
