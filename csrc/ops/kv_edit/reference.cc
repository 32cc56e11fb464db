// kv_merge in double, pair by pair.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/elements.h"
#include "ops/kv_edit/kv_edit.h"

namespace tamis {
namespace {

using Vector = std::vector<double>;

Vector row(DType type, const void* x, int64_t from, int64_t d) {
  Vector out;
  for (int64_t i = from; i < from + d; ++i) out.push_back(load_element(type, x, i));
  return out;
}

double cosine(const Vector& a, const Vector& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

}  // namespace

Status kv_merge_reference(const KvMergeArgs& a, double* out_keys, double* out_values,
                          double* out_mass, double* best, double* chosen) {
  TAMIS_RETURN_IF_ERROR(check_kv_merge(a));
  const int64_t d = a.head_dim, width = a.kept.stride;
  for (int64_t h = 0; h < a.heads; ++h) {
    const auto key = [&](int64_t t) {
      return row(a.dtype, a.keys, h * a.key_head_stride + t * a.key_token_stride, d);
    };
    const auto value = [&](int64_t t) {
      return row(a.dtype, a.values, h * a.value_head_stride + t * a.value_token_stride, d);
    };
    const int64_t kept = a.kept.count ? a.kept.count[h] : width;
    const int64_t dropped = a.dropped.count ? a.dropped.count[h] : a.dropped.stride;
    for (int64_t i = 0; i < width; ++i) out_mass[h * width + i] = 0;
    std::vector<std::vector<int64_t>> members(static_cast<size_t>(kept));
    for (int64_t i = 0; i < kept; ++i) {
      members[static_cast<size_t>(i)].push_back(a.kept.index[h * width + i]);
    }
    for (int64_t i = 0; i < dropped; ++i) {
      const int64_t at = h * a.dropped.stride + i, token = a.dropped.index[at];
      best[at] = chosen[at] = 0;
      for (int64_t j = 0; j < kept; ++j) {
        const int64_t other = a.kept.index[h * width + j];
        double s = cosine(key(token), key(other));
        if (a.similarity == KvSimilarity::keys_values) {
          const double v = cosine(value(token), value(other));
          s = s > 0 && v > 0 ? s * v : 0;
        }
        best[at] = j == 0 ? s : std::max(best[at], s);
        if (a.joined[at] == j) chosen[at] = s;
      }
      if (a.joined[at] >= 0) members[static_cast<size_t>(a.joined[at])].push_back(token);
    }
    for (int64_t i = 0; i < kept; ++i) {
      const auto& all = members[static_cast<size_t>(i)];
      Vector k(static_cast<size_t>(d)), v(k);
      double sum = 0;
      for (const int64_t t : all) sum += a.weight ? a.weight[h * a.tokens + t] : 1;
      for (size_t m = 0; m < all.size(); ++m) {
        const double given = a.weight ? a.weight[h * a.tokens + all[m]] : 1;
        const double w = sum > 0 ? given / sum : m == 0;
        const Vector mk = key(all[m]), mv = value(all[m]);
        for (size_t c = 0; c < k.size(); ++c) {
          k[c] += w * mk[c];
          v[c] += w * mv[c];
        }
        out_mass[h * width + i] += a.mass ? a.mass[h * a.tokens + all[m]] : 1;
      }
      std::copy(k.begin(), k.end(), out_keys + (h * width + i) * d);
      std::copy(v.begin(), v.end(), out_values + (h * width + i) * d);
    }
  }
  return {};
}

}  // namespace tamis
