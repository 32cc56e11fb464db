// kv_select in double, straight from the formulas.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/elements.h"
#include "ops/kv_select/kv_select.h"

namespace tamis {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// Scores of one row q [d] of head (batch, g) with all units.
std::vector<double> scores(const KvUnits& u, int64_t batch, int64_t g, const std::vector<float>& q,
                           double scale) {
  const auto d = static_cast<int64_t>(q.size());
  const int64_t base = batch * u.batch_stride + g * u.head_stride;
  std::vector<double> out(static_cast<size_t>(u.units));
  if (u.kind == KvSummary::labels) {
    const int64_t r = u.labels.channels;
    std::vector<float> chosen, labels(static_cast<size_t>(u.units * r));
    for (int64_t c = 0; c < r; ++c) {
      chosen.push_back(q[static_cast<size_t>(u.channels[g * r + c])]);
    }
    std::vector<int8_t> bytes(chosen.size());
    const double step = round_to_bytes(chosen.data(), r, bytes.data());
    unpack_kv_labels(u.labels, static_cast<const uint8_t*>(u.data) + base, u.units, labels.data());
    for (int64_t t = 0; t < u.units; ++t) {
      double sum = 0;
      for (int64_t c = 0; c < r; ++c) {
        sum +=
            step * bytes[static_cast<size_t>(c)] * double{labels[static_cast<size_t>(t * r + c)]};
      }
      out[static_cast<size_t>(t)] = scale * sum;
    }
    return out;
  }
  for (int64_t t = 0; t < u.units; ++t) {
    const int64_t at = base + t * u.unit_stride;
    double sum = 0;
    for (int64_t c = 0; c < d; ++c) {
      const double x = q[static_cast<size_t>(c)];
      if (u.kind == KvSummary::bounds) {
        sum += std::max(x * load_element(u.dtype, u.data, at + c),
                        x * load_element(u.dtype, u.data, at + d + c));
      } else {
        sum += x * load_element(u.dtype, u.data, at + c);
      }
    }
    out[static_cast<size_t>(t)] = scale * sum;
  }
  return out;
}

std::vector<float> row(DType type, const void* q, int64_t i, int64_t d) {
  std::vector<float> out(static_cast<size_t>(d));
  for (int64_t c = 0; c < d; ++c) {
    out[static_cast<size_t>(c)] = load_element(type, q, i * d + c);
  }
  return out;
}

double log_sum(const std::vector<double>& s, int64_t begin, int64_t end) {
  double most = kNever, sum = 0;
  for (int64_t t = begin; t < end; ++t) most = std::max(most, s[static_cast<size_t>(t)]);
  for (int64_t t = begin; t < end; ++t) sum += std::exp(s[static_cast<size_t>(t)] - most);
  return most + std::log(sum);
}

int64_t first_of(const int32_t* begin, int64_t head, int64_t units) {
  return begin ? std::clamp<int64_t>(begin[head], 0, units) : 0;
}

}  // namespace

Status kv_estimate_reference(const KvEstimateArgs& a, double* out) {
  TAMIS_RETURN_IF_ERROR(check_kv_estimate(a));
  const int64_t n = a.units.units;
  std::fill_n(out, a.batch * a.kv_heads * n, kNever);
  for (int64_t head = 0; head < a.batch * a.kv_heads; ++head) {
    const int64_t begin = first_of(a.begin, head, n);
    for (int64_t r = 0; r < a.rows; ++r) {
      const auto s = scores(a.units, head / a.kv_heads, head % a.kv_heads,
                            row(a.q_dtype, a.q, head * a.rows + r, a.head_dim), a.scale);
      const double shift = a.reduce == KvReduce::log_weight ? log_sum(s, begin, n) : 0.0;
      for (int64_t t = begin; t < n; ++t) {
        out[head * n + t] = std::max(out[head * n + t], s[static_cast<size_t>(t)] - shift);
      }
    }
  }
  return {};
}

