// spgemm: a warp a row, or a block, adds the row's products up in a hash table in shared memory and
// sorts it; the widest rows add up in global memory. Threads take the columns of one row of b,
// which differ, and go on to the next together: so sums need no atomics and their order is a's,
// always. What is atomic is only who owns a place of the table. Table: open addressing over twice
// as many places as the row can have columns, sorted whole. Needs: columns ascending, below the
// other's rows; numbers zero where rows are looked at first. After: SMASH (arXiv:2105.14156);
// Nagasaka et al. 2017 (bins of rows, counting first).
#pragma once

#include "base/cuda/dev.h"
#include "ops/spgemm/spgemm_params.h"

namespace tamis {

inline constexpr uint32_t kNoColumn = 0xffffffffu;

// One warp, before all others.
TAMIS_DEVICE void spgemm_start(const SpgemmParams& p) {
  if (dev::thread_index() < 2) p.numbers[dev::thread_index()] = 0;
}

// At most how many columns each row has, and lists of the rows that are too wide for a warp. Grid
// [rows / 8] of kSpgemmThreads.
TAMIS_DEVICE void spgemm_bound(const SpgemmParams& p) {
  const uint32_t lane = dev::thread_index() % 32;
  const auto row =
      static_cast<int32_t>(dev::block_index_x() * kSpgemmWarps + dev::thread_index() / 32);
  if (row >= p.rows) return;            // the whole warp
  constexpr int64_t kEnough = 1 << 24;  // of a lane: that no sum of 32 overflows
  int64_t products = 0;
  const int64_t end = p.a_offsets[row + 1];
  for (int64_t e = p.a_offsets[row] + lane; e < end; e += 32) {
    const int32_t of = p.a_columns[e];
    products += p.b_offsets[of + 1] - p.b_offsets[of];
  }
  auto sum = static_cast<uint32_t>(products < kEnough ? products : kEnough);
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) sum = dev::prefix_step(sum, distance);
  if (lane != 31) return;
  const uint32_t bound =
      sum < static_cast<uint32_t>(p.columns) ? sum : static_cast<uint32_t>(p.columns);
  p.bounds[row] = bound;
  if (bound <= kWarpColumns) return;
  const int32_t list = bound <= kBlockColumns ? 0 : 1;
  p.lists[int64_t{list} * p.rows + dev::atomic_add(p.numbers + list, 1)] = row;
}

template <int kThreads>
TAMIS_DEVICE void sync_team() {
  if constexpr (kThreads == 32) {
    dev::sync_warp();
  } else {
    dev::sync_block();
  }
}

// A table of 2^bits places in shared memory, that kThreads threads fill: columns, then sums.
template <int kThreads>
struct SpgemmTable {
  uint32_t at, bits, thread;

  TAMIS_DEVICE uint32_t size() const { return uint32_t{1} << bits; }
  TAMIS_DEVICE uint32_t column_at(uint32_t place) const { return at + kTableAt + 4 * place; }
  TAMIS_DEVICE uint32_t sum_at(uint32_t place) const { return column_at(size() + place); }

  TAMIS_DEVICE void clear() const {
    if (thread == 0) dev::store_shared<uint32_t>(at, 0u);
    for (uint32_t i = thread; i < size(); i += kThreads) {
      dev::store_shared<uint32_t>(column_at(i), kNoColumn);
      dev::store_shared<float>(sum_at(i), 0.0f);
    }
  }
  // The place of a column, now its own; whether it is new.
  TAMIS_DEVICE uint32_t find(uint32_t column, bool* added) const {
    uint32_t place = column * 0x9e3779b1u >> (32 - bits);
    while (true) {
      const uint32_t there = dev::swap_shared(column_at(place), kNoColumn, column);
      *added = there == kNoColumn;
      if (*added || there == column) return place;
      place = (place + 1) & (size() - 1);
    }
  }
  // By column, places without one last.
  TAMIS_DEVICE void sort() const {
    for (uint32_t run = 2; run <= size(); run *= 2) {
      for (uint32_t apart = run / 2; apart > 0; apart /= 2) {
        for (uint32_t i = thread; i < size() / 2; i += kThreads) {
          const uint32_t low = 2 * i - (i & (apart - 1)), high = low + apart;
          const auto first = dev::load_shared<uint32_t>(column_at(low));
          const auto second = dev::load_shared<uint32_t>(column_at(high));
          if ((first > second) != ((low & run) == 0)) continue;
          dev::store_shared(column_at(low), second);
          dev::store_shared(column_at(high), first);
          const auto sum = dev::load_shared<float>(sum_at(low));
          dev::store_shared(sum_at(low), dev::load_shared<float>(sum_at(high)));
          dev::store_shared(sum_at(high), sum);
        }
        sync_team<kThreads>();
      }
    }
  }
};

