// d24: pack from the row-major masks, unpack.
#include "format/d24.h"

#include <algorithm>
#include <cstring>

#include "base/numeric.h"
#include "format/grouped_rows.h"
#include "format/rows.h"

namespace tamis::d24 {
namespace {

constexpr int64_t kTileRows = t16::kTileRows;
constexpr int64_t kGroups = 16;  // of a record

struct Record {
  struct {
    uint32_t places;
    uint16_t columns[2];
  } heads[32];
  uint32_t places[32];
  uint16_t values[2][2][32][8];

  uint32_t& places_of(int64_t tile, int64_t lane) {
    return tile == 0 ? heads[lane].places : places[lane];
  }
  uint32_t places_of(int64_t tile, int64_t lane) const {
    return tile == 0 ? heads[lane].places : places[lane];
  }
};
static_assert(sizeof(Record) == kRecordBytes);

using Pair = GroupedRows<uint32_t>;
static_assert(Pair::kRows == kPairRows);

void put_columns(const ColumnGroup& columns, int64_t at, Record* to) {
  for (int slot = 0; slot < 4; ++slot) {
    const auto column = static_cast<uint32_t>(column_of_slot(columns, slot));
    to->heads[4 * (at % 8) + slot].columns[at / 8] =
        static_cast<uint16_t>(p24::byte_of_column(column));
  }
}

void put(const Pair& pair, const ColumnGroup& columns, int64_t at, Record* to) {
  const int64_t step = at / 8, group = at % 8;
  put_columns(columns, at, to);
  for (int64_t row = 0; row < kPairRows; ++row) {
    const TwoOfFour two = two_of_four(pair, columns, row);
    const int64_t tile = row / kTileRows, r = row % kTileRows;
    for (int64_t i = 0; i < 2; ++i) {
      to->values[tile][step][r % 8 * 4 + group % 4][group / 4 * 4 + r / 8 * 2 + i] = two.value[i];
    }
    to->places_of(tile, r % 8 * 4 + 2 * step + group / 4) ^= two.flips()
                                                             << (16 * (r / 8) + 4 * (group % 4));
  }
}

std::vector<Record> records_of(const Pair& pair) {
  const std::vector<ColumnGroup> groups = group_columns(pair.rows, pair.banks);
  std::vector<Record> records(
      static_cast<size_t>(ceil_div(static_cast<int64_t>(groups.size()), kGroups)), Record{});
  for (size_t i = 0; i < records.size(); ++i) {
    for (int64_t lane = 0; lane < 32; ++lane) {
      for (const int64_t tile : {0, 1}) records[i].places_of(tile, lane) = 0xccccccccu;
    }
    for (size_t j = 0; j < kGroups; ++j) {
      const size_t group = i * kGroups + j;
      const auto at = static_cast<int64_t>(j);
      if (group < groups.size()) {
        put(pair, groups[group], at, &records[i]);
      } else {  // columns of the last group, and no values
        put_columns(groups.back(), at, &records[i]);
      }
    }
  }
  return records;
}

// Calls fn(row of the pair, byte of the column, value) for all values of a record, zeros included.
template <class Fn>
void for_values(const Record& record, const Fn& fn) {
  for (int64_t i = 0; i < 2 * kGroups * kPairRows; ++i) {
    const int64_t step = i / 512, group = i / 64 % 8, row = i / 2 % kPairRows, e = i % 2;
    const int64_t tile = row / kTileRows, r = row % kTileRows;
    const uint32_t place = record.places_of(tile, r % 8 * 4 + 2 * step + group / 4) >>
                               (16 * (r / 8) + 4 * (group % 4) + 2 * e) &
                           3;
    fn(row, record.heads[4 * group + place].columns[step],
       record.values[tile][step][r % 8 * 4 + group % 4][group / 4 * 4 + r / 8 * 2 + e]);
  }
}

// Whether places rise, as sparse tensor cores need them.
bool places_rise(const Record& record) {
  bool rise = true;
  for (int64_t i = 0; i < 64; ++i) {
    for (int shift = 0; shift < 32; shift += 4) {
      const uint32_t places = record.places_of(i / 32, i % 32) >> shift;
      rise &= (places & 3) < (places >> 2 & 3);
    }
  }
  return rise;
}

Record record_at(const T16View& a, uint32_t i) {
  Record record;
  std::memcpy(&record, static_cast<const uint8_t*>(a.records) + int64_t{i} * kRecordBytes,
              sizeof record);
  return record;
}

}  // namespace

Status pack(const MatrixView& a, int32_t panels, p24::Packed* packed) {
  if (a.format != Format::bitmap && a.format != Format::nm) {
    return error(Code::invalid_argument, "d24: format: got %s, wanted bitmap or nm",
                 name_of(a.format));
  }
  if (a.dtype != DType::bf16 && a.dtype != DType::f16) {
    return error(Code::unsupported_dtype, "d24: dtype: got %s, wanted bf16 or f16",
                 name_of(a.dtype));
  }
  const int64_t width = p24::panel_cols(a.cols, panels);
  if (width > kMaxPanelCols) {
    return error(Code::invalid_argument, "d24: panels: got %d, wanted at least %lld", panels,
                 static_cast<long long>(ceil_div(a.cols, kMaxPanelCols)));
  }
  const int64_t units = row_pairs(a.rows) * panels;
  std::vector<std::vector<Record>> records(static_cast<size_t>(units));
  for_rows(units, width * kPairRows, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t first = std::min(a.cols, u % panels * width);
      records[static_cast<size_t>(u)] =
          records_of(Pair(a, u / panels, first, std::min(a.cols, first + width)));
    }
  });
  packed->record_bytes = kRecordBytes;
  packed->offsets.assign(1, 0);
  for (const auto& unit : records) {
    packed->offsets.push_back(packed->offsets.back() + static_cast<uint32_t>(unit.size()));
  }
  packed->records.reserve(size_t{packed->offsets.back()} * sizeof(Record));
  for (auto& unit : records) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(unit.data());
    packed->records.insert(packed->records.end(), bytes, bytes + unit.size() * sizeof(Record));
    std::vector<Record>().swap(unit);
  }
  return {};
}

