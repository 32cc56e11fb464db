// A product asks for no memory: once a thread holds what the largest call so far needed for its
// copy of x, every kernel runs without operator new, on one thread and on two. So do decoder
// layers.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include "base/parallel.h"
#include "ops/decoder/decoder.h"
#include "ops/spmm/spmm.h"
#include "packing.h"

namespace {
std::atomic<int64_t> allocations{0};

void* count_and_allocate(std::size_t size, std::size_t alignment) noexcept {
  ++allocations;
  void* p = nullptr;
  return posix_memalign(&p, alignment < sizeof(void*) ? sizeof(void*) : alignment, size) ? nullptr
                                                                                         : p;
}
void* or_throw(void* p) {
  if (!p) throw std::bad_alloc();
  return p;
}
}  // namespace

// The array and nothrow forms of the library call these.
void* operator new(std::size_t size) {
  return or_throw(count_and_allocate(size, sizeof(void*)));
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return or_throw(count_and_allocate(size, static_cast<std::size_t>(alignment)));
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace tamis::test {
namespace {

PackSpec spec_of(const SpmmRow& row) {
  PackSpec spec{.format = row.format, .dtype = row.w_dtype};
  if (row.format == Format::nm) spec.keep = 2, spec.of = 4;
  if (row.format == Format::block) spec.block_rows = spec.block_cols = 16;
  if (row.format == Format::groupq) spec.group_size = 16;
  return spec;
}

TEST(Spmm, AllocatesNothing) {
  constexpr int64_t kRows = 80, kCols = 128, kMost = 40;
  const std::vector<float> x(kMost * kCols, 0.5f);
  std::vector<float> y(kMost * kRows);
  std::mt19937_64 random(3);
  for (const SpmmRow& row : spmm_kernels()) {
    if ((row.isa & active_isa()) != row.isa) continue;
    const PackSpec spec = spec_of(row);
    const DType source = is_float(spec.dtype) ? spec.dtype : DType::f32;
    const Weights w = make_weights(random, {kRows, kCols}, source, spec, Keep::half, true);
    Packed packed;
    const Status s = pack_guarded(w.view, spec, &packed);
    if (!s.ok()) continue;  // random bits may span more than an f16 scale can
    if (spec.group_size == 0) packed.view.group_size = kCols;
    for (const int threads : {1, 2}) {
      set_num_threads(threads);
      const auto run = [&](int64_t m) {
        return spmm_with(row, {.w = packed.view,
                               .x_dtype = row.x_dtype,
                               .m = m,
                               .x = x.data(),
                               .x_stride = kCols,
                               .y = y.data(),
                               .y_stride = kRows});
      };
      ASSERT_TRUE(run(kMost).ok()) << row.name;
      const int64_t before = allocations;
      for (const int64_t m : {3, 40}) ASSERT_TRUE(run(m).ok()) << row.name;
      EXPECT_EQ(allocations, before) << row.name << " on " << threads << " thread(s)";
    }
  }
  set_num_threads(0);
  EXPECT_GT(allocations, 0);  // packing was counted
}

// Short caches, whose heads are shared out, and long ones, which attention splits itself.
TEST(Decoder, AllocatesNothing) {
  constexpr int64_t kHidden = 64, kInner = 144, kHeads = 4, kKvHeads = 2, kDim = 16, kMost = 3;
  constexpr int64_t kRoom = 700;
  std::mt19937_64 random(5);
  for (const PackSpec& spec : {PackSpec{.format = Format::bitmap, .dtype = DType::f32},
                               PackSpec{.format = Format::bitmap, .dtype = DType::i8},
                               PackSpec{.format = Format::csr8, .dtype = DType::f32}}) {
    const int64_t shapes[7][2] = {{kHeads * kDim, kHidden},   {kKvHeads * kDim, kHidden},
                                  {kKvHeads * kDim, kHidden}, {kHidden, kHeads * kDim},
                                  {kInner, kHidden},          {kInner, kHidden},
                                  {kHidden, kInner}};
    std::vector<Packed> packed(7);
    for (size_t i = 0; i < packed.size(); ++i) {
      const Weights w =
          make_weights(random, {shapes[i][0], shapes[i][1]}, DType::f32, spec, Keep::half, true);
      ASSERT_TRUE(pack_guarded(w.view, spec, &packed[i]).ok());
      packed[i].view.group_size = shapes[i][1];
    }
    const std::vector<float> ones(kMost * kInner, 1.0f);
    const DecoderNorm norm{.weight = ones.data(), .eps = 1e-5f};
    const std::vector<DecoderLayer> layers(2, {.before = norm,
                                               .after = norm,
                                               .q = {.w = packed[0].view},
                                               .k = {.w = packed[1].view},
                                               .v = {.w = packed[2].view},
                                               .o = {.w = packed[3].view},
                                               .gate = {.w = packed[4].view},
                                               .up = {.w = packed[5].view},
                                               .down = {.w = packed[6].view}});
    std::vector<float> past(static_cast<size_t>(4 * kMost * kKvHeads * kRoom * kDim), 0.5f);
    std::vector<DecoderCache> caches;
    for (int64_t i = 0, each = kMost * kKvHeads * kRoom * kDim; i < 2; ++i) {
      caches.push_back({.keys = &past[static_cast<size_t>(2 * i * each)],
                        .values = &past[static_cast<size_t>((2 * i + 1) * each)],
                        .room = kRoom});
    }
    std::vector<float> y(kMost * kHidden);
    DecoderArgs args{.dtype = DType::f32,
                     .m = kMost,
                     .head_dim = kDim,
                     .x = ones.data(),
                     .cos = ones.data(),
                     .sin = ones.data(),
                     .layers = layers,
                     .caches = caches,
                     .last = norm,
                     .y = y.data()};
    std::vector<float> workspace(static_cast<size_t>(decoder_workspace(args)));
    args.workspace = workspace.data();
    for (const int threads : {1, 2}) {
      set_num_threads(threads);
      const auto run = [&](int64_t m, int64_t tokens) {
        args.m = m;
        args.tokens = tokens;
        return decoder(args);
      };
      for (const int64_t tokens : {9, 600}) ASSERT_TRUE(run(kMost, tokens).ok());
      const int64_t before = allocations;
      for (const int64_t m : {1, 3}) {
        for (const int64_t tokens : {9, 600}) ASSERT_TRUE(run(m, tokens).ok());
      }
      EXPECT_EQ(allocations, before) << name_of(spec.format) << ' ' << name_of(spec.dtype) << " on "
                                     << threads << " thread(s)";
    }
  }
  set_num_threads(0);
}

}  // namespace
}  // namespace tamis::test
