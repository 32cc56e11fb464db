// sell4: pack from groupq.
#include "format/sell4.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/numeric.h"
#include "format/g4.h"
#include "format/rows.h"

namespace tamis::sell4 {
namespace {

constexpr int64_t kQuarter = 8;  // lanes whose 16 byte reads share a wavefront

Status check_source(const MatrixView& a) {
  TAMIS_RETURN_IF_ERROR(g4::check_source("sell4", a));
  if (a.cols <= kMaxColumns) return {};
  return error(Code::no_kernel, "sell4: cols: got %lld, wanted at most %lld",
               static_cast<long long>(a.cols), static_cast<long long>(kMaxColumns));
}

// Rows, those with most groups first.
std::vector<int64_t> order_of(const MatrixView& a) {
  std::vector<int64_t> order(static_cast<size_t>(a.rows));
  std::iota(order.begin(), order.end(), 0);
  const auto groups = [&](int64_t row) { return a.row_offsets[row + 1] - a.row_offsets[row]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t i, int64_t j) { return groups(i) > groups(j); });
  return order;
}

// Fills offsets up to that of the end of the last slice.
void fill_offsets(const MatrixView& a, const std::vector<int64_t>& order, uint32_t* offsets) {
  const int64_t units = a.group_size / kUnitColumns, lanes = lanes_of_row(a.rows);
  offsets[0] = 0;
  for (int64_t s = 0; s < slices(a.rows); ++s) {
    const int64_t row = order[static_cast<size_t>(s * (kLanes / lanes))];
    const int64_t of_row = units * (a.row_offsets[row + 1] - a.row_offsets[row]);
    offsets[s + 1] = offsets[s] + static_cast<uint32_t>(ceil_div(of_row, lanes * kSteps));
  }
}

struct Unit {
  int64_t group = -1;  // stored one; none
  int64_t column = 0;  // / 16
};

// A row's units that have no step yet, by bank.
class Row {
 public:
  Row() = default;
  Row(const MatrixView& a, int64_t row) {
    const int64_t units = a.group_size / kUnitColumns, words = mask_words(a.cols / a.group_size);
    int64_t group = a.row_offsets[row];
    for (int64_t w = 0; w < words; ++w) {
      for (uint64_t bits = a.mask[row * words + w]; bits != 0; bits &= bits - 1, ++group) {
        const int64_t first = (64 * w + std::countr_zero(bits)) * units;
        for (int64_t u = first; u < first + units; ++u) bank(u % kBanks).push_back({group, u});
        left_ += units;
      }
    }
    for (auto& units_of : banks_) std::reverse(units_of.begin(), units_of.end());
  }

  int64_t left() const { return left_; }

  // The bank with most units left, of those that are not taken; -1 for none.
  int64_t fullest(const std::array<bool, kBanks>& taken) const {
    int64_t best = -1;
    for (int64_t b = 0; b < kBanks; ++b) {
      const size_t size = banks_[static_cast<size_t>(b)].size();
      if (taken[static_cast<size_t>(b)] || size == 0) continue;
      if (best < 0 || size > banks_[static_cast<size_t>(best)].size()) best = b;
    }
    return best;
  }

  Unit take(int64_t b) {
    const Unit unit = bank(b).back();
    bank(b).pop_back();
    --left_;
    return unit;
  }

 private:
  std::vector<Unit>& bank(int64_t b) { return banks_[static_cast<size_t>(b)]; }