Status kv_mass_reference(const KvMassArgs& a, double* out) {
  TAMIS_RETURN_IF_ERROR(check_kv_mass(a));
  const int64_t n = a.keys.units;
  std::fill_n(out, a.batch * a.kv_heads * n, 0.0);
  for (int64_t head = 0; head < a.batch * a.kv_heads; ++head) {
    const int64_t begin = first_of(a.begin, head, n);
    for (int64_t r = 0; r < a.heads * a.queries; ++r) {
      const int64_t i = r % a.queries;
      const int64_t end = (a.positions ? a.positions[i] : n - a.queries + i) + 1;
      if (begin >= end) continue;
      const auto s =
          scores(a.keys, head / a.kv_heads, head % a.kv_heads,
                 row(a.q_dtype, a.q, head * a.heads * a.queries + r, a.head_dim), a.scale);
      const double shift = log_sum(s, begin, end);
      for (int64_t t = begin; t < end; ++t) {
        out[head * n + t] +=
            std::exp(s[static_cast<size_t>(t)] - shift) / static_cast<double>(a.heads);
      }
    }
  }
  return {};
}

Status kv_select_reference(const KvSelectArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_select(a));
  for (int64_t head = 0; head < a.heads; ++head) {
    const float* s = a.scores + head * a.units;
    const int64_t begin = first_of(a.begin, head, a.units), all = a.units - begin;
    const int64_t sink = std::min(a.sink, all), recent = std::min(a.recent, all - sink);
    const auto forced = [&](int64_t u) { return u < begin + sink || u >= a.units - recent; };
    const auto value = [&](int64_t u) { return std::isnan(s[u]) ? kNever : double{s[u]}; };
    std::vector<int64_t> order;
    for (int64_t u = begin; u < a.units; ++u) order.push_back(u);
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
      if (forced(x) != forced(y)) return forced(x);
      return !forced(x) && value(x) > value(y);
    });
    double total = 0, sum = 0;
    for (const int64_t u : order) total += std::max(value(u), 0.0);
    std::vector<int64_t> chosen;
    for (const int64_t u : order) {
      const auto count = static_cast<int64_t>(chosen.size());
      const bool more =
          a.top_p > 0 ? sum < a.top_p * total : count < (a.budget ? a.budget[head] : a.k);
      if (!more && count >= sink + recent) break;
      chosen.push_back(u);
      sum += std::max(value(u), 0.0);
    }
    std::sort(chosen.begin(), chosen.end());
    int64_t at = head * a.index_stride;
    for (const int64_t u : chosen) {
      for (int64_t j = 0; j < a.page; ++j) a.index[at++] = static_cast<int32_t>(u * a.page + j);
    }
    a.count[head] = static_cast<int32_t>(static_cast<int64_t>(chosen.size()) * a.page);
  }
  return {};
}

Status kv_summarize_reference(const KvSummarizeArgs& a, double* out, double* alike) {
  TAMIS_RETURN_IF_ERROR(check_kv_summarize(a));
  const int64_t d = a.head_dim, width = kv_summary_width(a.kind, d);
  for (int64_t i = 0; i < a.batch * a.kv_heads * a.pages; ++i) {
    const int64_t head = i / a.pages;
    const int64_t from = head / a.kv_heads * a.key_batch_stride +
                         head % a.kv_heads * a.key_head_stride +
                         i % a.pages * a.page * a.key_token_stride;
    const auto key = [&](int64_t t, int64_t c) -> double {
      return load_element(a.dtype, a.keys, from + t * a.key_token_stride + c);
    };
    std::vector<double> mean(static_cast<size_t>(d));
    double size = 0;
    for (int64_t c = 0; c < d; ++c) {
      double low = key(0, c), high = low, sum = 0;
      for (int64_t t = 0; t < a.page; ++t) {
        low = std::min(low, key(t, c));
        high = std::max(high, key(t, c));
        sum += key(t, c);
      }
      mean[static_cast<size_t>(c)] = sum / static_cast<double>(a.page);
      size += sum / static_cast<double>(a.page) * sum / static_cast<double>(a.page);
      out[i * width + c] = a.kind == KvSummary::bounds ? low : mean[static_cast<size_t>(c)];
      if (a.kind == KvSummary::bounds) out[i * width + d + c] = high;
    }
    if (a.kind == KvSummary::bounds) continue;
    alike[i] = 1;
    for (int64_t t = 0; t < a.page; ++t) {
      double dot = 0, norm = 0;
      for (int64_t c = 0; c < d; ++c) {
        dot += key(t, c) * mean[static_cast<size_t>(c)];
        norm += key(t, c) * key(t, c);
      }
      const double lengths = std::max(std::sqrt(norm), 1e-8) * std::max(std::sqrt(size), 1e-8);
      alike[i] = std::min(alike[i], dot / lengths);
    }
  }
  return {};
}

}  // namespace tamis