// One row in a table at `at`, by kThreads threads.
template <int kThreads, bool kFill>
TAMIS_DEVICE void spgemm_row(const SpgemmParams& p, int32_t row, uint32_t at) {
  const uint32_t thread = dev::thread_index() % kThreads;
  const uint32_t bound = dev::load_volatile(p.bounds + row);
  uint32_t bits = 6;  // a warp has two places a thread to sort
  while ((uint32_t{1} << bits) < 2 * bound) ++bits;
  const SpgemmTable<kThreads> table{at, bits, thread};
  table.clear();
  sync_team<kThreads>();
  const int64_t begin = p.a_offsets[row], end = p.a_offsets[row + 1];
  if constexpr (kFill) {
    for (int64_t e = begin; e < end; ++e) {
      const int32_t of = p.a_columns[e];
      const float w = p.a_values[e];
      const int64_t last = p.b_offsets[of + 1];
      for (int64_t f = p.b_offsets[of] + thread; f < last; f += kThreads) {
        bool added;
        const uint32_t sum =
            table.sum_at(table.find(static_cast<uint32_t>(p.b_columns[f]), &added));
        dev::store_shared(sum, dev::add(dev::load_shared<float>(sum), dev::mul(w, p.b_values[f])));
      }
      sync_team<kThreads>();
    }
    table.sort();
    const int64_t to = p.row_offsets[row];
    const auto count = static_cast<uint32_t>(p.row_offsets[row + 1] - to);
    for (uint32_t i = thread; i < count && i < table.size(); i += kThreads) {
      p.col_indices[to + i] = static_cast<int32_t>(dev::load_shared<uint32_t>(table.column_at(i)));
      p.values[to + i] = dev::load_shared<float>(table.sum_at(i));
    }
  } else {
    uint32_t mine = 0;
    for (int64_t e = begin + thread / 32; e < end; e += kThreads / 32) {
      const int32_t of = p.a_columns[e];
      const int64_t last = p.b_offsets[of + 1];
      for (int64_t f = p.b_offsets[of] + thread % 32; f < last; f += 32) {
        bool added;
        table.find(static_cast<uint32_t>(p.b_columns[f]), &added);
        mine += added ? 1u : 0u;
      }
    }
    dev::add_shared(at, mine);
    sync_team<kThreads>();
    if (thread == 0) p.counts[row] = dev::load_shared<uint32_t>(at);
  }
  sync_team<kThreads>();  // before the table is another row's
}

// Rows for a warp. Grid [rows / 8] of kSpgemmThreads.
template <bool kFill>
TAMIS_DEVICE void spgemm_warps(const SpgemmParams& p) {
  const uint32_t warp = dev::thread_index() / 32;
  const auto row = static_cast<int32_t>(dev::block_index_x() * kSpgemmWarps + warp);
  if (row >= p.rows || dev::load_volatile(p.bounds + row) > kWarpColumns) return;  // the whole warp
  spgemm_row<32, kFill>(p, row, warp * kWarpTableBytes);
}