  std::array<std::vector<Unit>, kBanks> banks_;
  int64_t left_ = 0;
};

// One step of a quarter: each lane takes the bank with most of its row's units that no lane before
// it took, and waits where there is none as long as it can. The first one is another in every step.
std::array<Unit, kQuarter> next_step(std::array<Row, kQuarter>& rows, int64_t lanes_of_row,
                                     int64_t step, int64_t steps_left) {
  std::array<Unit, kQuarter> units;
  std::array<bool, kBanks> taken{};
  std::array<int64_t, kQuarter> turns;  // that lanes of a row still have
  turns.fill(lanes_of_row * steps_left);
  for (int64_t turn = 0; turn < kQuarter; ++turn) {
    const int64_t lane = (turn + step) % kQuarter;
    const auto r = static_cast<size_t>(lane / lanes_of_row);
    int64_t bank = rows[r].fullest(taken);
    if (bank < 0 && rows[r].left() == turns[r]) bank = rows[r].fullest({});
    --turns[r];
    if (bank < 0) continue;
    taken[static_cast<size_t>(bank)] = true;
    units[static_cast<size_t>(lane)] = rows[r].take(bank);
  }
  return units;
}

void write_unit(const MatrixView& a, const Unit& unit, int64_t step, int64_t lane,
                uint8_t* record) {
  uint32_t words[2] = {}, said = 0;
  if (unit.group >= 0) {
    g4::unit_codes(a, unit.group, unit.column * kUnitColumns % a.group_size, words);
    const float zero = f32_from_f16(a.group_scales[2 * unit.group + 1]);
    said = a.group_scales[2 * unit.group] | static_cast<uint32_t>(zero) << 16 |
           static_cast<uint32_t>(unit.column) << 20;
  }
  const int64_t codes = (step / 2 * kLanes + lane) * 16 + step % 2 * 8;
  std::memcpy(record + codes, words, sizeof words);
  std::memcpy(record + 2 * kLanes * 16 + lane * 16 + 4 * step, &said, sizeof said);
}

}  // namespace

Status pack_sizes(const MatrixView& a, t16::Sizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  std::vector<uint32_t> offsets(static_cast<size_t>(slices(a.rows)) + 1);
  fill_offsets(a, order_of(a), offsets.data());
  *sizes = {.offsets = (1 + kLanes) * slices(a.rows) + 1,
            .record_bytes = kRecordBytes * offsets.back(),
            .max_record_bytes = kRecordBytes};
  return {};
}

Status pack(const MatrixView& a, uint32_t* offsets, void* records) {
  TAMIS_RETURN_IF_ERROR(check_source(a));
  const std::vector<int64_t> order = order_of(a);
  fill_offsets(a, order, offsets);
  const int64_t count = slices(a.rows), of_row = lanes_of_row(a.rows);
  uint32_t* rows = offsets + count + 1;
  const auto has_row = [&](int64_t lane) { return lane / of_row < a.rows; };
  const auto row_of = [&](int64_t lane) { return order[static_cast<size_t>(lane / of_row)]; };
  for (int64_t i = 0; i < kLanes * count; ++i) {
    rows[i] = has_row(i) ? static_cast<uint32_t>(row_of(i)) : kNoRow;
  }
  for_rows(count, a.cols * kLanes / of_row, [&](int64_t begin, int64_t end) {
    for (int64_t i = kLanes * begin; i < kLanes * end; i += kQuarter) {
      const int64_t slice = i / kLanes;
      auto* first = static_cast<uint8_t*>(records) + kRecordBytes * offsets[slice];
      const int64_t steps = kSteps * (offsets[slice + 1] - offsets[slice]);
      std::array<Row, kQuarter> of_lanes;
      for (int64_t j = 0; j < kQuarter && has_row(i + j); j += of_row) {
        of_lanes[static_cast<size_t>(j / of_row)] = Row(a, row_of(i + j));
      }
      for (int64_t step = 0; step < steps; ++step) {
        const auto units = next_step(of_lanes, of_row, step, steps - step);
        for (int64_t j = 0; j < kQuarter; ++j) {
          write_unit(a, units[static_cast<size_t>(j)], step % kSteps, i % kLanes + j,
                     first + kRecordBytes * (step / kSteps));
        }
      }
    }
  });
  return {};
}

}  // namespace tamis::sell4
