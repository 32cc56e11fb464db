// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for many tokens.  w: the canonical bitmap (or nm), bf16
// or f16, as stored: mask words, values in the order of k, row offsets; x, bias, y: the same dtype;
// accumulates f32 on the tensor cores of sm_90a. Tile: each warp makes the fragments of its 16 rows
// and 64 columns in registers while tensor cores multiply those of the 64 columns before, so
// weights are expanded once for up to 256 tokens, whose x lies in shared memory once for all
// warpgroups of a block. Words of the mask come some panels before the values that they find.
// Work and reduction: as in m24_wgmma.cuh. A lane's pair of columns is one or two loads of 16 bits
// from the values of its row, whose place is a POPC of the word below the pair, and a permute that
// takes them or zeros: 9 instructions a pair, and what bounds it is the integer pipe.
// Needs: tickets zero before the first call; every call leaves them zero. Launched so that it may
// begin before the kernel before it ends, it needs weights which that kernel did not write. Tail:
// the last row stands in for those beyond it, x beyond the last column is zero; rows and tokens
// beyond the end are not written. Tried: a warpgroup that loads for the others, with x as boxes
// (bench/results/gpu.md).
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/spmm/bitmap_wgmma_params.h"
#include "ops/spmm/m24_wgmma.cuh"

namespace tamis {

template <DType kTypeOf, int kTokensOf, int kGroupsOf, int kPanelsOf, int kBlocksOf>
struct BitmapGroupConfig {
  static constexpr BitmapLayout kLayout = {kTokensOf, kGroupsOf, kPanelsOf, kBlocksOf};
  static constexpr DType kType = kTypeOf;       // of w, x, bias and y
  static constexpr int kTokens = kTokensOf;     // of an output tile: 32, 64, 128 or 256
  static constexpr int kRows = kLayout.rows();  // likewise; 64 of each warpgroup of a block
  static constexpr int kThreads = kLayout.threads();
  static constexpr int kDepth = 1;              // words of a panel
  static constexpr int kPanels = kPanelsOf;     // on their way through shared memory, and in use
  static constexpr int kMinBlocks = kBlocksOf;  // of an SM that registers must leave room for
  static constexpr int kAhead = kLayout.ahead(), kMasks = kLayout.masks();
  static constexpr int kTiles = kTokens / 8;
  static constexpr int kTileBytes = kTokens * 128;
  static constexpr int kMasksAt = kLayout.masks_at(), kMaskBytes = 8 * kRows;
  static constexpr int kValuesAt = kLayout.values_at(), kValuesBytes = kRows * kBitmapPitch;
  static constexpr int kFlag = kLayout.flag_at();
  static_assert(kPanels >= 4 && (kPanels & (kPanels - 1)) == 0,
                "one panel is multiplied, one is expanded; places in rings are low bits");
};

// The last row stands in for those beyond it, whose sums nobody writes.
TAMIS_DEVICE int32_t row_or_last(const BitmapGroupParams& p, int32_t row) {
  return row < p.rows ? row : p.rows - 1;
}

// The two rows of a warp's 16 that a lane has to do with, and where their values of a panel begin.
struct BitmapRows {
  uint32_t at[2];

  // Of the first panel: values of the words before it are counted.
  TAMIS_DEVICE BitmapRows(const BitmapGroupParams& p, int32_t first_row, int32_t col,
                          uint32_t lane) {
    begin(p, first_row);
    if (col == 0) return;  // the same in every lane
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t before = 0;
      const auto* words = reinterpret_cast<const dev::Word2*>(p.mask) +
                          int64_t{row_or_last(p, first_row + 8 * j)} * p.words;
#pragma unroll 8
      for (auto i = static_cast<int32_t>(lane % 4); i < col; i += 4) {
        const dev::Word2 bits = dev::load_global(words + i);
        before += static_cast<uint32_t>(dev::popcount(bits.x) + dev::popcount(bits.y));
      }
      for (const uint32_t other : {1u, 2u}) {
        before += static_cast<uint32_t>(
            dev::shuffle(static_cast<int32_t>(before), static_cast<int>(lane ^ other)));
      }
      at[j] += before;
    }
  }
  TAMIS_DEVICE void begin(const BitmapGroupParams& p, int32_t first_row) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int32_t row = row_or_last(p, first_row + 8 * j);
      at[j] = static_cast<uint32_t>(p.row_offsets != nullptr ? dev::load_global(p.row_offsets + row)
                                                             : row * p.row_values);
    }
  }
};

