// Prompts at random for kernels of prefill_attention on the simulator, and what is wrong with their
// answers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "cuda_sim/data.h"
#include "cuda_sim/sim.h"
#include "format/matrix.h"
#include "guarded.h"
#include "ops/prefill_attention/prefill_cuda.h"

namespace tamis::test {

struct alignas(16) Eight {
  uint16_t x[8];
};

struct PrefillProblem {
  int64_t batch = 1, heads = 2, kv_heads = 1, queries = 100, tokens = 100;
  bool causal = true;
  int64_t begin = 0;  // each batch's first token that counts lies below it
  bool spans = false, rows = false, columns = false;
  int64_t block = 0, pattern_heads = 1;
  float softcap = 0, amplitude = 1;
  bool packs = false;  // listed keys and values first, where that has a kernel
};

inline std::string label(const PrefillProblem& p) {
  return "b " + std::to_string(p.batch) + ", h " + std::to_string(p.heads) + ", n " +
         std::to_string(p.queries) + ", s " + std::to_string(p.tokens) + ", causal " +
         std::to_string(p.causal) + ", begin " + std::to_string(p.begin) + ", spans " +
         std::to_string(p.spans) + ", rows " + std::to_string(p.rows) + ", columns " +
         std::to_string(p.columns) + ", block " + std::to_string(p.block);
}

inline std::vector<int32_t> some_of(int64_t all, int64_t width, std::mt19937_64* random) {
  std::vector<int32_t> ids(static_cast<size_t>(all));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::shuffle(ids.begin(), ids.end(), *random);
  ids.resize(static_cast<size_t>(width));
  std::sort(ids.begin(), ids.end());
  return ids;
}

// Runs a call on the simulator; says what went wrong.
using PrefillRun = std::function<std::string(const PrefillArgs&)>;

// What is wrong with the answer; empty if nothing.
inline std::string attempt(const PrefillProblem& p, uint64_t seed, DType dtype, int64_t d,
                           const PrefillRun& run) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, p.amplitude);
  const auto filled = [&](int64_t count) {
    auto made = std::make_unique<Guarded<Eight>>(static_cast<size_t>(count / 8));
    auto* x = reinterpret_cast<uint16_t*>(made->data());
    for (int64_t i = 0; i < count; ++i) x[i] = narrowed(normal(random), dtype);
    return made;
  };
  const int64_t step = d + 8;  // between tokens
  const auto q = filled(p.batch * p.heads * p.queries * step);
  const auto k = filled(p.batch * p.kv_heads * p.tokens * step);
  const auto v = filled(p.batch * p.kv_heads * p.tokens * step);
  const int64_t all = p.batch * p.heads * p.queries;
  Guarded<uint32_t> out(static_cast<size_t>(all * d / 2));
  Guarded<float> lse(static_cast<size_t>(all));
  std::fill(out.span().begin(), out.span().end(), 0);
  std::fill(lse.span().begin(), lse.span().end(), -std::numeric_limits<float>::infinity());
  std::vector<int32_t> begin, sink, window, rows, row_count, columns, column_count, offsets, ids;
  for (int64_t b = 0; b < p.batch && p.begin > 0; ++b)
    begin.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(p.begin)));
  for (int64_t h = 0; h < p.pattern_heads; ++h) {
    sink.push_back(static_cast<int32_t>(random() % 20));
    window.push_back(static_cast<int32_t>(1 + random() % 60));
  }
  const int64_t row_width = p.queries / 2 + 1, column_width = p.tokens / 2 + 1;
  for (int64_t b = 0; b < p.batch; ++b) {
    const auto r = some_of(p.queries, row_width, &random);
    const auto c = some_of(p.tokens, column_width, &random);
    rows.insert(rows.end(), r.begin(), r.end());
    columns.insert(columns.end(), c.begin(), c.end());
    row_count.push_back(static_cast<int32_t>(row_width - b % 2));
    column_count.push_back(static_cast<int32_t>(column_width - b % 2 * 3));
  }
  int64_t width = 0;
  if (p.block > 0) {
    const int64_t blocks = ceil_div(p.tokens, p.block);
    width = blocks * blocks;
    ids.assign(static_cast<size_t>(p.pattern_heads * width), 0);
    for (int64_t h = 0; h < p.pattern_heads; ++h) {
      int32_t count = 0;
      offsets.push_back(0);
      for (int64_t row = 0; row < blocks; ++row) {
        for (int64_t c = 0; c < blocks; ++c) {
          if (random() % 3 == 0)
            ids[static_cast<size_t>(h * width + count++)] = static_cast<int32_t>(c);
        }
        offsets.push_back(count);
      }
    }
  }
  const auto view = [&](const std::unique_ptr<Guarded<Eight>>& x, int64_t heads, int64_t tokens) {
    return PrefillArray{x->data(), heads * tokens * step, tokens * step, step};
  };
  PrefillArgs args{.q_dtype = dtype,
                   .kv_dtype = dtype,
                   .batch = p.batch,
                   .heads = p.heads,
                   .kv_heads = p.kv_heads,
                   .queries = p.queries,
                   .tokens = p.tokens,
                   .head_dim = d,
                   .q = view(q, p.heads, p.queries),
                   .keys = view(k, p.kv_heads, p.tokens),
                   .values = view(v, p.kv_heads, p.tokens),
                   .out = out.data(),
                   .out_batch_stride = p.heads * p.queries * d,
                   .out_head_stride = p.queries * d,
                   .out_token_stride = d,
                   .lse = lse.data(),
                   .scale = 0.125f,
                   .softcap = p.softcap,
                   .causal = p.causal,
                   .first = p.tokens - p.queries,
                   .begin = p.begin > 0 ? begin.data() : nullptr,
                   .pattern_heads = p.pattern_heads,
                   .sink = p.spans ? sink.data() : nullptr,
                   .window = p.spans ? window.data() : nullptr};
  if (p.block > 0) args.blocks = {p.block, offsets.data(), ids.data(), width};
  if (p.rows) args.rows = {rows.data(), row_width, row_count.data()};
  if (p.columns) args.columns = {columns.data(), column_width, column_count.data()};
  if (const Status status = check_prefill_cuda(args); !status.ok()) return status.text;
  const std::string wrong = run(args);
  if (!wrong.empty()) return wrong;
  std::vector<double> wanted(static_cast<size_t>(all * d)), wanted_lse(static_cast<size_t>(all));
  const Status status = prefill_attention_reference(args, wanted.data(), wanted_lse.data());
  if (!status.ok()) return status.text;
  // Weights round to 16 bits, their sum does not; values are at most some amplitudes.
  const double unit = dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
  const auto* got = reinterpret_cast<const uint16_t*>(out.data());
  for (int64_t i = 0; i < all; ++i) {
    const double l = lse[static_cast<size_t>(i)], w = wanted_lse[static_cast<size_t>(i)];
    if (l != w && !(std::fabs(l - w) <= 1e-4 * (1 + std::fabs(w)))) {
      return "lse " + std::to_string(i) + ": got " + std::to_string(l) + ", wanted " +
             std::to_string(w);
    }
    for (int64_t c = 0; c < d; ++c) {
      const double want = wanted[static_cast<size_t>(i * d + c)];
      const double value = widened(got[i * d + c], dtype);
      if (!(std::fabs(value - want) <= unit * (std::fabs(want) + 4 * p.amplitude))) {
        return "row " + std::to_string(i) + ", channel " + std::to_string(c) + ": got " +
               std::to_string(value) + ", wanted " + std::to_string(want);
      }
    }
  }
  return {};
}

}  // namespace tamis::test