void unpack(const T16View& a, uint16_t* out, int64_t out_stride) {
  for (int64_t r = 0; r < a.rows; ++r) {
    std::memset(out + r * out_stride, 0, 2 * static_cast<size_t>(a.cols));
  }
  const int64_t width = p24::panel_cols(a.cols, a.parts);
  for (int64_t u = 0; u < row_pairs(a.rows) * a.parts; ++u) {
    uint16_t* to = out + u / a.parts * kPairRows * out_stride + u % a.parts * width;
    for (uint32_t i = a.offsets[u]; i < a.offsets[u + 1]; ++i) {
      for_values(record_at(a, i), [&](int64_t row, uint32_t byte, uint16_t value) {
        if (value != 0) to[row * out_stride + p24::column_of_byte(byte)] = value;
      });
    }
  }
}

Status check(const T16View& a) {
  const int64_t width = p24::panel_cols(a.cols, a.parts), n = a.record_bytes / kRecordBytes;
  for (int64_t u = 0; u < row_pairs(a.rows) * a.parts; ++u) {
    if (a.offsets[u] > a.offsets[u + 1] || a.offsets[u + 1] > n) {
      return error(Code::corrupt,
                   "d24: offsets: got records %u to %u for unit %lld, wanted a range inside %lld",
                   a.offsets[u], a.offsets[u + 1], static_cast<long long>(u),
                   static_cast<long long>(n));
    }
    const int64_t cols = std::clamp<int64_t>(a.cols - u % a.parts * width, 0, width);
    const int64_t rows = std::min(kPairRows, a.rows - u / a.parts * kPairRows);
    for (uint32_t i = a.offsets[u]; i < a.offsets[u + 1]; ++i) {
      const Record record = record_at(a, i);
      bool right = places_rise(record);
      for (const auto& head : record.heads) {
        for (const uint16_t byte : head.columns) {
          right &= byte % p24::kColumnBytes == 0 && p24::column_of_byte(byte) < width;
        }
      }
      for_values(record, [&](int64_t row, uint32_t byte, uint16_t value) {
        right &= value == 0 || (row < rows && p24::column_of_byte(byte) < cols);
      });
      if (!right) {
        return error(Code::corrupt,
                     "d24: records: got places that do not rise, columns outside their panel, or "
                     "values beyond %lld rows and %lld columns, in record %u",
                     static_cast<long long>(a.rows), static_cast<long long>(a.cols), i);
      }
    }
  }
  return {};
}

}  // namespace tamis::d24
