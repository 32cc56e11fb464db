// y[m,n] = scale[n] * sum_c step[m,c] * sum_k code_x[m,k] * code_w[n,k] + bias[n] for up to 64
// tokens.  w: m24i8, m24i4 or t16i8, codes of 8 (m24i4: 4) bits with a scale a row, or one for each
// group of columns, inside the sum over c then; x, bias, y: bf16 or f16. x is rounded to codes of 8
// bits, one step per token and kStepColumns columns (a chunk c), as on the CPU (ops/spmm/codes.h):
// step = largest |x| / 127, a NaN where one of them is Inf or NaN. Products of a chunk add up in
// s32, exactly; chunks, and parts of k as in t16.cuh, in f32, in a fixed order. Tile: a warp
// multiplies one record (16 rows x 64 columns) with kTokenTiles fragments of 8 tokens: m24i8 and
// m24i4 straight from registers, some records ahead, an mma.sp m16n8k64 each; t16i8 expanded from a
// ring in shared memory, two mma m16n8k32. Parts of k begin and end with chunks. Few tokens are
// rounded by every block for itself, while its first records are on their way; more by quantize_x
// before. Tail: places beyond w have codes of zero; x beyond k is zero; tokens beyond m repeat the
// last one and are not written.
#pragma once

#include <type_traits>

#include "base/cuda/dev.h"
#include "ops/spmm/t16.cuh"
#include "ops/spmm/t16_params.h"
#include "ops/spmm/t16i8_decode.cuh"