// Copies the values of two rows' words from the multiple of 16 bytes before the first on, four
// lanes a row. words_at, to: of the first of them.
TAMIS_DEVICE void load_values(const BitmapGroupParams& p, uint32_t words_at, uint32_t to,
                              BitmapRows* rows, uint32_t lane) {
  const uint32_t whole = p.nnz / 8 * 8, t = lane % 4;
  uint32_t first[2], end[2];
#pragma unroll
  for (uint32_t j = 0; j < 2; ++j) {
    const auto bits = dev::load_shared<dev::Word2>(words_at + 64 * j);
    first[j] = rows->at[j] / 8 * 8;
    rows->at[j] += static_cast<uint32_t>(dev::popcount(bits.x) + dev::popcount(bits.y));
    end[j] = rows->at[j] < whole ? rows->at[j] : whole;
  }
#pragma unroll
  for (uint32_t j = 0; j < 2; ++j) {
    const auto left = static_cast<int32_t>(end[j] - first[j] - 8 * t);
    const uint16_t* from = p.values + (first[j] + 8 * t);
    const uint32_t at = to + 8 * kBitmapPitch * j + 16 * t;
    dev::copy_async16_if<0>(left > 0, at, from);
    dev::copy_async16_if<64>(left > 32, at, from);
    dev::copy_async16_if<128>(left > 64, at, from);
  }
  if (rows->at[0] <= whole && rows->at[1] <= whole) return;
  for (uint32_t j = 0; j < 2; ++j) {  // the last values of all are less than 16 bytes
    for (uint32_t i = whole + t; i < p.nnz && i < rows->at[j]; i += 4) {
      if (i < first[j]) continue;
      dev::store_shared<uint16_t>(to + 8 * kBitmapPitch * j + 2 * (i - first[j]),
                                  dev::load_global(p.values + i));
    }
  }
}

// Copies a thread's part of panels of x: of every kThreads / 8 tokens the same 16 bytes.
template <class Config>
struct BitmapX {
  static constexpr int kStep = Config::kThreads / 8;  // tokens
  static_assert(kStep % 8 == 0, "a thread's tokens have one place in their eight rows");
  const uint16_t* from = nullptr;
  int32_t tokens = 0;
  uint32_t to;

  TAMIS_DEVICE explicit BitmapX(uint32_t thread)
      : to(thread / 8 * 128 + 16 * (thread % 8 ^ thread / 8 % 8)) {}
  TAMIS_DEVICE void begin(const BitmapGroupParams& p, const PanelPlace& at, uint32_t thread) {
    const int32_t first = at.tokens * Config::kTokens + static_cast<int32_t>(thread / 8);
    const int32_t inside = Config::kTokens - static_cast<int32_t>(thread / 8);
    tokens = p.m - first < inside ? p.m - first : inside;
    from = p.x + first * p.x_stride + 64 * at.col + 8 * (thread % 8);
  }
  TAMIS_DEVICE void load(const BitmapGroupParams& p, uint32_t stage) {
#pragma unroll
    for (int i = 0; i * kStep < Config::kTokens; ++i) {
      dev::copy_async16_if<0>(i * kStep < tokens, stage + to + 128 * kStep * i,
                              from + i * kStep * p.x_stride);
    }
    from += 64;
  }
};

// What a lane needs to know of its columns, whatever the word: bits 8b + 2t and the next.
struct BitmapLane {
  uint32_t below[4];  // of a half's pair b
  uint32_t shift;     // to the pair of byte 0

  TAMIS_DEVICE explicit BitmapLane(uint32_t lane) : shift(2 * (lane % 4)) {
#pragma unroll
    for (uint32_t b = 0; b < 4; ++b) below[b] = (1u << (8 * b + shift)) - 1;
  }
};

