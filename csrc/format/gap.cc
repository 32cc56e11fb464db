// gap: pack from the row-major masks, unpack, check.
#include "format/gap.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/numeric.h"
#include "format/masked.h"
#include "format/rows.h"

namespace tamis::gap {
namespace {

// Calls fn(column) for every kept column of a row, in order.
template <class Fn>
void for_columns(const MatrixView& a, int64_t row, const Fn& fn) {
  const int64_t words = mask_words(a.cols);
  for (int64_t w = 0; w < words; ++w) {
    for (uint64_t bits = a.mask[row * words + w]; bits != 0; bits &= bits - 1) {
      fn(64 * w + __builtin_ctzll(bits));
    }
  }
}

// Entries of zero before one that is `gap` columns on.
int64_t fillers(int64_t gap) {
  return gap == 0 ? 0 : (gap - 1) / kMaxGap;
}

int64_t entries_of(const MatrixView& a, int64_t row) {
  int64_t entries = 0, last = -1;
  for_columns(a, row, [&](int64_t column) {
    entries += 1 + fillers(last < 0 ? 0 : column - last);
    last = column;
  });
  return entries;
}

Status check_source(const MatrixView& a) {
  TAMIS_RETURN_IF_ERROR(check_masked_halves("gap", a));
  if (a.cols > kMaxCols) {
    return error(Code::invalid_argument, "gap: cols: got %lld, wanted at most %lld",
                 static_cast<long long>(a.cols), static_cast<long long>(kMaxCols));
  }
  return {};
}

// Rows by falling number of entries, and the steps of each slice.
struct Order {
  std::vector<uint32_t> rows;
  std::vector<int64_t> steps;

  explicit Order(const MatrixView& a)
      : rows(static_cast<size_t>(a.rows)), steps(static_cast<size_t>(slices(a.rows))) {
    std::vector<int64_t> entries(rows.size());
    for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) entries[r] = entries_of(a, r);
    });
    std::iota(rows.begin(), rows.end(), 0u);
    std::stable_sort(rows.begin(), rows.end(),
                     [&](uint32_t i, uint32_t j) { return entries[i] > entries[j]; });
    for (size_t s = 0; s < steps.size(); ++s) {  // of its longest row, the first
      steps[s] = ceil_div(entries[rows[s * kLanes]], kStepEntries);
    }
  }
};

int64_t units(int64_t steps, int32_t parts) {
  return (header_bytes(parts) + steps * kStepBytes) / kUnit;
}

// Writes one lane of a slice: its row, its entries, and from where they count in each part.
struct Lane {
  uint8_t* slice;  // zeros
  int64_t lane, steps, parts;
  int64_t entry = 0, part = 0;
  int64_t next_part = 0;  // entry with which it begins
  uint16_t column = 0;    // of the last entry

  void start_parts() {
    while (part < parts && next_part <= entry) {
      std::memcpy(slice + kRowBytes + 2 * (part * kLanes + lane), &column, 2);
      ++part;
      next_part = steps * part / parts * kStepEntries;
    }
  }
  void put(int64_t gap, uint16_t value) {
    if (entry == next_part) start_parts();
    uint8_t* step = slice + header_bytes(parts) + entry / kStepEntries * kStepBytes;
    const int64_t i = entry % kStepEntries;
    std::memcpy(step + 2 * (lane * kStepEntries + i), &value, 2);
    step[kValueBytes + 4 * lane + i % 4] |= static_cast<uint8_t>(gap << (i / 4 * 4));
    column = static_cast<uint16_t>(column + gap);
    ++entry;
  }
  void put_row(const MatrixView& a, uint32_t row) {
    std::memcpy(slice + 4 * lane, &row, 4);
    const auto* value = static_cast<const uint16_t*>(a.values) + first_value(a, row);
    bool first = true;
    for_columns(a, row, [&](int64_t at) {
      if (first) column = static_cast<uint16_t>(at);
      first = false;
      int64_t gap = at - column;
      for (; gap > kMaxGap; gap -= kMaxGap) put(kMaxGap, 0);
      put(gap, *value++);
    });
  }
  void finish() {
    entry = steps * kStepEntries;
    start_parts();
  }
};

const uint8_t* slice_of(const PackedView& a, int64_t slice) {
  return static_cast<const uint8_t*>(a.records) + int64_t{a.offsets[slice]} * kUnit;
}
int64_t steps_of(const PackedView& a, int64_t slice) {
  const int64_t bytes = (int64_t{a.offsets[slice + 1]} - a.offsets[slice]) * kUnit;
  return (bytes - header_bytes(a.parts)) / kStepBytes;
}

// Calls fn(entry, gap, value) for all entries of a lane.
template <class Fn>
void for_entries(const uint8_t* steps, int64_t count, int64_t lane, const Fn& fn) {
  for (int64_t i = 0; i < count * kStepEntries; ++i) {
    const uint8_t* step = steps + i / kStepEntries * kStepBytes;
    uint16_t value;
    std::memcpy(&value, step + 2 * (lane * kStepEntries + i % kStepEntries), 2);
    const int nibble = step[kValueBytes + 4 * lane + i % 4] >> (i % kStepEntries / 4 * 4) & 15;
    fn(i, nibble, value);
  }
}

