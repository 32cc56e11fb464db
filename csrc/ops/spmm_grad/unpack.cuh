// w as a dense [rows, k], and its gradient gathered from one: a warp takes 32 words of a row's mask
// (2048 columns). Values come to shared memory in 16 bytes a lane, where a lane picks those of four
// columns at a time: 23 instructions for 128 columns of a warp. Each warp counts what its row keeps
// before its words, so none waits for another and a few rows occupy a device as well as many.
// Needs: k a multiple of 8; values at any address.   Tail: columns past the last are not touched.
// Tried: eight columns a lane: lanes' values are two words apart then and meet in banks. Single
// values from global memory take more of the L1 cache than w of DRAM.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm_grad/grad_params.h"

namespace tamis {

// Four columns of half a word of a mask, from bit `shift` (a multiple of 4) on: `at` is where in
// shared memory the first value of the half lies. Zero where nothing is kept.
TAMIS_DEVICE dev::Word2 expand_four(uint32_t bits, uint32_t at, uint32_t shift) {
  // The value of an odd column, if kept, follows those of all columns below; that of the even one
  // before it, if kept, is the one before that. What is read for columns not kept is not used.
  const auto odd = [&](uint32_t column) {
    const uint32_t below = (uint32_t{1} << (shift + column)) - 1;
    return at + 2 * static_cast<uint32_t>(dev::popcount(bits & below));
  };
  const uint32_t first = odd(1), second = odd(3);
  const uint32_t values[4] = {
      dev::load_shared<uint16_t>(first - 2), dev::load_shared<uint16_t>(first),
      dev::load_shared<uint16_t>(second - 2), dev::load_shared<uint16_t>(second)};
  // A pair's selector takes bytes 0, 1 and 4, 5 where kept, else zero bytes of the upper halves.
  const uint32_t kept = (bits >> shift & 15) * 0x204081 & 0x01010101;  // a byte a column
  const uint32_t selectors = 0x76327632 - 0x22 * kept;
  return {dev::byte_pick(values[0], values[1], selectors),
          dev::byte_pick(values[2], values[3], selectors >> 16)};
}

// Copies values [start, start + count) as they lie round multiples of 16 bytes in memory, 16 bytes
// a lane; a few at the very ends of w one by one. Where in shared memory the first one comes to
// lie.
TAMIS_DEVICE uint32_t request_values(const DenseParams& p, int64_t start, uint32_t count,
                                     uint32_t lane, uint32_t to) {
  const uint16_t* first = p.values + start;
  const auto skew = static_cast<int32_t>(reinterpret_cast<uintptr_t>(first) / 2 % 8);
  const uint16_t* from = first - skew;
  const int32_t head = start < skew ? 8 : 0, end = skew + static_cast<int32_t>(count);
  const int64_t left = p.nnz - start + skew;
  const int32_t last = end <= left - 7 ? end : static_cast<int32_t>(left - 7);
  const auto me = static_cast<int32_t>(lane);
#pragma unroll 1
  for (int32_t i = head + 8 * me; i < last; i += 8 * 32) {
    dev::copy_async16(to + 2 * static_cast<uint32_t>(i), from + i, 16);
  }
  dev::commit_async();
  const int32_t tail = last > head ? head + (last - head + 7) / 8 * 8 : head;
  if (head > 0 || tail < end) {  // nothing before the first value of w or behind the last is read
    const auto copy = [&](int32_t i) {
      dev::store_shared<uint16_t>(to + 2 * static_cast<uint32_t>(i), dev::load_global(from + i));
    };
    if (me >= skew && me < head && me < end) copy(me);
    if (tail + me < end) copy(tail + me);
  }
  return to + 2 * static_cast<uint32_t>(skew);
}

// Sums up to each lane.
TAMIS_DEVICE uint32_t sum_up(uint32_t value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) value = dev::prefix_step(value, distance);
  return value;
}
TAMIS_DEVICE uint32_t of_last(uint32_t value) {
  return static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(value), 31));
}

// 32 words of a row: what a warp takes.
struct MaskPart {
  int32_t row, column;  // the first
  dev::Word2 bits;      // of this lane's word
  uint32_t low, count;  // kept in its lower half, and in all of it
  uint32_t before;      // in the words of the lanes below
  uint32_t total;
  int64_t start;  // of the part's values
};

TAMIS_DEVICE MaskPart find_part(const DenseParams& p, int32_t row, int32_t first, uint32_t lane) {
  MaskPart part{};
  part.row = row;
  part.column = 64 * first;
  const auto* mask = reinterpret_cast<const dev::Word2*>(p.mask) + int64_t{row} * p.words;
  const int32_t word = first + static_cast<int32_t>(lane);
  part.bits = word < p.words ? dev::load_global(mask + word) : dev::Word2{0, 0};
  part.start =
      p.row_offsets != nullptr ? dev::load_global(p.row_offsets + row) : row * p.row_values;
  if (first > 0) {
    uint32_t above = 0;
#pragma unroll 4
    for (int32_t other = word - 32; other >= 0; other -= 32) {
      const dev::Word2 bits = dev::load_global(mask + other);
      above += static_cast<uint32_t>(dev::popcount(bits.x) + dev::popcount(bits.y));
    }
    part.start += of_last(sum_up(above));
  }
  part.low = static_cast<uint32_t>(dev::popcount(part.bits.x));
  part.count = part.low + static_cast<uint32_t>(dev::popcount(part.bits.y));
  const uint32_t sum = sum_up(part.count);
  part.before = sum - part.count;
  part.total = of_last(sum);
  return part;
}

