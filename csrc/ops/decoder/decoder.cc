// decoder: products by spmm, attention by sparse_attention, and the little between them. A layer is
// one parallel region, or two with attention's own between them where a cache is long: its seven
// products take 10 to 60 us each on two threads, a region of their own 1.3 of them.
#include "ops/decoder/decoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "base/numeric.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "ops/spmm/activate.h"
#include "ops/spmm/cost.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

struct F32 {
  using Bits = float;
  static float load(float v) { return v; }
  static float store(float v) { return v; }
};
struct F16 {
  using Bits = uint16_t;
  static float load(uint16_t v) { return f32_from_f16(v); }
  static uint16_t store(float v) { return f16_from_f32(v); }
};
struct BF16 {
  using Bits = uint16_t;
  static float load(uint16_t v) { return f32_from_bf16(v); }
  static uint16_t store(float v) { return bf16_from_f32(v); }
};

template <class Fn>
void with_type(DType dtype, const Fn& fn) {
  if (dtype == DType::f32) return fn(F32());
  if (dtype == DType::f16) return fn(F16());
  fn(BF16());
}

// Element `i` of an array of dtype.
void* at(void* p, DType dtype, int64_t i) {
  return static_cast<uint8_t*>(p) + i * size_of(dtype);
}
const void* at(const void* p, DType dtype, int64_t i) {
  return static_cast<const uint8_t*>(p) + i * size_of(dtype);
}

void normalize(DType dtype, int64_t m, int64_t n, const void* x, const DecoderNorm& norm,
               void* out) {
  with_type(dtype, [&]<class T>(T) {
    using Bits = typename T::Bits;
    const auto* weight = static_cast<const Bits*>(norm.weight);
    for (int64_t t = 0; t < m; ++t) {
      const auto* from = static_cast<const Bits*>(x) + t * n;
      auto* to = static_cast<Bits*>(out) + t * n;
      constexpr int kChains = 8;  // else each addition waits for the last
      float part[kChains] = {};
      int64_t i = 0;
      for (; i + kChains <= n; i += kChains) {
        for (int c = 0; c < kChains; ++c) {
          const float v = T::load(from[i + c]);
          part[c] += v * v;
        }
      }
      float sum = 0;
      for (; i < n; ++i) sum += T::load(from[i]) * T::load(from[i]);
      for (const float p : part) sum += p;
      const float factor = 1.0f / std::sqrt(sum / static_cast<float>(n) + norm.eps);
      for (i = 0; i < n; ++i) {
        const float v = T::load(T::store(T::load(from[i]) * factor));
        to[i] = T::store(T::load(weight[i]) * v);
      }
    }
  });
}

// A head of d in place.
void turn(DType dtype, int64_t d, const void* cosines, const void* sines, void* x) {
  with_type(dtype, [&]<class T>(T) {
    using Bits = typename T::Bits;
    const auto* cos = static_cast<const Bits*>(cosines);
    const auto* sin = static_cast<const Bits*>(sines);
    auto* to = static_cast<Bits*>(x);
    const auto product = [](Bits v, Bits by) {
      return T::load(T::store(T::load(v) * T::load(by)));
    };
    for (int64_t i = 0, half = d / 2; i < half; ++i) {
      const Bits low = to[i], high = to[i + half];
      to[i] = T::store(product(low, cos[i]) - product(high, sin[i]));
      to[i + half] = T::store(product(high, cos[i + half]) + product(low, sin[i + half]));
    }
  });
}

// y += x.
void add(DType dtype, int64_t n, const void* x, void* y) {
  with_type(dtype, [&]<class T>(T) {
    using Bits = typename T::Bits;
    const auto* from = static_cast<const Bits*>(x);
    auto* to = static_cast<Bits*>(y);
    for (int64_t i = 0; i < n; ++i) to[i] = T::store(T::load(from[i]) + T::load(to[i]));
  });
}

// Cached tokens up to which a KV head is one task of attention: a thread then takes whole heads.
constexpr int64_t kTokensAlone = 512;

