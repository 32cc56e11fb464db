// A kv_merge with everything round it: random tokens, ragged lists, guard pages, and what is wrong
// with an answer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "guarded.h"
#include "ops/kv_edit/kv_edit.h"

namespace tamis::test {

// Tokens [heads, tokens]: of each head a share of 1 in 3 is kept, the others dropped.
struct EditLists {
  std::vector<int32_t> kept, dropped, kept_count, dropped_count;

  EditLists(int64_t heads, int64_t tokens, std::mt19937* random)
      : kept(static_cast<size_t>(heads * tokens)), dropped(kept.size()) {
    for (int64_t h = 0; h < heads; ++h) {
      int32_t k = 0, d = 0;
      for (int32_t t = 0; t < tokens; ++t) {
        if ((*random)() % 3 == 0) {
          kept[static_cast<size_t>(h * tokens + k++)] = t;
        } else {
          dropped[static_cast<size_t>(h * tokens + d++)] = t;
        }
      }
      kept_count.push_back(k);
      dropped_count.push_back(d);
    }
  }
};

struct EditCase {
  DType dtype = DType::f32;
  int64_t heads = 3, tokens = 50, head_dim = 32;
  KvSimilarity similarity = KvSimilarity::keys_values;
  float tau = 0.05f;
  bool weights = true;
  bool merge_keys = true;
  int64_t kinds = 0;  // of tokens; 0: all differ
  int64_t gap = 0;    // elements between rows
};

inline std::string label(const EditCase& c) {
  return std::string(name_of(c.dtype)) + ", heads " + std::to_string(c.heads) + ", tokens " +
         std::to_string(c.tokens) + ", d " + std::to_string(c.head_dim) + ", tau " +
         std::to_string(c.tau) + ", weights " + std::to_string(c.weights) + ", values " +
         std::to_string(c.similarity == KvSimilarity::keys_values) + ", kinds " +
         std::to_string(c.kinds);
}

class EditProblem {
 public:
  KvMergeArgs args;

  EditProblem(const EditCase& c, uint32_t seed)
      : c_(c),
        random_(seed),
        lists_(c.heads, c.tokens, &random_),
        keys_(bytes()),
        values_(bytes()),
        out_keys_(bytes()),
        out_values_(bytes()),
        weight_(slots()),
        mass_(slots()),
        out_mass_(slots()),
        joined_(slots()) {
    const int64_t stride = c.head_dim + c.gap;
    fill(&keys_, stride);
    fill(&values_, stride);
    for (int64_t i = 0; i < c.head_dim; ++i) put(keys_.data(), i, 0.0f);
    for (size_t i = 0; i < slots(); ++i) {
      weight_[i] = static_cast<float>(random_() % 100) / 100.0f;
      mass_[i] = static_cast<float>(random_() % 5 + 1);
    }
    args = {.dtype = c.dtype,
            .heads = c.heads,
            .tokens = c.tokens,
            .head_dim = c.head_dim,
            .keys = keys_.data(),
            .values = values_.data(),
            .key_head_stride = c.tokens * stride,
            .key_token_stride = stride,
            .value_head_stride = c.tokens * stride,
            .value_token_stride = stride,
            .weight = c.weights ? weight_.data() : nullptr,
            .mass = c.weights ? mass_.data() : nullptr,
            .kept = {lists_.kept.data(), c.tokens, lists_.kept_count.data()},
            .dropped = {lists_.dropped.data(), c.tokens, lists_.dropped_count.data()},
            .similarity = c.similarity,
            .tau = c.tau,
            .out_keys = c.merge_keys ? out_keys_.data() : nullptr,
            .out_values = out_values_.data(),
            .out_mass = out_mass_.data(),
            .joined = joined_.data()};
    forget();
  }

  void forget() {
    std::fill_n(out_keys_.data(), out_keys_.size(), kUntouched);
    std::fill_n(out_values_.data(), out_values_.size(), kUntouched);
    std::fill_n(out_mass_.data(), out_mass_.size(), std::nanf(""));
    std::fill_n(joined_.data(), joined_.size(), -7);
  }

  // All that a call gives.
  std::vector<uint8_t> answer() const {
    std::vector<uint8_t> all(out_values_.data(), out_values_.data() + out_values_.size());
    all.insert(all.end(), out_keys_.data(), out_keys_.data() + out_keys_.size());
    const auto* joined = reinterpret_cast<const uint8_t*>(joined_.data());
    all.insert(all.end(), joined, joined + 4 * joined_.size());
    return all;
  }