namespace tamis {

template <PackedFormat kFormatOf, DType kTypeOf, int kTokenTilesOf, bool kGroupedOf,
          bool kBulkOf = true>
struct ByteConfig {
  // Rows have several scales, for groups of a multiple of 128 columns; else one.
  static constexpr bool kGrouped = kGroupedOf;
  static constexpr int kSumTiles = kGrouped ? 2 : kChunkTiles;  // that sums end after
  static constexpr PackedFormat kFormat = kFormatOf;
  static constexpr DType kType = kTypeOf;            // of x, bias and y
  static constexpr int kTokenTiles = kTokenTilesOf;  // of 8 tokens
  static constexpr int kAccumulators = 4 * kTokenTiles;
  // t16i8: records by bulk copies where there are any, else by cp.async.
  static constexpr bool kBulk = kBulkOf && dev::kBulkCopies;
  // m24i8, m24i4: records of a warp in registers: 80 KB of m24i8 an SM are on their way.
  static constexpr int kDepth = kTokenTiles == 2 || kTokenTiles == 4 ? 8 : 4;
  // Blocks of an SM that registers must leave room for; some for 64 tokens would not fit twice.
  static constexpr bool kSparse = kFormat != PackedFormat::t16i8;
  static constexpr float kUnit = kFormat == PackedFormat::m24i4 ? m24i4::kUnit : 1.0f;  // of a byte
  static constexpr int kMinBlocks = kTokenTiles == 1                             ? 4
                                    : kTokenTiles == 2                           ? (kSparse ? 2 : 3)
                                    : kTokenTiles == 4 || (kSparse && !kGrouped) ? 2
                                                                                 : 1;
  static_assert(kDepth % kChunkTiles == 0, "slots of a turn are whole chunks");
};

// ---- x as codes

// The lane's eight of a chunk's columns, zeros beyond `cols`, as four pairs of 16-bit floats.
TAMIS_DEVICE dev::Word4 load_eight(const uint16_t* x, int32_t col, int32_t cols, bool aligned) {
  if (aligned && col + 8 <= cols) {
    return dev::load_global(reinterpret_cast<const dev::Word4*>(x + col));
  }
  uint32_t pairs[4];
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t at = col + 2 * i;
    const uint32_t low = at < cols ? dev::load_global(x + at) : 0;
    const uint32_t high = at + 1 < cols ? dev::load_global(x + at + 1) : 0;
    pairs[i] = low | high << 16;
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Rounds a chunk of one token, eight columns a lane: their codes, and the chunk's step.
template <DType kType>
TAMIS_DEVICE dev::Word2 to_codes(const dev::Word4& x, float* step) {
  const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
  // Bit patterns of magnitudes order as the magnitudes do, with NaN above Inf.
  uint32_t most = 0;
#pragma unroll
  for (const uint32_t pair : pairs) {
    const uint32_t low = pair & 0x7fffu, high = pair >> 16 & 0x7fffu;
    most = low > most ? low : most;
    most = high > most ? high : most;
  }
  most = dev::warp_max(most);
  const float largest = widen<kType>(static_cast<uint16_t>(most));
  const bool finite = most < (kType == DType::bf16 ? 0x7f80u : 0x7c00u);
  constexpr float kTiny = 0x1p-100f;  // below it 127 / largest may not be finite
  const float grow = largest < kTiny ? 0x1p100f : 1.0f;
  const float factor = finite && most != 0 ? dev::divide(127.0f, dev::mul(largest, grow)) : 0.0f;
  *step = finite ? dev::divide(largest, 127.0f) : dev::float_of(0x7fc00000u);
  uint32_t code[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float value = widen<kType>(static_cast<uint16_t>(pairs[i / 2] >> (16 * (i % 2))));
    code[i] = static_cast<uint32_t>(dev::round_to_int(dev::mul(dev::mul(value, grow), factor)));
  }
  uint32_t words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t low = dev::byte_permute(code[4 * i], code[4 * i + 1], 0x0040);
    const uint32_t high = dev::byte_permute(code[4 * i + 2], code[4 * i + 3], 0x0040);
    words[i] = dev::byte_permute(low, high, 0x5410);
  }
  return {words[0], words[1]};
}

// Leaves codes of chunks [begin, end) of all tokens at kXAt, and their steps.
template <class Config>
TAMIS_DEVICE void quantize_here(const SpmmI8Params& q, int32_t begin, int32_t end, uint32_t warp,
                                uint32_t lane) {
  const SpmmT16Params& p = q.base;
  const int32_t chunks = end - begin, all = chunks * p.m;
  const auto load = [&](int32_t i) {
    const int32_t col =
        static_cast<int32_t>(kStepColumns) * (begin + i % chunks) + 8 * static_cast<int32_t>(lane);
    return load_eight(p.x + i / chunks * p.x_stride, col, p.cols, p.x_aligned);
  };
  dev::Word4 next{};  // loaded while the one before is rounded
  auto i = static_cast<int32_t>(warp);
  if (i < all) next = load(i);
  for (; i < all; i += kBlockWarps) {  // the same in every lane
    const dev::Word4 x = next;
    if (i + kBlockWarps < all) next = load(i + kBlockWarps);
    const int32_t token = i / chunks, chunk = i % chunks;
    float step;
    const dev::Word2 codes = to_codes<Config::kType>(x, &step);
    dev::store_shared<dev::Word2>(
        kXAt + token * p.x_pitch_bytes + static_cast<uint32_t>(kStepColumns) * chunk + 8 * lane,
        codes);
    if (lane == 0) {
      dev::store_shared<float>(q.steps_at + 4 * (chunk * 8 * Config::kTokenTiles + token), step);
    }
  }
}

// The same of codes that quantize_x made.
template <class Config>
TAMIS_DEVICE void load_codes(const SpmmI8Params& q, int32_t begin, int32_t end, uint32_t thread) {
  const SpmmT16Params& p = q.base;
  constexpr auto kParts = static_cast<uint32_t>(kStepColumns / 16);  // of a chunk, 16 bytes each
  const auto chunks = static_cast<uint32_t>(end - begin), parts = chunks * kParts;
  const int64_t all = (p.cols + kStepColumns - 1) / kStepColumns * kStepColumns;
  for (uint32_t i = thread; i < parts * p.m; i += kBlockThreads) {
    const uint32_t token = i / parts, part = i % parts;
    dev::copy_async16(kXAt + token * p.x_pitch_bytes + 16 * part,
                      q.codes + token * all + kStepColumns * begin + 16 * part, 16);
  }
  constexpr uint32_t kStepParts = 2 * Config::kTokenTiles;  // 16 bytes each
  for (uint32_t i = thread; i < chunks * kStepParts; i += kBlockThreads) {
    const uint32_t chunk = i / kStepParts, part = i % kStepParts;
    dev::copy_async16(q.steps_at + 16 * i, q.steps + (begin + chunk) * kMaxTokens + 4 * part, 16);
  }
  dev::commit_async();
  dev::wait_async<0>();
}

// A warp rounds a chunk of a token. Grid [ceil(m * chunks / kBlockWarps)].
template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, 4) quantize_x(const QuantizeXParams p) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const auto i = static_cast<int32_t>(dev::block_index_x() * kBlockWarps + warp);
  dev::wait_for_previous();
  dev::allow_next();
  if (i >= p.m * p.chunks) return;
  const int32_t token = i / p.chunks, chunk = i % p.chunks;
  const int32_t col = static_cast<int32_t>(kStepColumns) * chunk + 8 * static_cast<int32_t>(lane);
  float step;
  const dev::Word2 codes =
      to_codes<kType>(load_eight(p.x + token * p.x_stride, col, p.cols, p.x_aligned), &step);
  *reinterpret_cast<dev::Word2*>(p.codes + int64_t{token} * p.chunks * kStepColumns + col) = codes;
  if (lane == 0) p.steps[chunk * kMaxTokens + token] = step;
}