int64_t lines(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

struct Product {
  const SpmmRow* row = nullptr;
  SpmmArgs args;
};

// One thread of a region, and its share of n things.
struct Member {
  int thread, threads;

  void wait() const { wait_for_all(threads); }
  int64_t from(int64_t n) const { return n * thread / threads; }
  int64_t to(int64_t n) const { return n * (thread + 1) / threads; }
};

// A call and where it keeps what threads hand to each other.
struct Call {
  const DecoderArgs& a;
  int64_t hidden, heads, kv_heads, inner;
  void *h, *sum;  // [m, hidden]: the residual stream, what is added to it next
  void *q, *k, *v, *attended;
  void *up, *gated;  // [m, inner]
  int threads = 1;
  std::atomic<bool> failed = false;  // a thread had no memory

  explicit Call(const DecoderArgs& args) : a(args) {
    const DecoderLayer& first = a.layers[0];
    hidden = first.q.w.cols;
    heads = first.q.w.rows / a.head_dim;
    kv_heads = first.k.w.rows / a.head_dim;
    inner = first.gate.w.rows;
    void* next = a.workspace;
    const auto take = [&](int64_t width) {
      void* here = next;
      next = at(next, a.dtype, a.m * width);
      return here;
    };
    h = take(hidden);
    sum = take(hidden);
    q = take(heads * a.head_dim);
    attended = take(heads * a.head_dim);
    k = take(kv_heads * a.head_dim);
    v = take(kv_heads * a.head_dim);
    up = take(inner);
    gated = take(inner);
  }

  Status find(const DecoderLinear& linear, const void* x, void* y, Product* out) const {
    out->args = {.w = linear.w,
                 .x_dtype = a.dtype,
                 .m = a.m,
                 .x = x,
                 .x_stride = linear.w.cols,
                 .bias = linear.bias,
                 .y = y,
                 .y_stride = linear.w.rows};
    return find_spmm(out->args, &out->row);
  }
};

// The products of a layer.
struct Products {
  Product q, k, v, o, up, gate, down;

  Status find(const Call& call, const DecoderLayer& l) {
    TAMIS_RETURN_IF_ERROR(call.find(l.q, call.h, call.q, &q));
    TAMIS_RETURN_IF_ERROR(call.find(l.k, call.h, call.k, &k));
    TAMIS_RETURN_IF_ERROR(call.find(l.v, call.h, call.v, &v));
    TAMIS_RETURN_IF_ERROR(call.find(l.o, call.attended, call.sum, &o));
    TAMIS_RETURN_IF_ERROR(call.find(l.up, call.h, call.up, &up));
    TAMIS_RETURN_IF_ERROR(call.find(l.gate, call.h, call.gated, &gate));
    return call.find(l.down, call.gated, call.sum, &down);
  }
};

// One thread's rows of products that share their x, normalized before if there is a norm. Norm and
// form of x are each thread's own: to share them would take a barrier, longer than they take.
void multiply(Call& call, Member member, const DecoderNorm* norm,
              std::initializer_list<const Product*> products) {
  const SpmmArgs& first = (*products.begin())->args;
  const int64_t normalized = norm ? lines(call.a.m * call.hidden * size_of(call.a.dtype)) : 0;
  int64_t most = 0;
  for (const Product* p : products) {
    if (p->row->x_form) most = std::max(most, p->row->x_form->bytes(p->args));
  }
  auto* memory = static_cast<uint8_t*>(scratch(normalized + most));
  if (!memory) {
    call.failed = true;
    return;
  }
  if (norm) normalize(call.a.dtype, call.a.m, call.hidden, first.x, *norm, memory);
  const Product* last = nullptr;  // whose form of x is in memory
  for (const Product* p : products) {
    SpmmArgs args = p->args;
    if (norm) args.x = memory;
    if (p->row->x_form) {
      args.prepared = memory + normalized;
      const bool same = last && last->row == p->row && last->args.w.group_size == args.w.group_size;
      if (!same) p->row->x_form->prepare(args, memory + normalized, 0, 1);
      last = p;
    }
    spmm_part(*p->row, args, spmm_rows(*p->row, args.w, member.thread, member.threads));
  }
}

// One thread's rows of h += x w^T, x w^T being in call.sum.
void add_product(Call& call, Member member, const Product& product) {
  multiply(call, member, nullptr, {&product});
  const SpmmRows rows = spmm_rows(*product.row, product.args.w, member.thread, member.threads);
  for (int64_t t = 0; t < call.a.m; ++t) {
    const int64_t first = t * call.hidden + rows.begin;
    add(call.a.dtype, rows.end - rows.begin, at(call.sum, call.a.dtype, first),
        at(call.h, call.a.dtype, first));
  }
}

// One thread's rows of silu(x Wg^T) * (x Wu^T), in place of x Wg^T.
void gate_rows(const Call& call, Member member, const Product& gate) {
  SpmmArgs args = gate.args;
  args.activation = Activation::silu;
  args.multiplier = call.up;
  args.multiplier_stride = call.inner;
  const SpmmRows rows = spmm_rows(*gate.row, args.w, member.thread, member.threads);
  if (rows.begin < rows.end) choose_activate(active_isa())(args, rows.begin, rows.end);
}

// Rotates what belongs to KV heads [begin, end) of all sequences, and appends to the cache.
void append(const Call& call, const DecoderCache& cache, int64_t begin, int64_t end) {
  const DecoderArgs& a = call.a;
  const int64_t d = a.head_dim, rows = call.heads / call.kv_heads;
  const auto bytes = static_cast<size_t>(d * size_of(a.dtype));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t position = a.positions == 1 ? 0 : i / call.kv_heads;
    const void* cos = at(a.cos, a.dtype, position * d);
    const void* sin = at(a.sin, a.dtype, position * d);
    for (int64_t r = 0; r < rows; ++r) {
      turn(a.dtype, d, cos, sin, at(call.q, a.dtype, (i * rows + r) * d));
    }
    turn(a.dtype, d, cos, sin, at(call.k, a.dtype, i * d));
    const int64_t place = (i * cache.room + a.tokens) * d;
    std::memcpy(at(cache.keys, a.dtype, place), at(call.k, a.dtype, i * d), bytes);
    std::memcpy(at(cache.values, a.dtype, place), at(call.v, a.dtype, i * d), bytes);
  }
}

