// t16i8: pack from the row-major masks, unpack.
#include "format/t16i8.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/numeric.h"
#include "format/rows.h"

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

// The tile's 16 mask words, one per row, zero beyond the matrix; the index of the first value of
// each.
struct Tile {
  uint64_t mask[t16::kTileRows] = {};
  int64_t first[t16::kTileRows] = {};
};

int64_t row_start(const MatrixView& a, int64_t row) {
  return a.format == Format::nm ? row * (a.cols / a.of) * a.keep : a.row_offsets[row];
}

// Calls fn(index, tile) for the tiles of row tiles [begin, end) in order.
template <class Fn>
void for_tiles(const MatrixView& a, int64_t begin, int64_t end, const Fn& fn) {
  const int64_t across = t16::col_tiles(a.cols);
  for (int64_t rt = begin; rt < end; ++rt) {
    Tile tile;
    const int64_t rows = std::min(t16::kTileRows, a.rows - rt * t16::kTileRows);
    for (int64_t r = 0; r < rows; ++r) tile.first[r] = row_start(a, rt * t16::kTileRows + r);
    for (int64_t ct = 0; ct < across; ++ct) {
      for (int64_t r = 0; r < rows; ++r) {
        tile.mask[r] = a.mask[(rt * t16::kTileRows + r) * across + ct];
      }
      fn(rt * across + ct, tile);
      for (int64_t r = 0; r < rows; ++r) tile.first[r] += popcount(tile.mask[r]);
    }
  }
}

int64_t units_of(const Tile& tile) {
  int64_t kept = 0;
  for (const uint64_t word : tile.mask) kept += popcount(word);
  return ceil_div(kHeaderBytes + kept, t16::kUnit);
}

void write_record(const Tile& tile, const int8_t* values, uint8_t* record, int64_t bytes) {
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
  if (a.format != Format::bitmap && a.format != Format::nm) {
    return error(Code::invalid_argument, "t16i8: format: got %s, wanted bitmap or nm",
                 name_of(a.format));
  }
  if (a.dtype != DType::i8) {
    return error(Code::unsupported_dtype, "t16i8: dtype: got %s, wanted i8", name_of(a.dtype));
  }
  return {};
}

}  // namespace

Status pack_sizes(const MatrixView& a, t16::Sizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  std::atomic<int64_t> total{0}, longest{0};
  for_rows(t16::row_tiles(a.rows), a.cols * t16::kTileRows, [&](int64_t begin, int64_t end) {
    for_tiles(a, begin, end, [&](int64_t, const Tile& tile) {
      const int64_t units = units_of(tile);
      total.fetch_add(units, std::memory_order_relaxed);
      int64_t seen = longest.load(std::memory_order_relaxed);
      while (seen < units && !longest.compare_exchange_weak(seen, units)) {
      }
    });
  });
  if (total > UINT32_MAX) {
    return error(Code::invalid_argument,
                 "t16i8: w: got records of %lld bytes, wanted at most 16 * (2^32 - 1)",
                 static_cast<long long>(total * t16::kUnit));
  }
  *sizes = {.offsets = t16::row_tiles(a.rows) * t16::col_tiles(a.cols) + 1,
            .record_bytes = total * t16::kUnit,
            .max_record_bytes = longest * t16::kUnit};
  return {};
}

Status pack(const MatrixView& a, uint32_t* offsets, void* records) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  const int64_t tiles = t16::row_tiles(a.rows) * t16::col_tiles(a.cols);
  const auto for_each = [&](const auto& fn) {
    for_rows(t16::row_tiles(a.rows), a.cols * t16::kTileRows,
             [&](int64_t begin, int64_t end) { for_tiles(a, begin, end, fn); });
  };
  offsets[0] = 0;
  for_each(
      [&](int64_t i, const Tile& tile) { offsets[i + 1] = static_cast<uint32_t>(units_of(tile)); });
  for (int64_t i = 0; i < tiles; ++i) offsets[i + 1] += offsets[i];
  for_each([&](int64_t i, const Tile& tile) {
    write_record(tile, static_cast<const int8_t*>(a.values),
                 static_cast<uint8_t*>(records) + offsets[i] * t16::kUnit,
                 (int64_t{offsets[i + 1]} - offsets[i]) * t16::kUnit);
  });
  return {};
}

void unpack(const T16View& a, int8_t* out, int64_t out_stride) {
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