// Fragments of a warp's 16 rows and 64 columns, a[s] of columns 16s to 16s + 15. words_at,
// values_at: of the first of this lane's rows.
TAMIS_DEVICE void expand_words(uint32_t words_at, uint32_t values_at, const BitmapLane& of,
                               BitmapRows* rows, dev::Word4 (&a)[4]) {
  uint32_t pairs[16];
#pragma unroll
  for (uint32_t j = 0; j < 2; ++j) {
    const auto bits = dev::load_shared<dev::Word2>(words_at + 64 * j);
    const auto low = static_cast<uint32_t>(dev::popcount(bits.x));
    uint32_t base = dev::shared_address(values_at) + 8 * kBitmapPitch * j + 2 * (rows->at[j] % 8);
    rows->at[j] += low + static_cast<uint32_t>(dev::popcount(bits.y));
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t word = half == 0 ? bits.x : bits.y;
      // A byte a pair: whether its columns are kept, then which bytes of its values make it: of the
      // first value, of the second where both are kept, or the first one's upper half, zeros.
      const uint32_t firsts = word >> of.shift & 0x01010101u;
      const uint32_t seconds = word >> (of.shift + 1) & 0x01010101u, both = firsts & seconds;
      const uint32_t low_digits = 0x32323232u - 0x22u * firsts;
      const uint32_t high_digits = 0x32323232u - 0x22u * seconds + 0x44u * both;
#pragma unroll
      for (uint32_t b = 0; b < 4; ++b) {
        const uint32_t at = base + 2 * static_cast<uint32_t>(dev::popcount(word & of.below[b]));
        const uint32_t first = dev::load_shared_at<uint16_t>(at);
        const uint32_t second = dev::load_shared_half_if<2>(both & 1u << (8 * b), at);
        const uint32_t digits = dev::byte_select(low_digits, high_digits, b | (4 + b) << 4);
        // Pair 2s + h of the row: columns 8h and on of product s.
        pairs[8 * half + 2 * b + j] = dev::byte_pick(first, second, digits);
      }
      base += 2 * low;
    }
  }
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    a[s] = {pairs[4 * s], pairs[4 * s + 1], pairs[4 * s + 2], pairs[4 * s + 3]};
  }
}

