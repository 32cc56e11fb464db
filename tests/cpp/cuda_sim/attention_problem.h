// One problem of sparse_attention on the simulator: its memory, the launches of its plan, and what
// is wrong with the answer by the double reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "cuda_sim/data.h"
#include "cuda_sim/devices.h"
#include "format/matrix.h"
#include "guarded.h"
#include "normal.h"
#include "ops/kv_quantize/kv_quantize.h"
#include "ops/sparse_attention/attend.cuh"
#include "ops/sparse_attention/attend_pages.cuh"
#include "ops/sparse_attention/attend_rows.cuh"

namespace tamis::test {

// One line of kernels_cuda.def on the simulator, with or without bulk copies.
struct SimulatedRow {
  std::string name;
  KvStorage storage;
  int bits, d, unit, group;
  int32_t shared_bytes, threads;
  std::string (*run)(const sim::Launch&, const AttentionCudaParams&);
};

template <class Config, bool kBulk>
std::string simulate(const sim::Launch& launch, const AttentionCudaParams& p) {
  return sim::launch(launch, [&] {
    if constexpr (Config::kTail) {
      if (p.tail.tokens > 0) return attend<Config, kBulk, true>(p);
    }
    attend<Config, kBulk>(p);
  });
}

struct AttentionProblem {
  int64_t batch = 1, kv_heads = 2, rows = 4, units = 3;  // units: pages, or 16 tokens
  DType q_dtype = DType::bf16;
  bool listed = false, spans = false, bias = false;
  float softcap = 0, amplitude = 1;
  int segments = 1;
  bool mixed = false;       // the second segment is dense, as q, which is not of f32
  int32_t tail_units = -1;  // of that segment
  int32_t splits = 1;
  bool cluster = false;  // the splits of a head
  uint64_t seed = 1;
};

inline std::string label(const AttentionProblem& p) {
  return "b " + std::to_string(p.batch) + ", g " + std::to_string(p.kv_heads) + ", rows " +
         std::to_string(p.rows) + ", units " + std::to_string(p.units) + ", lists " +
         std::to_string(p.listed) + ", spans " + std::to_string(p.spans) + ", bias " +
         std::to_string(p.bias) + ", segments " + std::to_string(p.segments) + ", splits " +
         std::to_string(p.splits) + ", seed " + std::to_string(p.seed);
}

// Memory of one segment.
struct SegmentMemory {
  Chunks keys, values;
  std::vector<int32_t> index, count, begin, end;
  std::vector<float> bias;
  KvSegment view;
};

class AttentionCase {
 public:
  AttentionCase(const SimulatedRow& row, const AttentionProblem& p)
      : row_(row), p_(p), random_(p.seed) {
    const auto size = static_cast<size_t>(p.batch * p.kv_heads * p.rows * row.d);
    q_ = std::make_unique<Guarded<float>>(size);
    out_ = std::make_unique<Guarded<float>>(size);
    lse_ = std::make_unique<Guarded<float>>(static_cast<size_t>(p.batch * p.kv_heads * p.rows));
    for (size_t i = 0; i < size; ++i) put(p.q_dtype, q_->data(), static_cast<int64_t>(i), number());
    for (int s = 0; s < p.segments; ++s) {
      const bool dense = p.mixed && s == 1;
      const KvStorage as_q = p.q_dtype == DType::f16 ? KvStorage::f16 : KvStorage::bf16;
      segments_.push_back(make_segment(dense && p.tail_units >= 0 ? p.tail_units : p.units + 2 * s,
                                       dense ? as_q : row.storage));
    }
    for (const SegmentMemory& m : segments_) views_.push_back(m.view);
  }

