// p24 to dense on the device, where its mask lies elsewhere. A block has 8 rows of a unit in shared
// memory, as zeros: warps take its records in turns and put each value where its column is, then
// the rows are written 16 bytes a lane. Half of a row tile is 64 KB of 4096 columns, so several
// blocks share an SM and one's stores to memory run beside another's loads; the other half of a
// record that it read comes from the L2 cache. Bank conflicts: rows lie 16 bytes apart in banks, so
// the four columns of a group, one of which each row has, do not meet.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm/p24_params.h"

namespace tamis {

// A lane's part of a record: what it has of all steps, for both halves of its rows.
template <bool kTriples>
struct P24Whole {
  uint32_t places;
  dev::Word2 columns;  // of two of four in x alone
  dev::Word4 values[2];

  P24Whole() = default;
  TAMIS_DEVICE P24Whole(const uint8_t* record, uint32_t lane) {
    constexpr int64_t kBytes = kTriples ? p24::kTripleBytes : p24::kPairBytes;
    if constexpr (kTriples) {
      const uint32_t column = lane / 4 * 3 + (lane % 4 == 3 ? 2 : lane % 4);
      places = dev::load_global(reinterpret_cast<const uint32_t*>(record + 4 * lane));
      columns = dev::load_global(reinterpret_cast<const dev::Word2*>(record + 128 + 8 * column));
    } else {
      const auto head = dev::load_global(reinterpret_cast<const dev::Word2*>(record + 8 * lane));
      places = head.x;
      columns = {head.y, 0};
    }
    const uint8_t* at = record + kBytes - p24::kValueBytes + 16 * lane;
    values[0] = dev::load_global(reinterpret_cast<const dev::Word4*>(at));
    values[1] = dev::load_global(reinterpret_cast<const dev::Word4*>(at + 512));
  }
};

TAMIS_DEVICE uint32_t p24_from_lane(uint32_t value, uint32_t lane) {
  return static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(value), static_cast<int>(lane)));
}

// Puts a record's values of rows 8 * half to 8 * half + 7 where their columns are. Zeros stay away:
// slots without a column repeat one that another value of the row may have.
template <bool kTriples>
TAMIS_DEVICE void scatter_p24(const P24Whole<kTriples>& r, uint32_t lane, uint32_t half,
                              uint32_t row_bytes) {
  const uint32_t row_at = lane / 4 * row_bytes, t = lane % 4;
  const auto put = [&](uint32_t columns, uint32_t value) {
    const uint32_t column = (columns & 0xfff0u) >> 4;  // p24::column_of_byte
    if (value != 0) {
      dev::store_shared<uint16_t>(row_at + 2 * (column ^ (column >> 3 & 7u)),
                                  static_cast<uint16_t>(value));
    }
  };
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) {  // values[i]: a step of two of four, two of one of three
    const dev::Word4& v = r.values[i];
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {  // group t, then t + 4
      const uint32_t first_lane = 4 * (t + 4 * j);
      const uint32_t places =
          p24_from_lane(r.places, lane / 4 * 4 + 2 * i + j) >> (16 * half + 4 * t);
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {  // place, or of one of three the step of both
        const uint32_t place = places >> (2 * e) & 3;
        const uint32_t column_lane = first_lane + place;
        if constexpr (kTriples) {
          const uint32_t pair = e == 0 ? (j == 0 ? v.x : v.y) : (j == 0 ? v.z : v.w);
          const uint32_t columns = p24_from_lane(i == 0 ? r.columns.x : r.columns.y, column_lane);
          put(columns >> (16 * e), half == 0 ? pair & 0xffffu : pair >> 16);
        } else {
          const uint32_t pair = j == 0 ? (half == 0 ? v.x : v.y) : (half == 0 ? v.z : v.w);
          const uint32_t columns = p24_from_lane(r.columns.x, column_lane);
          put(columns >> (16 * i), e == 0 ? pair & 0xffffu : pair >> 16);
        }
      }
    }
  }
}

// Writes 8 rows of a unit, from `row` on, of the records that `load` loads, halves as scatter_p24.
template <bool kTriples, class Load>
TAMIS_DEVICE void expand_p24_rows(const ExpandP24Params& p, uint32_t unit, uint32_t half,
                                  int32_t row, const Load& load) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const dev::Word4 zeros{0, 0, 0, 0};
  for (uint32_t at = 16 * thread; at < 8 * p.row_bytes; at += 16 * 32 * kP24ExpandWarps) {
    dev::store_shared<dev::Word4>(at, zeros);
  }
  const uint32_t* offsets = p.offsets + unit * static_cast<uint32_t>(p.halves);
  const uint32_t end = dev::load_global(offsets + p.halves);
  dev::sync_block();
#pragma unroll 2
  for (uint32_t i = dev::load_global(offsets) + warp; i < end; i += kP24ExpandWarps) {
    const P24Whole<kTriples> record = load(i, lane);
    scatter_p24<kTriples>(record, lane, half, p.row_bytes);
  }
  dev::sync_block();
  const int32_t col = static_cast<int32_t>(unit % static_cast<uint32_t>(p.panels)) * p.panel_cols;
  const auto chunks = static_cast<uint32_t>(p.panel_cols / 8);
#pragma unroll 4
  for (uint32_t i = thread; i < 8 * chunks; i += 32 * kP24ExpandWarps) {
    const uint32_t r = i / chunks;
    const int32_t first = col + 8 * static_cast<int32_t>(i - r * chunks);
    if (row + static_cast<int32_t>(r) >= p.rows || first >= p.cols) continue;
    uint16_t* out = p.out + (row + static_cast<int32_t>(r)) * p.out_stride + first;
    const uint32_t at = r * p.row_bytes + 2 * static_cast<uint32_t>(first - col);
    if (p.out_aligned && first + 8 <= p.cols) {
      *reinterpret_cast<dev::Word4*>(out) = dev::load_shared<dev::Word4>(at);
      continue;
    }
#pragma unroll 1
    for (int32_t j = 0; j < 8 && first + j < p.cols; ++j) {
      out[j] = dev::load_shared<uint16_t>(at + 2 * static_cast<uint32_t>(j));
    }
  }
}

// Grid [2 * units] of 32 * kP24ExpandWarps threads, the halves of a unit's rows neighbours.
template <bool kTriples>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kP24ExpandWarps, 2) expand_p24(const ExpandP24Params p) {
  const uint32_t unit = dev::block_index_x() / 2, half = dev::block_index_x() % 2;
  constexpr int64_t kBytes = kTriples ? p24::kTripleBytes : p24::kPairBytes;
  expand_p24_rows<kTriples>(
      p, unit, half, static_cast<int32_t>(unit / static_cast<uint32_t>(p.panels) * 16 + 8 * half),
      [&p](uint32_t i, uint32_t lane) { return P24Whole<kTriples>(p.records + i * kBytes, lane); });
}

}  // namespace tamis