// Attention of KV heads [begin, end), numbered through all sequences.
Status attend(const Call& call, const DecoderCache& cache, float scale, int64_t begin,
              int64_t end) {
  if (begin == end) return {};
  const DecoderArgs& a = call.a;
  const int64_t d = a.head_dim, rows = call.heads / call.kv_heads, each = cache.room * d;
  const KvSegment past{.storage = a.dtype == DType::f32   ? KvStorage::f32
                                  : a.dtype == DType::f16 ? KvStorage::f16
                                                          : KvStorage::bf16,
                       .tokens = a.tokens + 1,
                       .keys = at(cache.keys, a.dtype, begin * each),
                       .values = at(cache.values, a.dtype, begin * each),
                       .key_batch_stride = each,
                       .key_head_stride = each,
                       .key_token_stride = d,
                       .value_batch_stride = each,
                       .value_head_stride = each,
                       .value_token_stride = d};
  // Heads of several sequences lie one after another like those of one.
  return sparse_attention({.q_dtype = a.dtype,
                           .batch = 1,
                           .kv_heads = end - begin,
                           .rows = rows,
                           .head_dim = d,
                           .q = at(call.q, a.dtype, begin * rows * d),
                           .out = at(call.attended, a.dtype, begin * rows * d),
                           .scale = scale,
                           .segments = {&past, 1}});
}

Status run_layer(Call& call, const DecoderLayer& layer, const DecoderCache& cache) {
  const DecoderArgs& a = call.a;
  Products p;
  TAMIS_RETURN_IF_ERROR(p.find(call, layer));
  const int64_t heads = a.m * call.kv_heads;
  const auto before = [&](Member member) {
    multiply(call, member, &layer.before, {&p.q, &p.k, &p.v});
    member.wait();
    append(call, cache, member.from(heads), member.to(heads));
  };
  const auto after = [&](Member member) {
    add_product(call, member, p.o);
    member.wait();
    multiply(call, member, &layer.after, {&p.up, &p.gate});
    member.wait();  // rows of up and gate need not be split alike
    gate_rows(call, member, p.gate);
    member.wait();
    add_product(call, member, p.down);
  };
  if (a.tokens < kTokensAlone) {
    parallel(call.threads, [&](int thread, int threads) {
      const Member member{thread, threads};
      before(member);
      const int64_t from = member.from(heads), to = member.to(heads);
      if (!attend(call, cache, layer.scale, from, to).ok()) call.failed = true;
      member.wait();
      after(member);
    });
  } else {
    parallel(call.threads, [&](int thread, int threads) { before({thread, threads}); });
    TAMIS_RETURN_IF_ERROR(attend(call, cache, layer.scale, 0, heads));
    parallel(call.threads, [&](int thread, int threads) { after({thread, threads}); });
  }
  if (call.failed) return error(Code::out_of_memory, "decoder: no memory for a copy of x");
  return {};
}

// Refuses a weight of another shape than [rows, cols].
Status check_shape(const char* name, const DecoderLinear& linear, int64_t rows, int64_t cols) {
  if (linear.w.rows == rows && linear.w.cols == cols) return {};
  return error(Code::invalid_argument, "decoder: %s: got shape [%lld, %lld], wanted [%lld, %lld]",
               name, static_cast<long long>(linear.w.rows), static_cast<long long>(linear.w.cols),
               static_cast<long long>(rows), static_cast<long long>(cols));
}