// ---- records

// A lane's part of a record of m24i8, as loaded, and the bytes that its sixteen codes are.
struct EightBits {
  static constexpr int64_t kRecordBytes = m24i8::kRecordBytes, kLaneBytes = 16;
  dev::Word4 loaded;
  TAMIS_DEVICE void load(const uint8_t* from) {
    loaded = dev::load_stream(reinterpret_cast<const dev::Word4*>(from));
  }
  TAMIS_DEVICE dev::Word4 bytes() const { return loaded; }
};
// Of m24i4: bytes of 16 times each code.
struct FourBits {
  static constexpr int64_t kRecordBytes = m24i4::kRecordBytes, kLaneBytes = 8;
  dev::Word2 loaded;
  TAMIS_DEVICE void load(const uint8_t* from) {
    loaded = dev::load_stream(reinterpret_cast<const dev::Word2*>(from));
  }
  TAMIS_DEVICE dev::Word4 bytes() const {
    constexpr uint32_t kHigh = 0xf0f0f0f0u;
    return {loaded.x << 4 & kHigh, loaded.x & kHigh, loaded.y << 4 & kHigh, loaded.y & kHigh};
  }
};

// On their way straight to registers, as those of m24.
template <class Codes, int kDepthOf>
struct ByteRecords {
  static constexpr int kDepth = kDepthOf;
  const uint8_t* next;  // the lane's part
  uint32_t places[kDepth];
  Codes codes[kDepth];

  TAMIS_DEVICE ByteRecords(const SpmmT16Params& p, int64_t tile, int32_t count, uint32_t lane)
      : next(p.records + tile * int64_t{Codes::kRecordBytes} + 4 * lane) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) request(slot < count, slot, lane);
  }

  // The next record into a slot, if there is one; the same in every lane.
  TAMIS_DEVICE void request(bool any, int slot, uint32_t lane) {
    if (!any) return;
    places[slot] = dev::load_stream(reinterpret_cast<const uint32_t*>(next));
    codes[slot].load(next + int64_t{m24i8::kPlaceBytes} + (Codes::kLaneBytes - 4) * lane);
    next += int64_t{Codes::kRecordBytes};
  }
};

// ---- stages of the product

// Scales of the lane's rows: with groups, of the one at hand; else 1, as whole rows are scaled at
// the end.
template <class Config>
struct RowScales {
  static constexpr bool kGrouped = Config::kGrouped;
  const float* scales;
  uint32_t index[2];
  int32_t left;  // tiles of the group at hand
  float now[2] = {1.0f, 1.0f};