  // What is wrong with the answer; empty if nothing. near: by how much similarities may err.
  std::string wrong(double near = 1e-5) const {
    const auto count = static_cast<size_t>(c_.heads * c_.tokens * c_.head_dim);
    std::vector<double> k(count), v(count), m(slots()), best(slots()), chosen(slots());
    const Status status =
        kv_merge_reference(args, k.data(), v.data(), m.data(), best.data(), chosen.data());
    if (!status.ok()) return status.text;
    for (int64_t h = 0; h < c_.heads; ++h) {
      const int32_t kept = lists_.kept_count[static_cast<size_t>(h)];
      const int64_t dropped = lists_.dropped_count[static_cast<size_t>(h)];
      for (int64_t i = 0; i < c_.tokens; ++i) {
        const auto at = static_cast<size_t>(h * c_.tokens + i);
        const std::string who = "joined[" + std::to_string(h) + ", " + std::to_string(i) + "] is " +
                                std::to_string(joined_[at]) + ", like " +
                                std::to_string(chosen[at]) + " of " + std::to_string(best[at]);
        if (i >= dropped) {
          if (joined_[at] != -7) return who;
        } else if (joined_[at] >= 0) {  // the nearest, and near enough
          if (!(std::fabs(chosen[at] - best[at]) <= near && best[at] > c_.tau - near)) return who;
        } else if (joined_[at] != -1 || (kept > 0 && !(best[at] < c_.tau + near))) {
          return who;
        }
      }
      for (int64_t i = 0; i < c_.tokens; ++i) {
        const std::string found = wrong_mean(h, i, k, v, m);
        if (!found.empty()) return found;
      }
    }
    return {};
  }

 private:
  static constexpr uint8_t kUntouched = 0x7b;

  size_t slots() const { return static_cast<size_t>(c_.heads * c_.tokens); }
  size_t bytes() const {
    return slots() * static_cast<size_t>((c_.head_dim + c_.gap) * size_of(c_.dtype));
  }
  void fill(Guarded<uint8_t>* x, int64_t stride) {
    std::normal_distribution<float> normal;
    for (int64_t t = 0; t < c_.heads * c_.tokens; ++t) {
      for (int64_t i = 0; i < stride; ++i) put(x->data(), t * stride + i, normal(random_));
      if (c_.kinds == 0 || t < c_.kinds) continue;
      const auto size = static_cast<size_t>(size_of(c_.dtype));  // as one of the first
      std::memcpy(x->data() + static_cast<size_t>(t * stride) * size,
                  x->data() + static_cast<size_t>(t % c_.kinds * stride) * size,
                  static_cast<size_t>(stride) * size);
    }
  }
  void put(uint8_t* data, int64_t i, float v) const {
    if (c_.dtype == DType::f32) {
      reinterpret_cast<float*>(data)[i] = v;
    } else {
      reinterpret_cast<uint16_t*>(data)[i] =
          c_.dtype == DType::f16 ? f16_from_f32(v) : bf16_from_f32(v);
    }
  }
  double get(const Guarded<uint8_t>& x, size_t i) const {
    if (c_.dtype == DType::f32) return reinterpret_cast<const float*>(x.data())[i];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(x.data())[i];
    return c_.dtype == DType::f16 ? f32_from_f16(bits) : f32_from_bf16(bits);
  }

  std::string wrong_mean(int64_t h, int64_t i, const std::vector<double>& k,
                         const std::vector<double>& v, const std::vector<double>& m) const {
    const double unit = c_.dtype == DType::f32 ? 0 : c_.dtype == DType::f16 ? 0x1p-10 : 0x1p-7;
    const auto at = static_cast<size_t>(h * c_.tokens + i);
    const std::string where = std::to_string(h) + ", " + std::to_string(i);
    const bool kept = i < lists_.kept_count[static_cast<size_t>(h)];
    if (out_mass_[at] != (kept ? m[at] : 0)) {
      return "mass[" + where + "] is " + std::to_string(out_mass_[at]) + ", wanted " +
             std::to_string(kept ? m[at] : 0);
    }
    const auto row = static_cast<size_t>(c_.head_dim * size_of(c_.dtype));
    for (const bool keys : {true, false}) {
      const Guarded<uint8_t>& out = keys ? out_keys_ : out_values_;
      const std::string name = (keys ? "keys[" : "values[") + where;
      if (!kept || (keys && !c_.merge_keys)) {
        for (size_t e = at * row; e < (at + 1) * row; ++e) {
          if (out[e] != kUntouched) return name + "] was written";
        }
        continue;
      }
      for (int64_t e = 0; e < c_.head_dim; ++e) {
        const size_t place = at * static_cast<size_t>(c_.head_dim) + static_cast<size_t>(e);
        const double got = get(out, place), wanted = (keys ? k : v)[place];
        if (!(std::fabs(got - wanted) <= 1e-5 + 4 * unit)) {
          return name + ", " + std::to_string(e) + "] is " + std::to_string(got) + ", wanted " +
                 std::to_string(wanted);
        }
      }
    }
    return {};
  }

  EditCase c_;
  std::mt19937 random_;
  EditLists lists_;
  Guarded<uint8_t> keys_, values_, out_keys_, out_values_;
  std::vector<float> weight_, mass_, out_mass_;
  std::vector<int32_t> joined_;
};

}  // namespace tamis::test