  // What is wrong with the answer; empty if nothing.
  std::string run(uint64_t seed, const sim::Faults& faults = {}) {
    SparseAttentionCudaArgs args{.attention = arguments()};
    AttentionPlan plans[kMaxSegments];
    int32_t all_splits = 0;
    const Status status = plan_attention(args.attention, kH100, plans, &all_splits);
    if (!status.ok()) return status.text;
    all_splits = 0;
    for (size_t i = 0; i < views_.size(); ++i) {
      if (plans[i].splits == 0) continue;  // another launch reads that segment
      plans[i].splits = p_.splits;
      plans[i].first_split = all_splits;
      all_splits += p_.splits;
      plans[i].cluster = p_.cluster;
      const AttentionCudaRow& row = *choose_attention_cuda(views_[i], row_.d);
      if (views_[i].storage == row_.storage && row.shared_bytes != row_.shared_bytes) {
        return "the list has other shared bytes";
      }
    }
    const int64_t heads = p_.batch * p_.kv_heads * ceil_div(p_.rows, 8);
    std::vector<float> workspace(
        static_cast<size_t>(kWorkspaceTicketBytes / 4 +
                            heads * all_splits * attention_partial(row_.d)),
        std::nanf(""));
    std::fill_n(workspace.begin(), kWorkspaceTicketBytes / 4, 0.0f);
    args.workspace = workspace.data();
    std::fill(out_->span().begin(), out_->span().end(), std::nanf(""));
    std::fill(lse_->span().begin(), lse_->span().end(), std::nanf(""));
    for (size_t i = 0; i < views_.size(); ++i) {
      if (plans[i].splits == 0) continue;
      const KvSegment& view = views_[static_cast<size_t>(plans[i].segment)];
      const bool own = view.storage == row_.storage;
      const AttentionCudaRow& row = *choose_attention_cuda(view, row_.d);
      if (plans[i].shared_bytes < row.shared_bytes) return "less shared memory than a block needs";
      const sim::Launch launch{
          .grid = {static_cast<uint32_t>(plans[i].splits), static_cast<uint32_t>(heads)},
          .block = {static_cast<uint32_t>(own ? row_.threads : 32 * kRowWarps)},
          .shared_bytes = plans[i].tail >= 0 ? static_cast<size_t>(plans[i].shared_bytes)
                                             : static_cast<size_t>(row.shared_bytes) +
                                                   (p_.cluster ? 4 * attention_partial(row_.d) : 0),
          .seed = seed,
          .faults = faults,
          .cluster = p_.cluster ? static_cast<uint32_t>(plans[i].splits) : 1};
      const bool f16 = p_.q_dtype == DType::f16;
      const auto kernel = own            ? row_.run
                          : row_.d == 64 ? (f16 ? &simulate<RowConfig<DType::f16, 64>, false>
                                                : &simulate<RowConfig<DType::bf16, 64>, false>)
                          : f16          ? &simulate<RowConfig<DType::f16, 128>, false>
                                         : &simulate<RowConfig<DType::bf16, 128>, false>;
      const std::string wrong = kernel(launch, attention_params(args, plans[i], all_splits));
      if (!wrong.empty()) return wrong;
    }
    for (int64_t i = 0; i < heads; ++i) {
      if (reinterpret_cast<uint32_t*>(workspace.data())[i] != 0) return "a ticket is not zero";
    }
    return compare();
  }
  // Lists in ascending order whose first `hidden` entries lie before `begin`; or without those.
  void hide(int32_t hidden, bool named) {
    for (size_t i = 0; i < segments_.size(); ++i) {
      SegmentMemory& m = segments_[i];
      const auto width = static_cast<int32_t>(m.view.index_stride);
      for (size_t h = 0; h < m.count.size(); ++h) {
        const auto list = m.index.begin() + static_cast<int64_t>(h) * width;
        std::sort(list, list + width);
        m.count[h] = named ? width : width - hidden;
        m.begin.push_back(list[hidden]);
        if (!named) std::rotate(list, list + hidden, list + width);
      }
      if (named) views_[i].begin = m.begin.data();
    }
  }
  std::vector<float> out() const { return {out_->data(), out_->data() + out_->size()}; }

 private:
  float number() { return p_.amplitude * normal(random_); }

  SparseAttentionArgs arguments() {
    return {.q_dtype = p_.q_dtype,
            .batch = p_.batch,
            .kv_heads = p_.kv_heads,
            .rows = p_.rows,
            .head_dim = row_.d,
            .q = q_->data(),
            .out = out_->data(),
            .lse = lse_->data(),
            .scale = 1.0f / std::sqrt(static_cast<float>(row_.d)),
            .softcap = p_.softcap,
            .segments = views_};
  }

