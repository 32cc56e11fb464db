// kv_select proper: the k largest scores without sorting them. A sample brackets the k-th largest,
// one pass copies what lies between, halving the range of values finds it there by counting, a
// second pass lists what is above. What the bracket misses is searched for among all.
#include "ops/kv_select/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "base/parallel.h"
#include "base/scratch.h"
#include "ops/kv_select/share.h"

namespace tamis {
namespace {

constexpr int64_t kSample = 512;

// The k best of s[0 .. n) are those above `value` and the first `ties` equal to it.
struct Threshold {
  float value;
  int64_t ties;
};

// Floats but NaN in the order of integers, and back.
uint32_t key_of(float v) {
  const auto bits = std::bit_cast<uint32_t>(v);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
float value_of(uint32_t key) {
  return std::bit_cast<float>(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The k-th largest of x[0 .. n), 0 < k <= n, which lies in [low, high]; no NaN. Up to 32 counts,
// none of which branches on a number as nth_element does.
float largest_but(const KvReduceRow& reduce, const float* x, int64_t n, int64_t k,
                  float low = -INFINITY, float high = INFINITY) {
  uint32_t first = key_of(low), last = key_of(high);
  while (first < last) {
    const uint32_t middle = first + (last - first) / 2;
    if (reduce.count(x, n, value_of(middle)) < k) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  return value_of(last);
}

// The k-th largest of x[0 .. n), which lie in [low, high]; no NaN. `above`: how many lie above all
// of x.
Threshold nth(const KvReduceRow& reduce, const float* x, int64_t n, int64_t k, int64_t above,
              float low = -INFINITY, float high = INFINITY) {
  const float value = largest_but(reduce, x, n, k - above, low, high);
  return {value, k - above - reduce.count(x, n, value)};
}

// NaN as -inf.
const float* cleaned(const float* s, int64_t n, float* copy) {
  for (int64_t i = 0; i < n; ++i) copy[i] = std::isnan(s[i]) ? -INFINITY : s[i];
  return copy;
}

// 0 < k < n. *s may be replaced by a copy in `buffer`, which holds n.
Threshold find(const KvReduceRow& reduce, const float** s, int64_t n, int64_t k, float* buffer) {
  if (n >= 4 * kSample) {
    float sample[kSample];
    int64_t count = 0;
    for (int64_t i = 0; i < kSample; ++i) {
      const float v = (*s)[i * n / kSample];
      if (!std::isnan(v)) sample[count++] = v;
    }
    const double share = static_cast<double>(k) / static_cast<double>(n);
    const double spread = std::sqrt(kSample * share * (1 - share));
    const auto rank = static_cast<int64_t>(share * kSample);
    const auto margin = static_cast<int64_t>(3 * spread) + 3;
    if (count == kSample) {
      float high = INFINITY, low = -INFINITY;
      if (rank > margin) high = largest_but(reduce, sample, kSample, rank - margin + 1);
      if (rank + margin < kSample) {
        low = largest_but(reduce, sample, kSample, rank + margin + 1, -INFINITY, high);
      }
      int64_t above = 0;
      const int64_t inside = reduce.between(*s, n, low, high, buffer, &above);
      if (above < k && k <= above + inside) {
        return nth(reduce, buffer, inside, k, above, low, high);
      }
    }
  }
  *s = cleaned(*s, n, buffer);
  return nth(reduce, buffer, n, k, 0);
}

// The fewest of s[first .. first + n) that reach, with the others of s[begin .. units), which are
// taken anyway, the share top_p of all: how many. buffer holds n.
int64_t fewest(const float* s, int64_t begin, int64_t units, int64_t first, int64_t n, double top_p,
               float* buffer) {
  const int32_t room = share_room(units);
  int32_t largest = 1;
  const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
  for (int64_t i = begin; i < units; ++i) {
    if (has_share(bits(s[i]))) largest = std::max(largest, share_exponent(bits(s[i])));
  }
  uint64_t all = 0, sum = 0;
  for (int64_t i = begin; i < units; ++i) {
    const uint64_t share = share_of(bits(s[i]), largest, room);
    all += share;
    if (i < first || i >= first + n) sum += share;
  }
  const uint64_t wanted = share_wanted(top_p, all);
  cleaned(s + first, n, buffer);
  std::sort(buffer, buffer + n, std::greater<>());
  int64_t k = 0;
  while (k < n && sum < wanted) sum += share_of(bits(buffer[k++]), largest, room);
  return k;
}

}  // namespace

int64_t select_units(const KvSelectArgs& a, const KvReduceRow& reduce, int64_t head, const float* s,
                     float* buffer, int32_t* out) {
  const int64_t begin = a.begin ? std::clamp<int64_t>(a.begin[head], 0, a.units) : 0;
  const int64_t all = a.units - begin;
  const int64_t sink = std::min(a.sink, all), recent = std::min(a.recent, all - sink);
  const int64_t first = begin + sink, n = all - sink - recent;
  int64_t k;  // of the n between
  if (a.top_p > 0) {
    k = fewest(s, begin, a.units, first, n, a.top_p, buffer);
  } else {
    k = std::clamp<int64_t>((a.budget ? a.budget[head] : a.k) - sink - recent, 0, n);
  }
  int64_t count = 0;
  const auto list = [&](int64_t from, int64_t to) {
    for (; from < to; ++from) out[count++] = static_cast<int32_t>(from);
  };
  list(begin, first);
  if (k == n) {
    list(first, first + n);
  } else if (k > 0) {
    const float* middle = s + first;
    const Threshold t = find(reduce, &middle, n, k, buffer);
    count += reduce.above(middle, n, t.value, t.ties, static_cast<int32_t>(first), out + count);
  }
  list(first + n, a.units);
  return count;
}

void put_tokens(const KvSelectArgs& a, int64_t head, int64_t units) {
  int32_t* out = a.index + head * a.index_stride;
  for (int64_t i = units - 1; a.page > 1 && i >= 0; --i) {
    const int64_t token = out[i] * a.page;
    for (int64_t j = 0; j < a.page; ++j) out[i * a.page + j] = static_cast<int32_t>(token + j);
  }
  a.count[head] = static_cast<int32_t>(units * a.page);
}

Status kv_select(const KvSelectArgs& args) {
  return kv_select_on(active_isa(), args);
}

Status kv_select_on(IsaBits isa, const KvSelectArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_select(a));
  const KvReduceRow& reduce = choose_kv_reduce(isa);
  const int threads = static_cast<int>(std::clamp<int64_t>(
      a.heads * a.units >> 14, 1, std::min<int64_t>(num_threads(), std::max<int64_t>(a.heads, 1))));
  auto* memory =
      static_cast<float*>(scratch(threads * a.units * static_cast<int64_t>(sizeof(float))));
  if (!memory) return error(Code::out_of_memory, "kv_select: no memory for candidates");
  const auto run = [&](int thread, int count) {
    for (int64_t h = a.heads * thread / count; h < a.heads * (thread + 1) / count; ++h) {
      put_tokens(a, h,
                 select_units(a, reduce, h, a.scores + h * a.units, memory + thread * a.units,
                              a.index + h * a.index_stride));
    }
  };
  threads > 1 ? parallel(threads, run) : run(0, 1);
  return {};
}

}  // namespace tamis
