// kv_merge: similarities of a few dropped tokens to all kept ones at a time, by kv_select's kernels
// over rows scaled to length 1, then sums of what joined.
#include <algorithm>
#include <cmath>

#include "base/elements.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "ops/kv_edit/kv_edit.h"
#include "ops/kv_select/kv_select.h"

namespace tamis {
namespace {

// Keys or values of one head.
struct Rows {
  DType type;
  const void* data;
  int64_t start, token_stride, d;

  float at(int64_t token, int64_t c) const {
    return load_element(type, data, start + token * token_stride + c);
  }
  // Scaled to length 1; zeros stay.
  void unit(int64_t token, float* out) const {
    float sum = 0.0f;
    for (int64_t c = 0; c < d; ++c) {
      out[c] = at(token, c);
      sum += out[c] * out[c];
    }
    const float inverse = sum > 0.0f ? 1.0f / std::sqrt(sum) : 0.0f;
    for (int64_t c = 0; c < d; ++c) out[c] *= inverse;
  }
};

// What one head needs: unit rows of kept tokens and of kSelectRows dropped ones, their
// similarities, and sums.
struct Memory {
  float *kept[2], *dropped[2], *similarity[2];  // of keys and of values
  float *keys, *values, *weight, *members;      // sums over what joined
};

int64_t floats_of(const KvMergeArgs& a) {
  const int64_t kept = a.kept.stride, d = a.head_dim;
  return 2 * (kept * d + kSelectRows * d + kSelectRows * kept) + 2 * kept * d + 2 * kept;
}

Memory carve(const KvMergeArgs& a, float* from) {
  const int64_t kept = a.kept.stride, d = a.head_dim;
  Memory m{};
  const auto take = [&](int64_t n) {
    float* at = from;
    from += n;
    return at;
  };
  for (int i = 0; i < 2; ++i) {
    m.kept[i] = take(kept * d);
    m.dropped[i] = take(kSelectRows * d);
    m.similarity[i] = take(kSelectRows * kept);
  }
  m.keys = take(kept * d);
  m.values = take(kept * d);
  m.weight = take(kept);
  m.members = take(kept);
  return m;
}

// The kept token most like dropped row r, or -1.
int64_t nearest(const KvMergeArgs& a, const Memory& m, int64_t r, int64_t kept) {
  const float* k = m.similarity[0] + r * a.kept.stride;
  const float* v = m.similarity[1] + r * a.kept.stride;
  const bool both = a.similarity == KvSimilarity::keys_values;
  int64_t best = -1;
  float most = a.tau;
  for (int64_t i = 0; i < kept; ++i) {
    const float s = !both ? k[i] : k[i] > 0.0f && v[i] > 0.0f ? k[i] * v[i] : 0.0f;
    if (s > most) {
      most = s;
      best = i;
    }
  }
  return best;
}

void merge_head(const KvMergeArgs& a, const KvScoreRow& kernel, int64_t head, const Memory& m) {
  const int64_t d = a.head_dim, width = a.kept.stride;
  const int64_t kept = a.kept.count ? a.kept.count[head] : width;
  const int64_t dropped = a.dropped.count ? a.dropped.count[head] : a.dropped.stride;
  const int32_t* kept_tokens = a.kept.index + head * width;
  const int32_t* dropped_tokens = a.dropped.index + head * a.dropped.stride;
  const Rows rows[2] = {{a.dtype, a.keys, head * a.key_head_stride, a.key_token_stride, d},
                        {a.dtype, a.values, head * a.value_head_stride, a.value_token_stride, d}};
  const auto weight = [&](int64_t t) { return a.weight ? a.weight[head * a.tokens + t] : 1.0f; };
  const auto mass = [&](int64_t t) { return a.mass ? a.mass[head * a.tokens + t] : 1.0f; };
  const int kinds = a.similarity == KvSimilarity::keys_values ? 2 : 1;
  float* out_mass = a.out_mass + head * width;
  const auto add = [&](int64_t token, int64_t place) {
    const float w = weight(token);
    for (int64_t c = 0; c < d; ++c) m.keys[place * d + c] += w * rows[0].at(token, c);
    for (int64_t c = 0; c < d; ++c) m.values[place * d + c] += w * rows[1].at(token, c);
    m.weight[place] += w;
    m.members[place] += 1.0f;
    out_mass[place] += mass(token);
  };
  std::fill_n(m.keys, kept * d, 0.0f);
  std::fill_n(m.values, kept * d, 0.0f);
  std::fill_n(m.weight, kept, 0.0f);
  std::fill_n(m.members, kept, 0.0f);
  std::fill_n(out_mass, width, 0.0f);
  for (int64_t i = 0; i < kept; ++i) {
    for (int kind = 0; kind < kinds; ++kind) rows[kind].unit(kept_tokens[i], m.kept[kind] + i * d);
    add(kept_tokens[i], i);
  }
  for (int64_t first = 0; first < dropped; first += kSelectRows) {
    const int64_t n = std::min<int64_t>(kSelectRows, dropped - first);
    for (int kind = 0; kind < kinds && kept > 0; ++kind) {
      for (int64_t r = 0; r < n; ++r) {
        rows[kind].unit(dropped_tokens[first + r], m.dropped[kind] + r * d);
      }
      kernel.run({.x = m.kept[kind],
                  .unit_stride = d,
                  .width = d,
                  .q = m.dropped[kind],
                  .scale = 1.0f,
                  .q8 = nullptr,
                  .step = {},
                  .sum = {},
                  .labels = {},
                  .rows = n,
                  .begin = 0,
                  .end = kept,
                  .out = m.similarity[kind],
                  .out_stride = width});
    }
    for (int64_t r = 0; r < n; ++r) {
      const int64_t place = nearest(a, m, r, kept);
      if (place >= 0) add(dropped_tokens[first + r], place);
      if (a.joined) a.joined[head * a.dropped.stride + first + r] = static_cast<int32_t>(place);
    }
  }
  for (int64_t i = 0; i < kept; ++i) {
    // One token, or several of no weight at all: as it was.
    const bool alone = m.members[i] == 1.0f || !(m.weight[i] > 0.0f);
    const float inverse = alone ? 0.0f : 1.0f / m.weight[i];
    for (int64_t c = 0; c < d; ++c) {
      const int64_t at = (head * width + i) * d + c;
      const float v = alone ? rows[1].at(kept_tokens[i], c) : m.values[i * d + c] * inverse;
      store_element(a.dtype, v, a.out_values, at);
      if (!a.out_keys) continue;
      const float k = alone ? rows[0].at(kept_tokens[i], c) : m.keys[i * d + c] * inverse;
      store_element(a.dtype, k, a.out_keys, at);
    }
  }
}

}  // namespace

Status kv_merge(const KvMergeArgs& args) {
  return kv_merge_on(active_isa(), args);
}

Status kv_merge_on(IsaBits isa, const KvMergeArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_merge(a));
  if (a.heads == 0) return {};
  const KvScoreRow& kernel = *choose_kv_score(KvSummary::rows, DType::f32, DType::f32, isa);
  const int threads =
      static_cast<int>(std::clamp<int64_t>(num_threads(), 1, std::max<int64_t>(a.heads, 1)));
  const int64_t each = floats_of(a);
  auto* memory = static_cast<float*>(scratch(threads * each * static_cast<int64_t>(sizeof(float))));
  if (!memory) return error(Code::out_of_memory, "kv_merge: no memory for similarities");
  const auto run = [&](int thread, int count) {
    const Memory m = carve(a, memory + thread * each);
    for (int64_t h = a.heads * thread / count; h < a.heads * (thread + 1) / count; ++h) {
      merge_head(a, kernel, h, m);
    }
  };
  threads > 1 ? parallel(threads, run) : run(0, 1);
  return {};
}

}  // namespace tamis