Status check_layer(const DecoderArgs& a, const DecoderLayer& l) {
  const DecoderLayer& first = a.layers[0];
  const int64_t hidden = first.q.w.cols, inner = first.gate.w.rows;
  const int64_t width = first.q.w.rows, kv_width = first.k.w.rows;
  TAMIS_RETURN_IF_ERROR(check_shape("q", l.q, width, hidden));
  TAMIS_RETURN_IF_ERROR(check_shape("k", l.k, kv_width, hidden));
  TAMIS_RETURN_IF_ERROR(check_shape("v", l.v, kv_width, hidden));
  TAMIS_RETURN_IF_ERROR(check_shape("o", l.o, hidden, width));
  TAMIS_RETURN_IF_ERROR(check_shape("gate", l.gate, inner, hidden));
  TAMIS_RETURN_IF_ERROR(check_shape("up", l.up, inner, hidden));
  return check_shape("down", l.down, hidden, inner);
}

Status check(const DecoderArgs& a) {
  if (!is_float(a.dtype)) {
    return error(Code::unsupported_dtype, "decoder: dtype: got %s, wanted f32, f16 or bf16",
                 name_of(a.dtype));
  }
  if (a.m < 0 || a.tokens < 0 || a.head_dim < 2 || a.head_dim % 2 != 0) {
    return error(Code::invalid_argument,
                 "decoder: m, tokens, head_dim: got %lld, %lld and %lld, wanted at least 0 twice "
                 "and an even number",
                 static_cast<long long>(a.m), static_cast<long long>(a.tokens),
                 static_cast<long long>(a.head_dim));
  }
  if (a.layers.empty() || a.caches.size() != a.layers.size()) {
    return error(Code::invalid_argument,
                 "decoder: layers, caches: got %zu and %zu, wanted as many, at least 1",
                 a.layers.size(), a.caches.size());
  }
  if (a.positions != 1 && a.positions != a.m) {
    return error(Code::invalid_argument, "decoder: positions: got %lld, wanted 1 or %lld",
                 static_cast<long long>(a.positions), static_cast<long long>(a.m));
  }
  const int64_t width = a.layers[0].q.w.rows, kv_width = a.layers[0].k.w.rows;
  if (kv_width < 1 || kv_width % a.head_dim != 0 || width % kv_width != 0) {
    return error(Code::invalid_argument,
                 "decoder: q, k: got %lld and %lld rows, wanted heads of %lld that k's divide",
                 static_cast<long long>(width), static_cast<long long>(kv_width),
                 static_cast<long long>(a.head_dim));
  }
  for (const DecoderLayer& layer : a.layers) TAMIS_RETURN_IF_ERROR(check_layer(a, layer));
  for (const DecoderCache& cache : a.caches) {
    if (cache.room > a.tokens) continue;
    return error(Code::invalid_argument, "decoder: room: got %lld, wanted more than %lld tokens",
                 static_cast<long long>(cache.room), static_cast<long long>(a.tokens));
  }
  return {};
}

// As many as its largest product is worth.
int team_size(const DecoderArgs& a) {
  const DecoderLayer& l = a.layers[0];
  int most = 1;
  for (const DecoderLinear* linear : {&l.q, &l.gate, &l.down}) {
    const SpmmDesc desc = describe({.w = linear->w, .x_dtype = a.dtype, .m = a.m});
    const SpmmRow* row = choose_spmm(desc, active_isa());
    if (row) most = std::max(most, useful_threads(desc, *row, num_threads()));
  }
  return most;
}

}  // namespace

int64_t decoder_workspace(const DecoderArgs& a) {
  const DecoderLayer& l = a.layers[0];
  return a.m * 2 * (l.q.w.cols + l.q.w.rows + l.k.w.rows + l.gate.w.rows);
}

Status decoder(const DecoderArgs& a) {
  TAMIS_RETURN_IF_ERROR(check(a));
  if (a.m == 0) return {};
  Call call(a);
  call.threads = team_size(a);
  const auto bytes = static_cast<size_t>(a.m * call.hidden * size_of(a.dtype));
  std::memcpy(call.h, a.x, bytes);
  for (size_t i = 0; i < a.layers.size(); ++i) {
    TAMIS_RETURN_IF_ERROR(run_layer(call, a.layers[i], a.caches[i]));
  }
  if (a.last.weight) {
    normalize(a.dtype, a.m, call.hidden, call.h, a.last, a.y);
  } else {
    std::memcpy(a.y, call.h, bytes);
  }
  return {};
}

}  // namespace tamis