  TAMIS_DEVICE RowScales(const SpmmI8Params& q, int32_t row_tile, uint32_t lane, int32_t tile)
      : scales(q.scales), left(0) {
    const int32_t group = kGrouped ? tile / q.group_tiles : 0;
    if constexpr (kGrouped) left = q.group_tiles - tile % q.group_tiles;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = row_tile * 16 + static_cast<int32_t>(lane / 4) + 8 * half;
      const int32_t last = q.base.rows - 1;
      index[half] = static_cast<uint32_t>((row < last ? row : last) * q.groups + group);
      if constexpr (kGrouped) now[half] = at(index[half]);
    }
  }

  TAMIS_DEVICE float at(uint32_t i) const {
    return dev::mul(dev::load_global(scales + i), Config::kUnit);
  }

  // After that many tiles, if others follow: on to the next group where this one ends, so that its
  // scale is on its way.
  TAMIS_DEVICE void pass(const SpmmI8Params& q, int32_t tiles, bool more) {
    if constexpr (kGrouped) {
      left -= tiles;
      if (left > 0 || !more) return;  // the same in every lane
      left = q.group_tiles;
#pragma unroll
      for (int half = 0; half < 2; ++half) now[half] = at(++index[half]);
    }
  }
};

// c += sums of columns of one chunk and one group times its steps, at `steps_at`, and the scales;
// sums are zero again.
template <class Config>
TAMIS_DEVICE void add_sums(uint32_t steps_at, uint32_t lane, const float (&scale)[2],
                           int32_t (&sums)[Config::kTokenTiles][4],
                           float (&c)[Config::kTokenTiles][4]) {
#pragma unroll
  for (int t = 0; t < Config::kTokenTiles; ++t) {
    const auto steps = dev::load_shared<dev::Word2>(steps_at + 32 * t + 8 * (lane % 4));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      auto sum = static_cast<float>(sums[t][i]);
      if constexpr (Config::kGrouped) sum = dev::mul(sum, scale[i / 2]);
      c[t][i] = dev::fma(sum, dev::float_of(i % 2 == 0 ? steps.x : steps.y), c[t][i]);
      sums[t][i] = 0;
    }
  }
}

// t16i8 on its way through shared memory, a chunk's records at once, as one request takes as many
// instructions as a record's decoding.
template <bool kBulk>
struct ChunkRing {
  static constexpr uint32_t kChunkStages = 2;
  const uint8_t* records;
  const uint32_t* offsets;  // of the chunk to be requested next
  int32_t left;             // records to be requested
  uint32_t begin, end;      // the next chunk, in units
  uint32_t ring, stage_bytes, barriers;
  uint32_t lane;
  uint32_t stage = 0, parity = 0;  // of the chunk to be consumed next

  TAMIS_DEVICE ChunkRing(const SpmmT16Params& p, int64_t tile, int32_t count, uint32_t warp,
                         uint32_t lane_of)
      : records(p.records),
        offsets(p.offsets + tile),
        left(count),
        begin(count > 0 ? dev::load_global(p.offsets + tile) : 0),
        end(count > 0 ? dev::load_global(p.offsets + tile + records_next()) : 0),
        ring(kXAt + p.m * p.x_pitch_bytes + warp * kStages * p.stage_bytes),
        stage_bytes(kStages / kChunkStages * p.stage_bytes),
        barriers(kBarriersAt + warp * kStages * 8),
        lane(lane_of) {
    if constexpr (kBulk) {
      if (lane == 0) {
        for (uint32_t s = 0; s < kChunkStages; ++s) dev::barrier_init(barriers + 8 * s);
        dev::fence_barrier_init();
      }
      dev::sync_warp();
    }
    for (uint32_t s = 0; s < kChunkStages; ++s) request(s);
  }

  TAMIS_DEVICE int32_t records_next() const { return left < kChunkTiles ? left : kChunkTiles; }

  // Asks for the next chunk. The offset after it was loaded one chunk ago.
  TAMIS_DEVICE void request(uint32_t s) {
    if (left > 0 && (!kBulk || lane == 0)) {
      const uint32_t bytes = (end - begin) * static_cast<uint32_t>(t16::kUnit);
      const uint8_t* from = records + int64_t{begin} * t16::kUnit;
      const uint32_t to = ring + s * stage_bytes;
      if constexpr (kBulk) {
        dev::barrier_expect(barriers + 8 * s, bytes);
        dev::bulk_copy(to, from, bytes, barriers + 8 * s);
      } else {
#pragma unroll 1  // a chunk has about six rounds
        for (uint32_t i = 16 * lane; i < bytes; i += 16 * 32) {
          dev::copy_async16(to + i, from + i, 16);
        }
      }
      begin = end;
      offsets += records_next();
      left -= records_next();
      if (left > 0) end = dev::load_global(offsets + records_next());
    }
    if constexpr (!kBulk) dev::commit_async();
  }