// Listed rows for a block. Grid [blocks] of kSpgemmThreads.
template <bool kFill>
TAMIS_DEVICE void spgemm_blocks(const SpgemmParams& p, uint32_t blocks) {
  const uint32_t count = dev::load_volatile(p.numbers);
  for (uint32_t i = dev::block_index_x(); i < count; i += blocks) {
    spgemm_row<kSpgemmThreads, kFill>(p, dev::load_volatile(p.lists + i), 0);
  }
}

// How many bytes of a word are 1 and before a thread's, over the block; shared: kSpgemmDenseShared.
TAMIS_DEVICE uint32_t before_in_block(uint32_t count, uint32_t* all) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32;
  uint32_t sum = count;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) sum = dev::prefix_step(sum, distance);
  if (thread % 32 == 31) dev::store_shared<uint32_t>(16 + 4 * warp, sum);
  dev::sync_block();
  uint32_t before = sum - count, total = 0;
  for (uint32_t w = 0; w < kSpgemmWarps; ++w) {
    const auto of_warp = dev::load_shared<uint32_t>(16 + 4 * w);
    before += w < warp ? of_warp : 0u;
    total += of_warp;
  }
  *all = total;
  dev::sync_block();
  return before;
}

// The widest rows: sums lie densely in global memory, a thread takes 16 columns at a time out. Grid
// [dense_blocks] of kSpgemmThreads.
template <bool kFill>
TAMIS_DEVICE void spgemm_dense(const SpgemmParams& p) {
  const uint32_t count = dev::load_volatile(p.numbers + 1), thread = dev::thread_index();
  if (dev::block_index_x() >= count) return;
  uint8_t* memory = p.dense + int64_t{dev::block_index_x()} * p.dense_bytes;
  const int64_t columns = p.dense_bytes / 5;
  auto* sums = reinterpret_cast<float*>(memory);
  uint8_t* there = memory + 4 * columns;
  for (int64_t i = thread; i < p.dense_bytes / 16; i += kSpgemmThreads) {
    reinterpret_cast<dev::Word4*>(memory)[i] = {0, 0, 0, 0};
  }
  dev::sync_block();
  for (uint32_t i = dev::block_index_x(); i < count; i += static_cast<uint32_t>(p.dense_blocks)) {
    const int32_t row = dev::load_volatile(p.lists + p.rows + i);
    for (int64_t e = p.a_offsets[row]; e < p.a_offsets[row + 1]; ++e) {
      const int32_t of = p.a_columns[e];
      const float w = p.a_values[e];
      const int64_t last = p.b_offsets[of + 1];
      for (int64_t f = p.b_offsets[of] + thread; f < last; f += kSpgemmThreads) {
        const int32_t column = p.b_columns[f];
        there[column] = 1;
        if constexpr (kFill) sums[column] = dev::add(sums[column], dev::mul(w, p.b_values[f]));
      }
      if constexpr (kFill) dev::sync_block();
    }
    dev::sync_block();
    int64_t to = kFill ? p.row_offsets[row] : 0;
    for (int64_t first = 0; first < columns; first += kDenseColumns) {
      const int64_t mine = first + 16 * thread;
      auto* word = reinterpret_cast<dev::Word4*>(there + mine);
      const dev::Word4 flags = *word;
      *word = {0, 0, 0, 0};
      const uint32_t parts[4] = {flags.x, flags.y, flags.z, flags.w};
      uint32_t ones = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) ones += static_cast<uint32_t>(dev::popcount(parts[j]));
      uint32_t all = 0;
      int64_t place = to + before_in_block(ones, &all);
      to += all;
      if constexpr (kFill) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          if ((parts[j / 4] >> (8 * (j % 4)) & 1) == 0) continue;
          p.col_indices[place] = static_cast<int32_t>(mine) + j;
          p.values[place++] = sums[mine + j];
          sums[mine + j] = 0;
        }
      }
    }
    if (!kFill && thread == 0) p.counts[row] = to;
    dev::sync_block();
  }
}

}  // namespace tamis