uint16_t first_of(const uint8_t* slice, int64_t part, int64_t lane) {
  uint16_t first;
  std::memcpy(&first, slice + kRowBytes + 2 * (part * kLanes + lane), 2);
  return first;
}

uint32_t row_of(const uint8_t* slice, int64_t lane) {
  uint32_t row;
  std::memcpy(&row, slice + 4 * lane, 4);
  return row;
}

}  // namespace

Status pack_sizes(const MatrixView& a, int32_t parts, t16::Sizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  const Order order(a);
  int64_t all = 0, longest = 0;
  for (const int64_t steps : order.steps) {
    all += units(steps, parts);
    longest = std::max(longest, units(steps, parts));
  }
  if (all > UINT32_MAX) {
    return error(Code::invalid_argument,
                 "gap: w: got records of %lld bytes, wanted at most 128 * (2^32 - 1)",
                 static_cast<long long>(all * kUnit));
  }
  *sizes = {.offsets = slices(a.rows) + 1,
            .record_bytes = all * kUnit,
            .max_record_bytes = longest * kUnit};
  return {};
}

Status pack(const MatrixView& a, int32_t parts, uint32_t* offsets, void* records) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  const Order order(a);
  offsets[0] = 0;
  for (size_t s = 0; s < order.steps.size(); ++s) {
    offsets[s + 1] = offsets[s] + static_cast<uint32_t>(units(order.steps[s], parts));
  }
  for_rows(slices(a.rows), a.cols * kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      auto* slice = static_cast<uint8_t*>(records) + int64_t{offsets[s]} * kUnit;
      std::memset(slice, 0, static_cast<size_t>(units(order.steps[s], parts) * kUnit));
      for (int64_t l = 0; l < kLanes; ++l) {
        Lane lane{.slice = slice, .lane = l, .steps = order.steps[s], .parts = parts};
        const int64_t i = s * kLanes + l;
        if (i < a.rows) {
          lane.put_row(a, order.rows[i]);
          lane.finish();
        } else {
          std::memset(slice + 4 * l, 0xff, 4);
        }
      }
    }
  });
  return {};
}

void unpack(const PackedView& a, uint16_t* out, int64_t out_stride) {
  for (int64_t r = 0; r < a.rows; ++r) {
    std::memset(out + r * out_stride, 0, 2 * static_cast<size_t>(a.cols));
  }
  for (int64_t s = 0; s < slices(a.rows); ++s) {
    const uint8_t* slice = slice_of(a, s);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const uint32_t row = row_of(slice, lane);
      if (row >= a.rows) continue;
      int64_t column = first_of(slice, 0, lane);
      for_entries(slice + header_bytes(a.parts), steps_of(a, s), lane,
                  [&](int64_t, int gap, uint16_t value) {
                    column += gap;
                    if (value != 0) out[row * out_stride + column] = value;
                  });
    }
  }
}

namespace {

// Whether a lane's parts begin where they should, and its columns stay below `cols`.
bool check_lane(const PackedView& a, const uint8_t* slice, int64_t steps, int64_t lane) {
  int64_t column = first_of(slice, 0, lane), part = 0;
  bool right = true;
  const auto starts = [&](int64_t entry) {
    for (; part < a.parts && steps * part / a.parts * kStepEntries <= entry; ++part) {
      right &= first_of(slice, part, lane) == column;
    }
  };
  for_entries(slice + header_bytes(a.parts), steps, lane, [&](int64_t i, int gap, uint16_t) {
    starts(i);
    column += gap;
  });
  starts(steps * kStepEntries);
  return right && column < std::max<int64_t>(a.cols, 1);
}

}  // namespace

Status check(const PackedView& a) {
  std::vector<bool> seen(static_cast<size_t>(a.rows));
  for (int64_t s = 0; s < slices(a.rows); ++s) {
    const int64_t begin = int64_t{a.offsets[s]} * kUnit, end = int64_t{a.offsets[s + 1]} * kUnit;
    if (begin > end || end > a.record_bytes || end - begin > a.max_record_bytes ||
        end - begin < header_bytes(a.parts) ||
        (end - begin - header_bytes(a.parts)) % kStepBytes != 0) {
      return error(Code::corrupt,
                   "gap: offsets: got a record from byte %lld to %lld for slice %lld, wanted whole "
                   "steps after %lld bytes, inside %lld",
                   static_cast<long long>(begin), static_cast<long long>(end),
                   static_cast<long long>(s), static_cast<long long>(header_bytes(a.parts)),
                   static_cast<long long>(a.record_bytes));
    }
    const uint8_t* slice = slice_of(a, s);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const uint32_t row = row_of(slice, lane);
      const bool none = s * kLanes + lane >= a.rows;
      if (none ? row != UINT32_MAX : row >= a.rows || seen[row]) {
        return error(Code::corrupt,
                     "gap: rows: got %u in slice %lld, wanted each of %lld rows once", row,
                     static_cast<long long>(s), static_cast<long long>(a.rows));
      }
      if (!none) seen[row] = true;
      if (!check_lane(a, slice, steps_of(a, s), lane)) {
        return error(Code::corrupt,
                     "gap: firsts: got parts of lane %lld of slice %lld that do not begin where "
                     "others end, or columns of %lld and beyond",
                     static_cast<long long>(lane), static_cast<long long>(s),
                     static_cast<long long>(a.cols));
      }
    }
  }
  return {};
}

}  // namespace tamis::gap