  SegmentMemory make_segment(int64_t units, KvStorage storage) {
    SegmentMemory m;
    const bool pages = storage == KvStorage::pages;
    const int64_t heads = p_.batch * p_.kv_heads, d = row_.d;
    const int64_t tokens = pages ? row_.unit * units : 16 * units - 5;  // rows: not whole tiles
    std::vector<float> keys(static_cast<size_t>(heads * tokens * d)), values(keys.size());
    for (float& x : keys) x = number();
    for (float& x : values) x = number();
    if (pages) {
      const KvPageLayout layout{.head_dim = row_.d,
                                .tokens = row_.unit,
                                .key_bits = row_.bits,
                                .value_bits = row_.bits,
                                .group = row_.group};
      m.keys = memory(heads * units * layout.bytes());
      const Status status = kv_quantize_reference({.layout = layout,
                                                   .dtype = DType::f32,
                                                   .heads = heads,
                                                   .pages = units,
                                                   .keys = keys.data(),
                                                   .values = values.data(),
                                                   .key_head_stride = tokens * d,
                                                   .key_token_stride = d,
                                                   .value_head_stride = tokens * d,
                                                   .value_token_stride = d,
                                                   .out = m.keys->data(),
                                                   .out_stride_bytes = units * layout.bytes()});
      if (!status.ok()) throw std::runtime_error(status.text);
      m.view = {.storage = KvStorage::pages,
                .layout = layout,
                .tokens = tokens,
                .keys = m.keys->data(),
                .key_batch_stride = p_.kv_heads * units * layout.bytes(),
                .key_head_stride = units * layout.bytes()};
    } else {
      const DType dtype = storage == KvStorage::bf16 ? DType::bf16 : DType::f16;
      const int64_t stride = d + 8;
      const int64_t length = heads * tokens * stride;
      m.keys = memory(2 * length);
      m.values = memory(2 * length);
      auto* k = reinterpret_cast<uint16_t*>(m.keys->data());
      auto* v = reinterpret_cast<uint16_t*>(m.values->data());
      std::fill_n(k, length, uint16_t{0x7fff});
      std::fill_n(v, length, uint16_t{0x7fff});
      for (int64_t t = 0; t < heads * tokens; ++t) {
        for (int64_t c = 0; c < d; ++c) {
          k[t * stride + c] = narrowed(keys[static_cast<size_t>(t * d + c)], dtype);
          v[t * stride + c] = narrowed(values[static_cast<size_t>(t * d + c)], dtype);
        }
      }
      m.view = {.storage = storage,
                .tokens = tokens,
                .keys = k,
                .values = v,
                .key_batch_stride = p_.kv_heads * tokens * stride,
                .key_head_stride = tokens * stride,
                .key_token_stride = stride,
                .value_batch_stride = p_.kv_heads * tokens * stride,
                .value_head_stride = tokens * stride,
                .value_token_stride = stride};
    }
    for (const float v : values) largest_ = std::max(largest_, std::fabs(v));
    add_lists(pages ? units : tokens, tokens, heads, &m);
    return m;
  }

  void add_lists(int64_t units, int64_t tokens, int64_t heads, SegmentMemory* m) {
    if (p_.listed) {
      const int64_t width = units / 2 + 1;
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<int32_t> order;
        for (int32_t u = 0; u < units; ++u) order.push_back(u);
        std::shuffle(order.begin(), order.end(), random_);
        m->index.insert(m->index.end(), order.begin(), order.begin() + width);
        m->count.push_back(h == 1 ? 0 : static_cast<int32_t>(random_() % (width + 1)));
      }
      m->view.index = m->index.data();
      m->view.index_stride = width;
      m->view.count = m->count.data();
    }
    if (p_.spans) {
      for (int64_t h = 0; h < heads; ++h) {
        m->begin.push_back(static_cast<int32_t>(random_() % (tokens / 2)));
        m->end.push_back(static_cast<int32_t>(tokens / 2 + random_() % (tokens / 2)));
      }
      m->view.begin = m->begin.data();
      m->view.end = m->end.data();
    }
    if (p_.bias) {
      for (int64_t i = 0; i < heads * tokens; ++i) m->bias.push_back(number());
      m->view.bias = m->bias.data();
    }
  }

  std::string compare() {
    const auto count = static_cast<int64_t>(q_->size());
    std::vector<double> wanted(q_->size()), lse(lse_->size());
    const Status status = sparse_attention_reference(arguments(), wanted.data(), lse.data());
    if (!status.ok()) return status.text;
    const bool rough = row_.storage == KvStorage::bf16 || p_.mixed;
    const double eps = rough ? 0x1p-7 : 0x1p-8;
    // An error of scores, which grow with both factors, is a relative error of weights. Half as
    // much is exceeded by one draw in 200 of 2-bit pages at amplitude 4, of 32 tokens or 64 (1400
    // draws with the kernel's roundings written out in double, by 1.7 times at most).
    const double scores = std::max<double>(1.0, p_.amplitude * p_.amplitude);
    for (int64_t i = 0; i < count; ++i) {
      const double got = p_.q_dtype == DType::f32
                             ? out_->data()[i]
                             : widened(reinterpret_cast<uint16_t*>(out_->data())[i], p_.q_dtype);
      const double want = wanted[static_cast<size_t>(i)];
      const double rounding = p_.q_dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
      if (!(std::fabs(got - want) <= rounding * std::fabs(want) + eps * largest_ / 4 * scores)) {
        return "out[" + std::to_string(i) + "] = " + std::to_string(got) + ", wanted " +
               std::to_string(want);
      }
    }
    for (size_t i = 0; i < lse.size(); ++i) {
      const double got = (*lse_)[i];
      const bool none = std::isinf(lse[i]) && got == lse[i];
      if (!none && !(std::fabs(got - lse[i]) <= 1e-2 * p_.amplitude * p_.amplitude)) {
        return "lse[" + std::to_string(i) + "] = " + std::to_string(got) + ", wanted " +
               std::to_string(lse[i]);
      }
    }
    return {};
  }

  SimulatedRow row_;
  AttentionProblem p_;
  std::mt19937_64 random_;
  std::unique_ptr<Guarded<float>> q_, out_, lse_;
  std::vector<SegmentMemory> segments_;
  std::vector<KvSegment> views_;
  float largest_ = 0;
};

}  // namespace tamis::test
