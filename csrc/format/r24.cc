// r24: pack from the row-major masks, unpack, check.
#include "format/r24.h"

#include <algorithm>
#include <cstring>

#include "base/numeric.h"
#include "format/tile_records.h"

namespace tamis::r24 {
namespace {

using t16::kTileCols;
using t16::kTileRows;

constexpr int64_t kUnit = t16::kUnit;
constexpr uint32_t kFours = 16;                  // of a row of a tile
constexpr uint32_t kBanks = 32, kBankBytes = 4;  // of shared memory
constexpr size_t kLanes = 32;

// Columns of each pair, as bits; those of code i.
constexpr uint32_t kPairBits[kPairs] = {0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100};

struct Header {
  uint32_t codes[32];
  uint16_t values[2][32][8];
};
static_assert(sizeof(Header) == kHeaderBytes);

// Of four `four` of a row: the lane that writes it, and which of its eight it is.
struct Slot {
  uint32_t lane, of;

  constexpr Slot(uint32_t row, uint32_t four)
      : lane(row % 4 * 8 + four / 2), of(row / 4 * 2 + four % 2) {}
};

struct PairCodes {
  uint8_t code[16] = {};  // of a four's columns that are kept, as bits, two at most
};
constexpr PairCodes pair_codes() {
  PairCodes all;
  for (uint32_t bits = 0; bits < 16; ++bits) {
    uint8_t code = 0;
    while (code < kPairs && (bits & ~kPairBits[code]) != 0) ++code;
    all.code[bits] = code;
  }
  return all;
}
constexpr PairCodes kCodeOf = pair_codes();

// What fours of a word keep beyond two.
int64_t residual_of(uint64_t word) {
  constexpr uint64_t kOnes = 0x1111111111111111u;
  const uint64_t a = word & kOnes, b = word >> 1 & kOnes, c = word >> 2 & kOnes,
                 d = word >> 3 & kOnes;
  const uint64_t three = (a & b & (c | d)) | (c & d & (a | b)), four = a & b & c & d;
  return popcount(three) + popcount(four);
}

int64_t units_of(const MaskTile& tile) {
  int64_t entries = 0;
  for (const uint64_t word : tile.mask) entries += residual_of(word);
  return kHeaderBytes / kUnit + ceil_div(entries * kEntryBytes, kUnit);
}

// Entries of a tile by the bank of shared memory that they go to.
struct Residual {
  static constexpr uint32_t kOfBank = kTileBytes / kBanks / 2;
  uint32_t entries[kBanks][kOfBank];
  uint32_t in_bank[kBanks] = {};

  static uint32_t bank(uint32_t byte) { return byte / kBankBytes % kBanks; }
  void add(uint32_t byte, uint16_t value) {
    const uint32_t b = bank(byte);
    entries[b][in_bank[b]++] = byte << 16 | value;
  }
  // Takes the one of `bits` columns of a four, from byte `at` on, whose bank has fewest.
  uint32_t pick(uint32_t bits, uint32_t at) const {
    uint32_t best = 0, fewest = UINT32_MAX;
    for (uint32_t left = bits; left != 0; left &= left - 1) {
      const auto col = static_cast<uint32_t>(__builtin_ctz(left));
      if (in_bank[bank(at + 2 * col)] < fewest) best = col, fewest = in_bank[bank(at + 2 * col)];
    }
    return best;
  }
  // Those that a warp stores at once, 32, in as many banks as there are, fullest first.
  void write(uint8_t* to) const {
    uint32_t sorted[kBanks * kOfBank], left[kBanks], most = 0;
    size_t n = 0, all = 0;
    for (uint32_t b = 0; b < kBanks; ++b) {
      left[b] = in_bank[b];
      all += in_bank[b];
      most = std::max(most, in_bank[b]);
    }
    while (n < all) {
      const size_t end = std::min<size_t>(n / kLanes * kLanes + kLanes, all);
      uint32_t before[kBanks];
      std::copy(left, left + kBanks, before);
      for (uint32_t full = most; full > 0; --full) {
        for (uint32_t b = 0; b < kBanks && n < end; ++b) {
          if (before[b] == full) sorted[n++] = entries[b][--left[b]];
        }
      }
    }
    for (; n % 4 != 0; ++n) sorted[n] = sorted[n - 1];
    std::memcpy(to, sorted, n * kEntryBytes);
  }
};

void write_record(const MaskTile& tile, const uint16_t* stored, uint8_t* to) {
  Header header = {};
  Residual residual;
  for (uint32_t r = 0; r < kTileRows; ++r) {
    const uint64_t word = tile.mask[r];
    if (word == 0) continue;
    const uint16_t* value = stored + tile.first[r];
    for (uint32_t four = 0; four < kFours; ++four) {
      const auto bits = static_cast<uint32_t>(word >> (4 * four) & 15);
      if (bits == 0) continue;
      uint16_t columns[4] = {};
      for (uint32_t left = bits; left != 0; left &= left - 1) {
        columns[__builtin_ctz(left)] = *value++;
      }
      const uint32_t at = byte_of(r, 4 * four);
      uint32_t pair = bits;
      for (int beyond = popcount(bits) - 2; beyond > 0; --beyond) {
        const uint32_t col = residual.pick(pair, at);
        residual.add(at + 2 * col, columns[col]);
        pair &= ~(1u << col);
      }
      const uint32_t code = kCodeOf.code[pair], both = kPairBits[code];
      const Slot slot(r, four);
      header.codes[slot.lane] |= code << (4 * slot.of);
      uint16_t* values = header.values[slot.of / 4][slot.lane] + slot.of % 4 * 2;
      const auto first = static_cast<uint32_t>(__builtin_ctz(both));
      const auto second = 31 - static_cast<uint32_t>(__builtin_clz(both));
      if ((pair >> first & 1) != 0) values[0] = columns[first];
      if ((pair >> second & 1) != 0) values[1] = columns[second];
    }
  }
  std::memcpy(to, &header, sizeof header);
  residual.write(to + kHeaderBytes);
}

// Calls fn(row, column, value) for a record's values of pairs, zeros included, then its entries.
template <class Fn>
void for_values(const uint8_t* record, int64_t bytes, const Fn& fn) {
  Header header;
  std::memcpy(&header, record, sizeof header);
  for (uint32_t r = 0; r < kTileRows; ++r) {
    for (uint32_t four = 0; four < kFours; ++four) {
      const Slot slot(r, four);
      const uint32_t pair = kPairBits[(header.codes[slot.lane] >> (4 * slot.of) & 15) % kPairs];
      const uint16_t* values = header.values[slot.of / 4][slot.lane] + slot.of % 4 * 2;
      fn(r, 4 * four + static_cast<uint32_t>(__builtin_ctz(pair)), values[0]);
      fn(r, 4 * four + 31 - static_cast<uint32_t>(__builtin_clz(pair)), values[1]);
    }
  }
  for (int64_t at = kHeaderBytes; at < bytes; at += kEntryBytes) {
    uint32_t entry = 0;
    std::memcpy(&entry, record + at, sizeof entry);
    fn(row_of(entry >> 16), col_of(entry >> 16), static_cast<uint16_t>(entry));
  }
}

const uint8_t* record_at(const PackedView& a, uint32_t offset) {
  return static_cast<const uint8_t*>(a.records) + int64_t{offset} * kUnit;
}

// Whether codes are pairs and bytes of entries even ones inside a tile.
bool is_record(const uint8_t* record, int64_t bytes) {
  Header header;
  std::memcpy(&header, record, sizeof header);
  bool right = true;
  for (const uint32_t codes : header.codes) {
    for (int shift = 0; shift < 32; shift += 4) right &= (codes >> shift & 15) < kPairs;
  }
  for (int64_t at = kHeaderBytes; at < bytes; at += kEntryBytes) {
    uint32_t entry = 0;
    std::memcpy(&entry, record + at, sizeof entry);
    right &= entry >> 16 < kTileBytes && (entry >> 16) % 2 == 0;
  }
  return right;
}

}  // namespace

Status pack_sizes(const MatrixView& a, t16::Sizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_masked_halves("r24", a));
  return record_sizes("r24", a, MaskTiles{a}, units_of, sizes);
}

