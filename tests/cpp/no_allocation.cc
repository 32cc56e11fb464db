// A product asks for no memory: once a thread holds what the largest call so far needed for its
// copy of x, every kernel runs without operator new, on one thread and on two.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include "base/parallel.h"
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

}  // namespace
}  // namespace tamis::test
