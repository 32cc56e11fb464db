// t16: pack from the row-major masks, unpack, check.
#include "format/t16.h"

#include <cstring>

#include "base/numeric.h"
#include "format/tile_records.h"

namespace tamis::t16 {
namespace {

constexpr int kLanes = 32, kRuns = 8, kRunBits = 4;

// The four bits of `run` in `lane`, and where they lie.
struct Nibble {
  int row, col;
  uint32_t bits;
};

Nibble nibble_of(const MaskTile& tile, int run, int lane) {
  const int row = lane / 4 + 8 * (run % 2), col = 16 * (lane % 4) + kRunBits * (run / 2);
  return {row, col, static_cast<uint32_t>(tile.mask[row] >> col & 15u)};
}

int64_t units_of(const MaskTile& tile) {
  return ceil_div(kHeaderBytes + 2 * tile.kept(), kUnit);
}

void write_record(const MaskTile& tile, const uint16_t* values, uint8_t* record, int64_t bytes) {
  std::memset(record, 0, static_cast<size_t>(bytes));
  uint32_t words[kLanes] = {};
  uint16_t starts[kRuns];
  int64_t at = kHeaderBytes;
  for (int run = 0; run < kRuns; ++run) {
    starts[run] = static_cast<uint16_t>(at);
    for (int lane = 0; lane < kLanes; ++lane) {
      const Nibble n = nibble_of(tile, run, lane);
      words[lane] |= n.bits << (kRunBits * run);
      const uint64_t before = tile.mask[n.row] & ((uint64_t{1} << n.col) - 1);
      const uint16_t* source = values + tile.first[n.row] + popcount(before);
      const int kept = popcount(n.bits);
      std::memcpy(record + at, source, 2 * static_cast<size_t>(kept));
      at += 2 * kept;
    }
  }
  std::memcpy(record, words, sizeof words);
  std::memcpy(record + kWordBytes, starts, sizeof starts);
}

}  // namespace

Status pack_sizes(const MatrixView& a, Sizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_masked_halves("t16", a));
  return record_sizes("t16", a, MaskTiles{a}, units_of, sizes);
}

Status pack(const MatrixView& a, uint32_t* offsets, void* records) {
  TAMIS_RETURN_IF_ERROR(check_masked_halves("t16", a));
  const auto write = [&](int64_t, const MaskTile& tile, uint8_t* record, int64_t bytes) {
    write_record(tile, static_cast<const uint16_t*>(a.values), record, bytes);
  };
  write_records(a, MaskTiles{a}, units_of, write, offsets, records);
  return {};
}

void unpack(const PackedView& a, uint16_t* out, int64_t out_stride) {
  const int64_t across = col_tiles(a.cols);
  for (int64_t r = 0; r < a.rows; ++r) {
    std::memset(out + r * out_stride, 0, 2 * static_cast<size_t>(a.cols));
  }
  for (int64_t tile = 0; tile < row_tiles(a.rows) * across; ++tile) {
    const auto* record = static_cast<const uint8_t*>(a.records) + a.offsets[tile] * kUnit;
    uint32_t words[kLanes];
    std::memcpy(words, record, sizeof words);
    const uint8_t* value = record + kHeaderBytes;
    for (int run = 0; run < kRuns; ++run) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int bit = 0; bit < kRunBits; ++bit) {
          if ((words[lane] >> (kRunBits * run + bit) & 1u) == 0) continue;
          const int64_t row = tile / across * kTileRows + lane / 4 + 8 * (run % 2);
          const int64_t col = tile % across * kTileCols + 16 * (lane % 4) + 4 * (run / 2) + bit;
          std::memcpy(out + row * out_stride + col, value, 2);
          value += 2;
        }
      }
    }
  }
}

Status check(const PackedView& a) {
  const int64_t across = col_tiles(a.cols), tiles = row_tiles(a.rows) * across;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = a.offsets[tile] * kUnit, end = a.offsets[tile + 1] * kUnit;
    if (begin > end || end > a.record_bytes || end - begin > a.max_record_bytes ||
        end - begin < kHeaderBytes) {
      return error(Code::corrupt,
                   "t16: offsets: got a record from byte %lld to %lld for tile %lld, wanted %lld "
                   "to %lld bytes inside %lld",
                   static_cast<long long>(begin), static_cast<long long>(end),
                   static_cast<long long>(tile), static_cast<long long>(kHeaderBytes),
                   static_cast<long long>(a.max_record_bytes),
                   static_cast<long long>(a.record_bytes));
    }
    const auto* record = static_cast<const uint8_t*>(a.records) + begin;
    uint32_t words[kLanes];
    uint16_t starts[kRuns];
    std::memcpy(words, record, sizeof words);
    std::memcpy(starts, record + kWordBytes, sizeof starts);
    int64_t at = kHeaderBytes;
    for (int run = 0; run < kRuns; ++run) {
      if (starts[run] != at) {
        return error(Code::corrupt, "t16: starts: got %d for run %d of tile %lld, wanted %lld",
                     starts[run], run, static_cast<long long>(tile), static_cast<long long>(at));
      }
      for (const uint32_t word : words) at += 2 * popcount(word >> (kRunBits * run) & 15u);
    }
    if (ceil_div(at, kUnit) * kUnit != end - begin) {
      return error(Code::corrupt, "t16: words: got %lld bytes in tile %lld, wanted %lld",
                   static_cast<long long>(at), static_cast<long long>(tile),
                   static_cast<long long>(end - begin));
    }
  }
  return {};
}

}  // namespace tamis::t16
