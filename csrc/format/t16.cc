// t16: pack from the row-major masks, unpack, check.
#include "format/t16.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/numeric.h"
#include "format/rows.h"

namespace tamis::t16 {
namespace {

constexpr int kLanes = 32, kRuns = 8, kRunBits = 4;

// The tile's 16 mask words, one per row; zero beyond the matrix.
struct TileMask {
  uint64_t row[kTileRows];
};

TileMask mask_of(const MatrixView& a, int64_t row_tile, int64_t col_tile) {
  TileMask tile = {};
  const int64_t rows = std::min(kTileRows, a.rows - row_tile * kTileRows);
  for (int64_t r = 0; r < rows; ++r) {
    tile.row[r] = a.mask[(row_tile * kTileRows + r) * mask_words(a.cols) + col_tile];
  }
  return tile;
}

// The four bits of `run` in `lane`, and where they lie.
struct Nibble {
  int row, col;
  uint32_t bits;
};

Nibble nibble_of(const TileMask& tile, int run, int lane) {
  const int row = lane / 4 + 8 * (run % 2), col = 16 * (lane % 4) + kRunBits * (run / 2);
  return {row, col, static_cast<uint32_t>(tile.row[row] >> col & 15u)};
}

int64_t kept_in(const TileMask& tile) {
  int64_t kept = 0;
  for (const uint64_t word : tile.row) kept += popcount(word);
  return kept;
}

int64_t record_bytes(int64_t kept) {
  return ceil_div(kHeaderBytes + 2 * kept, kUnit) * kUnit;
}

// Index of the first stored value of each row of a row tile.
void row_starts(const MatrixView& a, int64_t row_tile, int64_t (&next)[kTileRows]) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int64_t row = std::min(row_tile * kTileRows + r, a.rows);
    next[r] = a.format == Format::nm ? row * (a.cols / a.of) * a.keep : a.row_offsets[row];
  }
}

// Writes one record; next[r] is the index of the tile's first value in row r.
void write_record(const TileMask& tile, const uint16_t* values, const int64_t (&next)[kTileRows],
                  uint8_t* record, int64_t bytes) {
  std::memset(record, 0, static_cast<size_t>(bytes));
  uint32_t words[kLanes] = {};
  uint16_t starts[kRuns];
  int64_t at = kHeaderBytes;
  for (int run = 0; run < kRuns; ++run) {
    starts[run] = static_cast<uint16_t>(at);
    for (int lane = 0; lane < kLanes; ++lane) {
      const Nibble n = nibble_of(tile, run, lane);
      words[lane] |= n.bits << (kRunBits * run);
      const uint64_t before = tile.row[n.row] & ((uint64_t{1} << n.col) - 1);
      const uint16_t* source = values + next[n.row] + popcount(before);
      const int kept = popcount(n.bits);
      std::memcpy(record + at, source, 2 * static_cast<size_t>(kept));
      at += 2 * kept;
    }
  }
  std::memcpy(record, words, sizeof words);
  std::memcpy(record + kWordBytes, starts, sizeof starts);
}

Status check_source(const MatrixView& a) {
  if (a.format != Format::bitmap && a.format != Format::nm) {
    return error(Code::invalid_argument, "t16: format: got %s, wanted bitmap or nm",
                 name_of(a.format));
  }
  if (a.dtype != DType::bf16 && a.dtype != DType::f16) {
    return error(Code::unsupported_dtype, "t16: dtype: got %s, wanted bf16 or f16",
                 name_of(a.dtype));
  }
  return {};
}

// Length of every record, in units, at offsets[tile + 1].
template <class Write>
void for_each_length(const MatrixView& a, const Write& write) {
  const int64_t across = col_tiles(a.cols);
  for_rows(row_tiles(a.rows), a.cols * kTileRows, [&](int64_t begin, int64_t end) {
    for (int64_t rt = begin; rt < end; ++rt) {
      for (int64_t ct = 0; ct < across; ++ct) {
        write(rt * across + ct, record_bytes(kept_in(mask_of(a, rt, ct))) / kUnit);
      }
    }
  });
}

}  // namespace

Status pack_sizes(const MatrixView& a, Sizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  std::atomic<int64_t> total{0}, longest{0};
  for_each_length(a, [&](int64_t, int64_t units) {
    total.fetch_add(units, std::memory_order_relaxed);
    int64_t seen = longest.load(std::memory_order_relaxed);
    while (seen < units && !longest.compare_exchange_weak(seen, units)) {
    }
  });
  if (total > UINT32_MAX) {
    return error(Code::invalid_argument,
                 "t16: w: got records of %lld bytes, wanted at most 16 * (2^32 - 1)",
                 static_cast<long long>(total * kUnit));
  }
  *sizes = {.offsets = row_tiles(a.rows) * col_tiles(a.cols) + 1,
            .record_bytes = total * kUnit,
            .max_record_bytes = longest * kUnit};
  return {};
}

Status pack(const MatrixView& a, uint32_t* offsets, void* records) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  const int64_t across = col_tiles(a.cols), tiles = row_tiles(a.rows) * across;
  offsets[0] = 0;
  for_each_length(
      a, [&](int64_t tile, int64_t units) { offsets[tile + 1] = static_cast<uint32_t>(units); });
  for (int64_t i = 0; i < tiles; ++i) offsets[i + 1] += offsets[i];

  const auto* values = static_cast<const uint16_t*>(a.values);
  for_rows(row_tiles(a.rows), a.cols * kTileRows, [&](int64_t begin, int64_t end) {
    for (int64_t rt = begin; rt < end; ++rt) {
      int64_t next[kTileRows];
      row_starts(a, rt, next);
      for (int64_t ct = 0; ct < across; ++ct) {
        const TileMask tile = mask_of(a, rt, ct);
        const uint32_t* o = offsets + rt * across + ct;
        write_record(tile, values, next, static_cast<uint8_t*>(records) + o[0] * kUnit,
                     (int64_t{o[1]} - o[0]) * kUnit);
        for (int64_t r = 0; r < kTileRows; ++r) next[r] += popcount(tile.row[r]);
      }
    }
  });
  return {};
}

Status unpack(const T16View& a, uint16_t* out, int64_t out_stride) {
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
  return {};
}

Status check(const T16View& a) {
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
