// p24: pack from the row-major masks, unpack.
#include "format/p24.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/numeric.h"
#include "format/grouped_rows.h"
#include "format/masked.h"
#include "format/rows.h"

namespace tamis::p24 {
namespace {

constexpr int64_t kTileRows = t16::kTileRows;
constexpr int64_t kPairGroups = 16, kTripleGroups = 32;  // of a record
constexpr uint16_t kChunkBit = 1;                        // of a column of the first step
static_assert(kMaxPanelCols <= kChunkCols << kChunkBits);

using Tile = GroupedRows;
static_assert(Tile::kRows == kTileRows);

uint16_t byte16(int64_t column) {
  return static_cast<uint16_t>(byte_of_column(static_cast<uint32_t>(column)));
}

struct PairRecord {
  struct {
    uint32_t places;
    uint16_t columns[2];
  } heads[32];
  uint16_t values[2][32][8];
};
static_assert(sizeof(PairRecord) == kPairBytes);

struct TripleRecord {
  uint32_t places[32];
  uint16_t columns[24][4];
  uint16_t values[2][32][2][4];
};
static_assert(sizeof(TripleRecord) == kTripleBytes);

void put_columns(const ColumnGroup& columns, int64_t at, PairRecord* to) {
  for (int slot = 0; slot < 4; ++slot) {
    to->heads[4 * (at % 8) + slot].columns[at / 8] = byte16(column_of_slot(columns, slot));
  }
}
void put_columns(const ColumnGroup& columns, int64_t at, TripleRecord* to) {
  for (int slot = 0; slot < 3; ++slot) {
    to->columns[3 * (at % 8) + slot][at / 8] = byte16(column_of_slot(columns, slot));
  }
}

void put(const Tile& tile, const ColumnGroup& columns, int64_t at, PairRecord* to) {
  const int64_t step = at / 8, group = at % 8;
  put_columns(columns, at, to);
  for (int64_t r = 0; r < kTileRows; ++r) {
    const TwoOfFour two = two_of_four(tile, columns, r);
    const int64_t lane = r % 8 * 4 + group % 4;
    for (int64_t i = 0; i < 2; ++i) {
      to->values[step][lane][group / 4 * 4 + r / 8 * 2 + i] = two.value[i];
    }
    to->heads[r % 8 * 4 + 2 * step + group / 4].places ^= two.flips()
                                                          << (16 * (r / 8) + 4 * (group % 4));
  }
}

void put(const Tile& tile, const ColumnGroup& columns, int64_t at, TripleRecord* to) {
  const int64_t step = at / 8, group = at % 8;
  put_columns(columns, at, to);
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int slot = 0; slot < 3; ++slot) {
      if (columns[slot] < 0 || (tile.rows[columns[slot]] >> r & 1) == 0) continue;
      to->values[step / 2][r % 8 * 4 + group % 4][step % 2][group / 4 * 2 + r / 8] =
          tile.values[columns[slot] * kTileRows + r];
      to->places[r % 8 * 4 + step / 2 * 2 + group / 4] |=
          static_cast<uint32_t>(slot) << (16 * (r / 8) + 4 * (group % 4) + 2 * (step % 2));
    }
  }
}

void clear_places(PairRecord* record) {
  for (auto& head : record->heads) head.places = 0xccccccccu;
}
void clear_places(TripleRecord*) {}

uint16_t& first_column(PairRecord* record, int lane) {
  return record->heads[lane].columns[0];
}
uint16_t& first_column(TripleRecord* record, int lane) {
  return record->columns[lane / 4 * 3 + lane % 4][0];
}

// The last chunk that a record or one before it has a column of, in bits of the record's columns.
template <class Record>
void put_last_chunk(int32_t chunk, Record* record) {
  for (int bit = 0; bit < kChunkBits; ++bit) {
    first_column(record, chunk_lane(bit)) |= chunk >> bit & kChunkBit;
  }
}
template <class Record>
int32_t take_last_chunk(Record* record) {
  int32_t chunk = 0;
  for (int bit = 0; bit < kChunkBits; ++bit) {
    uint16_t& column = first_column(record, chunk_lane(bit));
    chunk |= (column & kChunkBit) << bit;
    column &= static_cast<uint16_t>(~kChunkBit);
  }
  return chunk;
}

// The records of a unit, and how many of them its first half has if it has halves.
struct UnitRecords {
  std::vector<uint8_t> bytes;
  uint32_t first_half = 0;
};

