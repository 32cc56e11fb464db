// t16i8: pack from the row-major masks, unpack.
#include "format/t16i8.h"

#include <cstring>

#include "base/numeric.h"
#include "format/tile_records.h"

namespace tamis::t16i8 {
namespace {

constexpr int kLanes = 32, kRuns = 4;

// Where bit `bit` of byte `run` of a lane's word lies in its tile.
int64_t row_of(int lane, int bit) {
  return lane / 4 + bit / 4 * 8;
}
int64_t col_of(int lane, int run, int bit) {
  return 16 * (lane % 4) + 4 * run + bit % 4;
}

int64_t units_of(const MaskTile& tile) {
  return ceil_div(kHeaderBytes + tile.kept(), t16::kUnit);
}

void write_record(const MaskTile& tile, const int8_t* values, uint8_t* record, int64_t bytes) {
  std::memset(record, 0, static_cast<size_t>(bytes));
  uint32_t words[kLanes] = {};
  uint8_t before[kLanes][kRuns];
  uint16_t starts[kRuns + 1];
  int64_t at = kHeaderBytes;
  for (int run = 0; run < kRuns; ++run) {
    starts[run] = static_cast<uint16_t>(at);
    for (int lane = 0; lane < kLanes; ++lane) {
      before[lane][run] = static_cast<uint8_t>(at - starts[run]);
      for (int bit = 0; bit < 8; ++bit) {
        const int64_t row = row_of(lane, bit), col = col_of(lane, run, bit);
        if ((tile.mask[row] >> col & 1) == 0) continue;
        words[lane] |= 1u << (8 * run + bit);
        const uint64_t before = tile.mask[row] & ((uint64_t{1} << col) - 1);
        record[at++] = static_cast<uint8_t>(values[tile.first[row] + popcount(before)]);
      }
    }
  }
  std::memcpy(record, words, sizeof words);
  starts[kRuns] = static_cast<uint16_t>(bytes / t16::kUnit);
  std::memcpy(record + kWordBytes, before, sizeof before);
  std::memcpy(record + kStartsAt, starts, sizeof starts);
}

Status check_source(const MatrixView& a) {
  TAMIS_RETURN_IF_ERROR(check_masked("t16i8", a));
  if (a.dtype == DType::i8) return {};
  return error(Code::unsupported_dtype, "t16i8: dtype: got %s, wanted i8", name_of(a.dtype));
}

}  // namespace

Status pack_sizes(const MatrixView& a, t16::Sizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  return record_sizes("t16i8", a, MaskTiles{a}, units_of, sizes);
}

Status pack(const MatrixView& a, uint32_t* offsets, void* records) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  const auto write = [&](int64_t, const MaskTile& tile, uint8_t* record, int64_t bytes) {
    write_record(tile, static_cast<const int8_t*>(a.values), record, bytes);
  };
  write_records(a, MaskTiles{a}, units_of, write, offsets, records);
  return {};
}

void unpack(const PackedView& a, int8_t* out, int64_t out_stride) {
  const int64_t across = t16::col_tiles(a.cols);
  for (int64_t r = 0; r < a.rows; ++r) {
    std::memset(out + r * out_stride, 0, static_cast<size_t>(a.cols));
  }
  for (int64_t tile = 0; tile < t16::row_tiles(a.rows) * across; ++tile) {
    const auto* record = static_cast<const uint8_t*>(a.records) + a.offsets[tile] * t16::kUnit;
    uint32_t words[kLanes];
    std::memcpy(words, record, sizeof words);
    const uint8_t* code = record + kHeaderBytes;
    for (int run = 0; run < kRuns; ++run) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int bit = 0; bit < 8; ++bit) {
          if ((words[lane] >> (8 * run + bit) & 1u) == 0) continue;
          const int64_t row = tile / across * t16::kTileRows + row_of(lane, bit);
          const int64_t col = tile % across * t16::kTileCols + col_of(lane, run, bit);
          out[row * out_stride + col] = static_cast<int8_t>(*code++);
        }
      }
    }
  }
}

}  // namespace tamis::t16i8