  // Waits for the next chunk and returns where it lies.
  TAMIS_DEVICE uint32_t wait() const {
    if constexpr (kBulk) {
      dev::barrier_wait(barriers + 8 * stage, parity);
    } else {
      dev::wait_async<kChunkStages - 1>();
      dev::sync_warp();
    }
    return ring + stage * stage_bytes;
  }

  // Every lane is done with that chunk: its stage takes another.
  TAMIS_DEVICE void release() {
    dev::sync_warp();
    request(stage);
    parity ^= stage;  // after the last one
    stage ^= 1;
  }
};

// sums += x of one tile's columns * one record of t16i8, which ends where the result says. x_at:
// the lane's 16 columns of its token in each tile of 8 tokens, `column` before these.
template <class Config>
TAMIS_DEVICE uint32_t multiply_t16i8(uint32_t record, uint32_t lane, uint32_t column,
                                     const uint32_t (&x_at)[Config::kTokenTiles],
                                     int32_t (&sums)[Config::kTokenTiles][4]) {
  const auto word = dev::load_shared<uint32_t>(record + 4 * lane);
  const auto before =
      dev::load_shared<uint32_t>(record + static_cast<uint32_t>(t16i8::kWordBytes) + 4 * lane);
  const auto starts =
      dev::load_shared<dev::Word4>(record + static_cast<uint32_t>(t16i8::kStartsAt));
  const uint32_t counts = nibble_counts(word), address = dev::shared_address(record);
  uint32_t a[2][4];
#pragma unroll
  for (uint32_t run = 0; run < 4; ++run) {
    const uint32_t pair = run < 2 ? starts.x : starts.y;
    const uint32_t at = address + (run % 2 == 0 ? pair & 0xffffu : pair >> 16) +
                        dev::byte_permute(before, 0, 0x4440u + run);
    expand_run(at, word, counts, run, a[run / 2][run % 2 * 2], a[run / 2][run % 2 * 2 + 1]);
  }
#pragma unroll
  for (int t = 0; t < Config::kTokenTiles; ++t) {
    const auto b = dev::load_shared<dev::Word4>(x_at[t] + column);
    dev::mma_signed_bytes(sums[t], a[0], b.x, b.y);
    dev::mma_signed_bytes(sums[t], a[1], b.z, b.w);
  }
  return record + starts.z * static_cast<uint32_t>(t16::kUnit);
}