// The words of the part with where in shared memory the values of each half begin.
TAMIS_DEVICE void store_words(const MaskPart& part, uint32_t lane, uint32_t words_at,
                              uint32_t values_at) {
  const uint32_t at = values_at + 2 * part.before;
  dev::store_shared<dev::Word4>(words_at + 16 * lane,
                                {part.bits.x, at, part.bits.y, at + 2 * part.low});
}

// Calls step(i, whether this lane's columns are in w) for 128 columns each, eight at a time.
template <class Step>
TAMIS_DEVICE void for_steps(const DenseParams& p, const MaskPart& part, uint32_t lane,
                            const Step& step) {
  const int32_t left = p.k - part.column, mine = left - 4 * static_cast<int32_t>(lane);
#pragma unroll 1
  for (int32_t first = 0; first < kUnpackWords / 2 && 128 * first < left; first += 8) {
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) step(first + i, 128 * (first + i) < mine);
  }
}

// The row and the first word of this warp; false: there is none.
TAMIS_DEVICE bool own_part(const DenseParams& p, int32_t* row, int32_t* first) {
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const int32_t rows = block / p.parts;
  *row = rows * kUnpackWarps + static_cast<int32_t>(dev::thread_index() / 32);
  *first = kUnpackWords * (block - rows * p.parts);
  return *row < p.rows;
}

// Both: grid [parts of a row * rows / kUnpackWarps] of 32 * kUnpackWarps threads.
TAMIS_DEVICE void unpack_mask(const DenseParams& p) {
  int32_t row, first;
  if (!own_part(p, &row, &first)) return;  // the whole warp
  const uint32_t lane = dev::thread_index() % 32, shift = 4 * (lane % 8);
  const uint32_t words_at = dev::thread_index() / 32 * kUnpackWarpBytes;
  const MaskPart part = find_part(p, row, first, lane);
  const uint32_t values_at =
      request_values(p, part.start, part.total, lane, words_at + kUnpackValuesAt);
  store_words(part, lane, words_at, values_at);
  dev::wait_async<0>();
  dev::sync_warp();
  uint16_t* to = p.dense + int64_t{row} * p.k + part.column + 4 * lane;
  for_steps(p, part, lane, [&](int32_t i, bool inside) {
    const auto half = dev::load_shared<dev::Word2>(words_at + 32 * i + lane / 8 * 8);
    const dev::Word2 columns = expand_four(half.x, half.y, shift);
    if (inside) *reinterpret_cast<dev::Word2*>(to + 128 * i) = columns;
  });
}

// The values of w where a dense [rows, k] has them: the way back. A warp collects its part's in
// shared memory and writes them in 16 bytes a lane, for stores of 16 bits apart took five times as
// long as what they move.
TAMIS_DEVICE void gather_mask(const DenseParams& p) {
  int32_t row, first;
  if (!own_part(p, &row, &first)) return;  // the whole warp
  const uint32_t lane = dev::thread_index() % 32, shift = 4 * (lane % 8);
  const uint32_t words_at = dev::thread_index() / 32 * kUnpackWarpBytes;
  const uint32_t values_at = words_at + kUnpackValuesAt;
  const MaskPart part = find_part(p, row, first, lane);
  uint16_t* to = p.values + part.start;
  const auto skew = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(to) / 2 % 8);
  to -= skew;
  store_words(part, lane, words_at, values_at + 2 * skew);
  dev::sync_warp();
  const uint16_t* from = p.dense + int64_t{row} * p.k + part.column + 4 * lane;
  for_steps(p, part, lane, [&](int32_t i, bool inside) {
    const auto half = dev::load_shared<dev::Word2>(words_at + 32 * i + lane / 8 * 8);
    dev::Word2 columns{};
    if (inside) columns = dev::load_global(reinterpret_cast<const dev::Word2*>(from + 128 * i));
    const uint32_t values[4] = {columns.x, columns.x >> 16, columns.y, columns.y >> 16};
    const uint32_t kept = half.x >> shift;
    uint32_t at =
        half.y + 2 * static_cast<uint32_t>(dev::popcount(half.x & ((uint32_t{1} << shift) - 1)));
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t bit = kept >> j & 1;
      if (bit != 0) dev::store_shared<uint16_t>(at, static_cast<uint16_t>(values[j]));
      at += 2 * bit;
    }
  });
  dev::sync_warp();
  const uint32_t end = skew + part.total, head = skew > 0 ? 8 : 0, tail = end / 8 * 8;
#pragma unroll 2
  for (uint32_t i = head + 8 * lane; i + 8 <= end; i += 8 * 32) {
    *reinterpret_cast<dev::Word4*>(to + i) = dev::load_shared<dev::Word4>(values_at + 2 * i);
  }
  const auto copy = [&](uint32_t i) { to[i] = dev::load_shared<uint16_t>(values_at + 2 * i); };
  if (lane >= skew && lane < head && lane < end) copy(lane);  // shared with the part before
  if (tail >= head && tail + lane < end) copy(tail + lane);   // and the one behind
}

}  // namespace tamis