Status pack(const MatrixView& a, uint32_t* offsets, void* records) {
  TAMIS_RETURN_IF_ERROR(check_masked_halves("r24", a));
  const auto write = [&](int64_t, const MaskTile& tile, uint8_t* record, int64_t) {
    write_record(tile, static_cast<const uint16_t*>(a.values), record);
  };
  write_records(a, MaskTiles{a}, units_of, write, offsets, records);
  return {};
}

void unpack(const PackedView& a, uint16_t* out, int64_t out_stride) {
  for (int64_t r = 0; r < a.rows; ++r) {
    std::memset(out + r * out_stride, 0, 2 * static_cast<size_t>(a.cols));
  }
  const int64_t across = t16::col_tiles(a.cols);
  for (int64_t tile = 0; tile < t16::row_tiles(a.rows) * across; ++tile) {
    uint16_t* to = out + tile / across * kTileRows * out_stride + tile % across * kTileCols;
    for_values(record_at(a, a.offsets[tile]),
               (int64_t{a.offsets[tile + 1]} - a.offsets[tile]) * kUnit,
               [&](uint32_t row, uint32_t col, uint16_t value) {
                 if (value != 0) to[row * out_stride + col] = value;
               });
  }
}

Status check(const PackedView& a) {
  const int64_t across = t16::col_tiles(a.cols), units = a.record_bytes / kUnit;
  for (int64_t tile = 0; tile < t16::row_tiles(a.rows) * across; ++tile) {
    const uint32_t begin = a.offsets[tile], end = a.offsets[tile + 1];
    if (end > units || begin > end || end - begin < kHeaderBytes / kUnit) {
      return error(
          Code::corrupt,
          "r24: offsets: got 16 * [%u, %u) for tile %lld, wanted %lld bytes or more inside "
          "%lld",
          begin, end, static_cast<long long>(tile), static_cast<long long>(kHeaderBytes),
          static_cast<long long>(a.record_bytes));
    }
    const int64_t bytes = (int64_t{end} - begin) * kUnit;
    const uint8_t* record = record_at(a, begin);
    bool right = is_record(record, bytes);
    const int64_t rows = a.rows - tile / across * kTileRows;
    const int64_t cols = a.cols - tile % across * kTileCols;
    if (right) {
      for_values(record, bytes, [&](uint32_t row, uint32_t col, uint16_t value) {
        right &= value == 0 || (row < rows && col < cols);
      });
    }
    if (!right) {
      return error(Code::corrupt,
                   "r24: records: got codes that are no pairs, entries outside their tile, or "
                   "values beyond %lld rows and %lld columns, in tile %lld",
                   static_cast<long long>(a.rows), static_cast<long long>(a.cols),
                   static_cast<long long>(tile));
    }
  }
  return {};
}

}  // namespace tamis::r24