// Grid [blocks_n, splits] of kBlockThreads.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, Config::kMinBlocks)
    spmm_i8(const SpmmI8Params q) {
  const SpmmT16Params& p = q.base;
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto split = static_cast<int32_t>(dev::block_index_y());
  const auto part = static_cast<int32_t>(warp) % p.warps_k;
  const int32_t row_tile = static_cast<int32_t>(dev::block_index_x()) * (kBlockWarps / p.warps_k) +
                           static_cast<int32_t>(warp) / p.warps_k;
  const int32_t chunks = (p.col_tiles + kChunkTiles - 1) / kChunkTiles;
  const auto boundary = [&](int32_t index) {  // parts differ by at most one chunk
    return static_cast<int32_t>(int64_t{index} * chunks / (p.splits * p.warps_k));
  };
  const int32_t block_begin = boundary(split * p.warps_k);
  const int32_t block_end = boundary((split + 1) * p.warps_k);
  const int32_t begin = boundary(split * p.warps_k + part);
  const int32_t end = kChunkTiles * boundary(split * p.warps_k + part + 1);
  const int32_t tiles = (end < p.col_tiles ? end : p.col_tiles) - kChunkTiles * begin;
  const int32_t count = row_tile < p.row_tiles ? tiles : 0;

  float c[Config::kTokenTiles][4] = {};
  int32_t sums[Config::kTokenTiles][4] = {};
  // Weights do not depend on the kernel before, so their first records are on their way while it
  // ends; x, the bias, the workspace and y wait for it.
  const int64_t first = int64_t{row_tile} * p.col_tiles + int64_t{kChunkTiles} * begin;
  constexpr bool kSparse = Config::kSparse;
  uint32_t x_at[Config::kTokenTiles];
  uint32_t steps_at = q.steps_at + 32 * Config::kTokenTiles * (begin - block_begin);
  const auto find_x = [&] {
    dev::wait_for_previous();
    if (q.codes != nullptr) {
      load_codes<Config>(q, block_begin, block_end, thread);
    } else {
      quantize_here<Config>(q, block_begin, block_end, warp, lane);
    }
    dev::sync_block();
    dev::allow_next();
#pragma unroll
    for (int t = 0; t < Config::kTokenTiles; ++t) {
      const int32_t token = 8 * t + static_cast<int32_t>(kSparse ? lane % 8 : lane / 4);
      x_at[t] = kXAt + (token < p.m ? token : p.m - 1) * p.x_pitch_bytes +
                static_cast<uint32_t>(kStepColumns) * (begin - block_begin) +
                16 * (kSparse ? lane / 8 : lane % 4);
    }
  };
  RowScales<Config> scales(q, row_tile, lane, kChunkTiles * begin);
  const auto end_sums = [&](bool more) {
    add_sums<Config>(steps_at, lane, scales.now, sums, c);
    scales.pass(q, Config::kSumTiles, more);
  };
  const auto next_chunk = [&] {
    steps_at += 32 * Config::kTokenTiles;
#pragma unroll
    for (int t = 0; t < Config::kTokenTiles; ++t) x_at[t] += static_cast<uint32_t>(kStepColumns);
  };
  if constexpr (kSparse) {
    using Codes = std::conditional_t<Config::kFormat == PackedFormat::m24i4, FourBits, EightBits>;
    ByteRecords<Codes, Config::kDepth> records(p, first, count, lane);
    find_x();
    for (int32_t i = 0; i < count; i += Config::kDepth) {
#pragma unroll
      for (int slot = 0; slot < Config::kDepth; ++slot) {
        if (i + slot >= count) break;  // the same in every lane
        const dev::Word4 codes = records.codes[slot].bytes();
#pragma unroll
        for (int t = 0; t < Config::kTokenTiles; ++t) {
          dev::mma_sparse_bytes(sums[t], codes,
                                dev::load_matrices(x_at[t] + 64 * (slot % kChunkTiles)),
                                records.places[slot]);
        }
        records.request(i + slot + Config::kDepth < count, slot, lane);
        if ((slot + 1) % Config::kSumTiles == 0) end_sums(i + slot + 1 < count);
        if (slot % kChunkTiles == kChunkTiles - 1) next_chunk();
      }
    }
  } else {
    ChunkRing<Config::kBulk> ring(p, first, count, warp, lane);
    find_x();
    for (int32_t i = 0; i < count; i += kChunkTiles) {
      uint32_t record = ring.wait();
#pragma unroll
      for (int slot = 0; slot < kChunkTiles; ++slot) {
        if (i + slot >= count) break;  // the same in every lane
        record = multiply_t16i8<Config>(record, lane, 64 * slot, x_at, sums);
        if ((slot + 1) % Config::kSumTiles == 0) end_sums(i + slot + 1 < count);
      }
      ring.release();
      if (i + kChunkTiles <= count) next_chunk();
    }
  }
  if (count % Config::kSumTiles != 0) end_sums(false);

  if (p.warps_k > 1) reduce_warps<Config>(p.warps_k, warp, lane, c);
  const bool owner = part == 0 && row_tile < p.row_tiles;
  if (p.splits > 1 && !add_blocks<Config>(p, p.splits, kFlagAt, row_tile, owner, thread, c)) return;
  if (!owner) return;
#pragma unroll
  for (int half = 0; half < 2 && !Config::kGrouped; ++half) {
    const float scale = scales.at(scales.index[half]);
#pragma unroll
    for (int t = 0; t < Config::kTokenTiles; ++t) {
      c[t][2 * half] = dev::mul(c[t][2 * half], scale);
      c[t][2 * half + 1] = dev::mul(c[t][2 * half + 1], scale);
    }
  }
  write_y<Config>(p, row_tile, lane, c);
}

}  // namespace tamis