template <class Record>
UnitRecords records_of(const Tile& tile, GroupShape shape, int64_t width) {
  constexpr size_t kGroups = std::is_same_v<Record, PairRecord> ? kPairGroups : kTripleGroups;
  GroupWaist waist{static_cast<int32_t>(half_begin(width)), static_cast<int32_t>(half_end(width)),
                   kGroups};
  const bool halves = halves_of(width) > 1;
  const std::vector<ColumnGroup> groups =
      group_columns(tile.rows, tile.banks, shape, halves ? &waist : nullptr);
  const std::span<const ColumnGroup> all(groups);
  UnitRecords made;
  int32_t last = 0;  // column so far
  for (size_t first = 0; first < all.size();) {
    const size_t end = first < waist.count ? waist.count : all.size();
    const size_t n = std::min(kGroups, end - first);
    Record record = {};
    clear_places(&record);
    for (size_t i = 0; i < kGroups; ++i) {
      const auto at = static_cast<int64_t>(i);
      if (i < n) {
        const ColumnGroup& group = all[first + i];
        last = std::max(last, *std::max_element(group.begin(), group.end()));
        put(tile, group, at, &record);
      } else {  // columns of the last group, and no values
        put_columns(all[first + n - 1], at, &record);
      }
    }
    first += n;
    made.first_half += first <= waist.count;
    put_last_chunk(last / static_cast<int32_t>(kChunkCols), &record);
    const size_t at = made.bytes.size();
    made.bytes.resize(at + sizeof record);
    std::memcpy(made.bytes.data() + at, &record, sizeof record);
  }
  return made;
}

constexpr GroupShape kPairs{.kept = 2, .width = 4}, kTriples{.kept = 1, .width = 3};

// Units of a matrix: row tile u / panels, panel u % panels.
struct Units {
  const MatrixView& a;
  int64_t panels, width, count;

  Units(const MatrixView& w, int64_t panels_of)
      : a(w),
        panels(panels_of),
        width(panel_cols(w.cols, panels_of)),
        count(t16::row_tiles(w.rows) * panels_of) {}
  Tile tile(int64_t u) const {
    const int64_t first = std::min(a.cols, u % panels * width);
    return {a, u / panels, first, std::min(a.cols, first + width)};
  }
};

// Whether some units, far apart, take fewer bytes in groups of three.
bool takes_triples(const Units& units) {
  constexpr int64_t kTried = 5;
  size_t pairs = 0, triples = 0;
  for (int64_t i = 0; i < std::min(kTried, units.count); ++i) {
    const Tile tile = units.tile(i * (units.count - 1) / std::max<int64_t>(1, kTried - 1));
    pairs += records_of<PairRecord>(tile, kPairs, units.width).bytes.size();
    triples += records_of<TripleRecord>(tile, kTriples, units.width).bytes.size();
  }
  return triples < pairs;
}

}  // namespace

Status pack(const MatrixView& a, int32_t panels, Packed* packed) {
  TAMIS_RETURN_IF_ERROR(check_masked_halves("p24", a));
  if (panel_cols(a.cols, panels) > kMaxPanelCols) {
    return error(Code::invalid_argument, "p24: panels: got %d, wanted at least %lld", panels,
                 static_cast<long long>(ceil_div(a.cols, kMaxPanelCols)));
  }
  const Units units(a, panels);
  const bool triples = takes_triples(units);
  std::vector<UnitRecords> records(static_cast<size_t>(units.count));
  for_rows(units.count, panel_cols(a.cols, panels) * kTileRows, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      records[u] = triples ? records_of<TripleRecord>(units.tile(u), kTriples, units.width)
                           : records_of<PairRecord>(units.tile(u), kPairs, units.width);
    }
  });
  packed->record_bytes = triples ? kTripleBytes : kPairBytes;
  packed->offsets.assign(1, 0);
  size_t bytes = 0;
  for (const UnitRecords& unit : records) {
    const uint32_t first = packed->offsets.back();
    bytes += unit.bytes.size();
    if (halves_of(units.width) > 1) packed->offsets.push_back(first + unit.first_half);
    packed->offsets.push_back(
        static_cast<uint32_t>(static_cast<int64_t>(bytes) / packed->record_bytes));
  }
  packed->records.reserve(bytes);
  for (auto& unit : records) {
    packed->records.insert(packed->records.end(), unit.bytes.begin(), unit.bytes.end());
    std::vector<uint8_t>().swap(unit.bytes);
  }
  return {};
}

