// t16: 16-bit weights in tiles of 16 x 64, one contiguous record each, in the order in which the
// lanes of a warp feed tensor cores. A packed form for CUDA: derived from bitmap or nm at load,
// never serialized.
//
//   offsets  [tiles + 1]   u32, in units of 16 bytes: tile i owns records[16 * offsets[i],
//                          16 * offsets[i + 1]); tile i = row tile i / col_tiles, column tile
//                          i % col_tiles
//   records  [bytes]       per tile: words [32] u32, starts [8] u16, values [kept] u16, zeros up to
//                          the next multiple of 16 bytes
//
// Lane l = 4g + t of a warp owns words[l] and 32 weights: of rows g and g + 8, columns 16t to
// 16t + 15. Byte s of a word is step s, one m16n8k16 product: bits 0 to 3 are row g, columns
// 16t + 4s to 16t + 4s + 3, bits 4 to 7 the same columns of row g + 8. A run is one nibble of all
// lanes; runs are stored in the order step 0 low nibbles, step 0 high, step 1 low, ...; inside a
// run values go by lane, inside a lane by column. starts[i] is where run i begins, in bytes from
// the start of the record. So the 32 lanes' loads of one bit fall into 256 consecutive bytes at
// most, about 128 at half density, and few of them meet in a bank of shared memory.
//
// Rows and columns beyond the matrix have no bits. Explicit zeros are kept.
// Bytes: 2 * kept + 144 per tile + 8 on average to align = 2 d + 0.148 per weight.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/matrix.h"

namespace tamis {

// Forms of weights for CUDA: tiles of 16 x 64, which share kernels, but for r24, gap, p24 and
// sell4, and bitmap, the canonical arrays of bitmap and nm as they are.
enum class PackedFormat : uint8_t {
  t16,
  m24,
  g4,
  gap,
  p24,
  r24,
  sell4,
  m24i8,
  t16i8,
  m24i4,
  bitmap
};

constexpr const char* name_of(PackedFormat f) {
  switch (f) {
    case PackedFormat::t16:
      return "t16";
    case PackedFormat::m24:
      return "m24";
    case PackedFormat::g4:
      return "g4";
    case PackedFormat::gap:
      return "gap";
    case PackedFormat::p24:
      return "p24";
    case PackedFormat::r24:
      return "r24";
    case PackedFormat::sell4:
      return "sell4";
    case PackedFormat::m24i8:
      return "m24i8";
    case PackedFormat::t16i8:
      return "t16i8";
    case PackedFormat::m24i4:
      return "m24i4";
    case PackedFormat::bitmap:
      return "bitmap";
  }
  return "?";
}

// Whether values are codes with scales apart, which kernels multiply as bytes by codes of x.
constexpr bool has_byte_codes(PackedFormat f) {
  return f == PackedFormat::m24i8 || f == PackedFormat::t16i8 || f == PackedFormat::m24i4;
}
// Whether records differ in length, so that offsets say where they are.
constexpr bool has_offsets(PackedFormat f) {
  return f == PackedFormat::t16 || f == PackedFormat::g4 || f == PackedFormat::gap ||
         f == PackedFormat::p24 || f == PackedFormat::r24 || f == PackedFormat::sell4 ||
         f == PackedFormat::t16i8;
}

// A weight in one of these forms, on a device or, for the packers and their checks, in host memory.
struct PackedView {
  PackedFormat format = PackedFormat::t16;
  int64_t rows = 0, cols = 0;
  DType dtype = DType::bf16;  // or f16; where weights are codes, what x has
  const void* records = nullptr;
  const uint32_t* offsets = nullptr;  // where has_offsets
  int32_t parts = 0;                  // gap; of p24 panels
  // [rows, groups] where has_byte_codes; columns of a group: a multiple of 128, or 0 for
  // the whole row.
  const float* scales = nullptr;
  int64_t group_size = 0;
  // bitmap: its mask [rows, words], where rows begin, or null and how many values each has; records
  // are the values.
  const uint64_t* mask = nullptr;
  const int64_t* row_offsets = nullptr;
  int64_t row_values = 0;
  int64_t record_bytes = 0;      // all of them
  int64_t max_record_bytes = 0;  // of the longest: what a kernel's buffer must hold
  // No kernel still under way writes them: a launch may read ahead of the kernel before it.
  bool settled = false;
};

namespace t16 {

inline constexpr int64_t kTileRows = 16, kTileCols = 64;
inline constexpr int64_t kWordBytes = 128, kStartBytes = 16;
inline constexpr int64_t kHeaderBytes = kWordBytes + kStartBytes;
inline constexpr int64_t kMaxRecordBytes = kHeaderBytes + 2 * kTileRows * kTileCols;
inline constexpr int64_t kUnit = 16;  // of offsets

constexpr int64_t row_tiles(int64_t rows) {
  return ceil_div(rows, kTileRows);
}
constexpr int64_t col_tiles(int64_t cols) {
  return ceil_div(cols, kTileCols);
}

struct Sizes {
  int64_t offsets = 0, record_bytes = 0, max_record_bytes = 0;
};

// `a`: bitmap or nm, f16 or bf16, already checked. Fails on other formats and dtypes, and when the
// records pass the 64 GiB that offsets can say.
Status pack_sizes(const MatrixView& a, Sizes* sizes);

// Writes offsets[sizes.offsets] and records[sizes.record_bytes], padding included.
Status pack(const MatrixView& a, uint32_t* offsets, void* records);

// Writes all rows * cols elements of `out`, zeros included: the inverse of pack.
void unpack(const PackedView& a, uint16_t* out, int64_t out_stride);

// Everything a kernel relies on: offsets rise, and every record is as long as its bits say.
Status check(const PackedView& a);

}  // namespace t16
}  // namespace tamis