// Grid [blocks] of kThreads, every `parts` of them a cluster.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(Config::kThreads, Config::kMinBlocks)
    spmm_bitmap_group(const BitmapGroupParams p) {
  constexpr uint32_t kPanels = Config::kPanels, kAhead = Config::kAhead, kMasks = Config::kMasks;
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const int32_t begin = first_panel(p, block), end = first_panel(p, block + 1);
  const auto first_row = [&](const PanelPlace& at) {
    return at.rows * Config::kRows + 16 * static_cast<int32_t>(warp);
  };
  // Of this lane's rows: g = lane / 4 and g + 8 of the warp's.
  const auto own_row = static_cast<int32_t>(lane / 4);
  const auto words_at = [&](uint32_t of) {
    return Config::kMasksAt + of % kMasks * Config::kMaskBytes + 8 * (16 * warp + lane / 4);
  };
  const auto values_at = [&](uint32_t of) {
    return Config::kValuesAt + of % kPanels * Config::kValuesBytes +
           kBitmapPitch * (16 * warp + lane / 4);
  };

  PanelPlace now(p, begin), ahead = now, words_ahead = now;
  BitmapRows used(p, first_row(now) + own_row, now.col, lane), wanted = used;
  // Panels of the block: the one that is expanded, and how many are left to be requested.
  uint32_t step = 0;
  int32_t words_left = end - begin, left = words_left;
  // Words, of row `lane` of the warp's.
  const uint64_t* next_word = nullptr;
  int32_t words_of_row = 0;  // left of an output tile
  const auto find_words = [&] {
    const int32_t row = row_or_last(p, first_row(words_ahead) + static_cast<int32_t>(lane % 16));
    next_word = p.mask + int64_t{row} * p.words + words_ahead.col;
    words_of_row = p.col_panels - words_ahead.col;
  };
  find_words();
  const auto request_words = [&](uint32_t of) {
    dev::copy_async8_if(
        lane < 16 && words_left > 0,
        Config::kMasksAt + of % kMasks * Config::kMaskBytes + 8 * (16 * warp + lane), next_word);
    ++next_word;
    --words_left;
    if (--words_of_row == 0 && words_left > 0) {
      words_ahead.col = p.col_panels - 1;
      words_ahead.advance(p);
      find_words();
    }
  };

  // Weights do not depend on the kernel before: the first ones are on their way while it ends.
  for (uint32_t i = 0; i < kAhead; ++i) request_words(i);
  dev::commit_async();
  dev::wait_async<0>();
  dev::sync_warp();
  {
    PanelPlace at = ahead;
#pragma unroll 1
    for (uint32_t i = 0; i < kAhead && static_cast<int32_t>(i) < left; ++i) {
      load_values(p, words_at(i), values_at(i), &wanted, lane);
      request_words(kAhead + i);
      at.advance(p);
      if (at.col == 0) wanted.begin(p, first_row(at) + own_row);
    }
  }
  BitmapX<Config> x(thread);
  x.begin(p, ahead, thread);
  int32_t panels_of_row = p.col_panels - ahead.col;  // left of an output tile
  const bool ragged = p.cols % 64 != 0;
  const auto request_x = [&](uint32_t of) {
    const uint32_t to = of % kPanels * Config::kTileBytes;
    if (!p.x_aligned || (ragged && panels_of_row == 1)) {
      ahead.col = p.col_panels - panels_of_row;
      load_panel<Config>(p, ahead, to, thread);
      x.from += 64;
    } else {
      x.load(p, to);
    }
    --left;
    --panels_of_row;
  };
  const auto next_tile = [&] {
    ahead.col = p.col_panels - 1;
    ahead.advance(p);
    x.begin(p, ahead, thread);
    panels_of_row = p.col_panels;
  };
  dev::wait_for_previous();
#pragma unroll 1
  for (uint32_t i = 0; i < kAhead; ++i) {
    if (left > 0) {
      request_x(i);
      if (panels_of_row == 0) next_tile();
    }
    dev::commit_async();
  }

  const BitmapLane of(lane);
  dev::Word4 a[2][4];
  for (int32_t panel = begin; panel < end;) {  // output tiles
    float c[Config::kTiles][4] = {};
    const int32_t first_panel = panel, tile_begin = panel - now.col;
    const int32_t tile_end = tile_begin + p.col_panels < end ? tile_begin + p.col_panels : end;
    if (now.col == 0) used.begin(p, first_row(now) + own_row);
    // One panel: its fragments while the products of the one before run, then its products.
    const auto take = [&](dev::Word4(&fragments)[4]) {
      dev::wait_async<kAhead - 1>();
      dev::fence_shared_products();
      dev::sync_block();  // the panel is there; all have multiplied the one before the last
      if (left > 0) {
        load_values(p, words_at(step + kAhead), values_at(step + kAhead), &wanted, lane);
        request_words(step + 2 * kAhead);
        request_x(step + kAhead);
        if (panels_of_row == 0) {
          next_tile();
          wanted.begin(p, first_row(ahead) + own_row);
        }
      }
      dev::commit_async();
      expand_words(words_at(step), values_at(step), of, &used, fragments);
      dev::wait_products<0>(c);
      dev::fence_products();
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        const uint64_t columns = dev::matrix_at(step % kPanels * Config::kTileBytes + 32 * s);
        multiply_group<Config::kType>(c, fragments[s], columns);
      }
      dev::commit_products();
      ++step;
      return ++panel < tile_end;
    };
    if (panel == begin) dev::allow_next();
#pragma unroll 1
    while (take(a[0]) && take(a[1])) {
    }
    dev::wait_products<0>(c);

    if (tile_end - tile_begin == p.col_panels && first_panel == tile_begin) {
#pragma unroll
      for (int i = 0; i < Config::kTiles; ++i) {
        write_sums<Config>(p, first_row(now), now.tokens * Config::kTokens + 8 * i, lane, c[i]);
      }
    } else if (p.parts > 1) {
      meet_cluster<Config>(p, now, thread, c);
    } else {
      meet_blocks<Config>(p, now, first_panel == begin, thread, c);
    }
    now.col = p.col_panels - 1;
    now.advance(p);
  }
}

}  // namespace tamis