namespace {

// Calls fn(row of the tile, byte of the column, value) for all values of a record, zeros included.
template <class Fn>
void for_values(const PairRecord& record, const Fn& fn) {
  for (int64_t i = 0; i < 2 * kPairGroups * kTileRows; ++i) {
    const int64_t step = i / 256, group = i / 32 % 8, r = i / 2 % kTileRows, e = i % 2;
    const uint32_t place = record.heads[r % 8 * 4 + 2 * step + group / 4].places >>
                               (16 * (r / 8) + 4 * (group % 4) + 2 * e) &
                           3;
    fn(r, record.heads[4 * group + place].columns[step] & ~uint32_t{kChunkBit},
       record.values[step][r % 8 * 4 + group % 4][group / 4 * 4 + r / 8 * 2 + e]);
  }
}
template <class Fn>
void for_values(const TripleRecord& record, const Fn& fn) {
  for (int64_t i = 0; i < kTripleGroups * kTileRows; ++i) {
    const int64_t step = i / 128, group = i / 16 % 8, r = i % kTileRows;
    const uint32_t place = record.places[r % 8 * 4 + step / 2 * 2 + group / 4] >>
                               (16 * (r / 8) + 4 * (group % 4) + 2 * (step % 2)) &
                           3;
    fn(r, place == 3 ? UINT32_MAX : record.columns[3 * group + place][step] & ~uint32_t{kChunkBit},
       record.values[step / 2][r % 8 * 4 + group % 4][step % 2][group / 4 * 2 + r / 8]);
  }
}

// Whether places rise, as sparse tensor cores need them.
bool places_rise(const PairRecord& record) {
  bool rise = true;
  for (const auto& head : record.heads) {
    for (int shift = 0; shift < 32; shift += 4) {
      rise &= (head.places >> shift & 3) < (head.places >> (shift + 2) & 3);
    }
  }
  return rise;
}
bool places_rise(const TripleRecord& record) {
  return std::all_of(std::begin(record.places), std::end(record.places), [](uint32_t places) {
    return (places & places >> 1 & 0x55555555u) == 0;  // no place is 3
  });
}
std::span<const uint16_t> columns_of(const TripleRecord& record) {
  return {record.columns[0], 96};
}
std::vector<uint16_t> columns_of(const PairRecord& record) {
  std::vector<uint16_t> columns;
  for (const auto& head : record.heads) {
    columns.insert(columns.end(), std::begin(head.columns), std::end(head.columns));
  }
  return columns;
}

template <class Record>
Record record_at(const PackedView& a, uint32_t i) {
  Record record;
  std::memcpy(&record, static_cast<const uint8_t*>(a.records) + int64_t{i} * sizeof record,
              sizeof record);
  return record;
}

template <class Record>
void unpack_records(const PackedView& a, uint16_t* out, int64_t out_stride) {
  const int64_t width = panel_cols(a.cols, a.parts), halves = halves_of(width);
  for (int64_t u = 0; u < t16::row_tiles(a.rows) * a.parts; ++u) {
    uint16_t* to = out + u / a.parts * kTileRows * out_stride + u % a.parts * width;
    for (uint32_t i = a.offsets[u * halves]; i < a.offsets[(u + 1) * halves]; ++i) {
      for_values(record_at<Record>(a, i), [&](int64_t r, uint32_t byte, uint16_t value) {
        if (value != 0) to[r * out_stride + column_of_byte(byte)] = value;
      });
    }
  }
}

template <class Record>
Status check_records(const PackedView& a) {
  const int64_t width = panel_cols(a.cols, a.parts), n = a.record_bytes / a.max_record_bytes;
  const int64_t halves = halves_of(width);
  int32_t before = 0;
  for (int64_t h = 0; h < t16::row_tiles(a.rows) * a.parts * halves; ++h) {
    if (a.offsets[h] > a.offsets[h + 1] || a.offsets[h + 1] > n) {
      return error(Code::corrupt,
                   "p24: offsets: got records %u to %u for part %lld, wanted a range inside %lld",
                   a.offsets[h], a.offsets[h + 1], static_cast<long long>(h),
                   static_cast<long long>(n));
    }
    const int64_t u = h / halves;
    const bool first_half = h % halves == 0;
    if (first_half) before = 0;
    const int64_t from = first_half ? 0 : half_begin(width);
    const int64_t to = first_half && halves > 1 ? half_end(width) : width;
    const int64_t cols = std::max<int64_t>(0, std::min(width, a.cols - u % a.parts * width));
    const int64_t rows = std::min(kTileRows, a.rows - u / a.parts * kTileRows);
    for (uint32_t i = a.offsets[h]; i < a.offsets[h + 1]; ++i) {
      auto record = record_at<Record>(a, i);
      const int32_t last = take_last_chunk(&record);
      bool right = places_rise(record) && last >= before && last <= (width - 1) / kChunkCols;
      before = last;
      for (const uint16_t byte : columns_of(record)) {
        const int64_t column = column_of_byte(byte);
        right &= byte % kColumnBytes == 0 && column >= from && column < to &&
                 column / kChunkCols <= last;
      }
      for_values(record, [&](int64_t r, uint32_t byte, uint16_t value) {
        right &= value == 0 || (r < rows && column_of_byte(byte) < cols);
      });
      if (!right) {
        return error(
            Code::corrupt,
            "p24: records: got places that do not rise, columns outside their half or "
            "after the last chunk, or values beyond %lld rows and %lld columns, in record %u",
            static_cast<long long>(a.rows), static_cast<long long>(a.cols), i);
      }
    }
  }
  return {};
}

}  // namespace

void unpack(const PackedView& a, uint16_t* out, int64_t out_stride) {
  for (int64_t r = 0; r < a.rows; ++r) {
    std::memset(out + r * out_stride, 0, 2 * static_cast<size_t>(a.cols));
  }
  if (a.max_record_bytes == kTripleBytes) {
    unpack_records<TripleRecord>(a, out, out_stride);
  } else {
    unpack_records<PairRecord>(a, out, out_stride);
  }
}

Status check(const PackedView& a) {
  return a.max_record_bytes == kTripleBytes ? check_records<TripleRecord>(a)
                                            : check_records<PairRecord>(a);
}

}  // namespace tamis::p24
