// The simulator itself: collectives, copies and complaints, without a product around them.
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/cuda/dev.h"

namespace tamis::test {
namespace {

TEST(Engine, RunsEveryThreadOfEveryBlock) {
  std::vector<int> seen(3 * 2 * 96);
  EXPECT_EQ(
      sim::launch(
          {.grid = {3, 2}, .block = {96}},
          [&] {
            ++seen[(dev::block_index_y() * 3 + dev::block_index_x()) * 96 + dev::thread_index()];
          }),
      "");
  EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
}

TEST(Engine, PrefixStepsMakeAPrefixSum) {
  std::vector<uint32_t> sums(64);
  for (uint64_t seed = 1; seed < 20; ++seed) {
    EXPECT_EQ(sim::launch({.block = {64}, .seed = seed},
                          [&] {
                            uint32_t value = dev::thread_index() * dev::thread_index();
                            for (int d = 1; d < 32; d *= 2) value = dev::prefix_step(value, d);
                            sums[dev::thread_index()] = value;
                          }),
              "");
    for (uint32_t i = 0, sum = 0; i < 64; ++i) {
      sum = i % 32 == 0 ? i * i : sum + i * i;
      ASSERT_EQ(sums[i], sum) << i;
    }
  }
}

// The lane maps are written out once more here, from the PTX manual's tables for m16n8k16.
TEST(Engine, MmaMultipliesFragments) {
  std::mt19937 random(3);
  int a[16][16], b[16][8];
  for (auto& row : a) {
    for (int& v : row) v = static_cast<int>(random() % 9) - 4;
  }
  for (auto& row : b) {
    for (int& v : row) v = static_cast<int>(random() % 9) - 4;
  }
  const auto pair = [](int low, int high) {
    return uint32_t{bf16_from_f32(static_cast<float>(low))} |
           uint32_t{bf16_from_f32(static_cast<float>(high))} << 16;
  };
  float c[32][4];
  EXPECT_EQ(sim::launch({.block = {32}},
                        [&] {
                          const int lane = static_cast<int>(dev::thread_index());
                          const int g = lane / 4, t = lane % 4;
                          const uint32_t rows[4] = {pair(a[g][2 * t], a[g][2 * t + 1]),
                                                    pair(a[g + 8][2 * t], a[g + 8][2 * t + 1]),
                                                    pair(a[g][2 * t + 8], a[g][2 * t + 9]),
                                                    pair(a[g + 8][2 * t + 8], a[g + 8][2 * t + 9])};
                          for (int i = 0; i < 4; ++i) c[lane][i] = static_cast<float>(i);
                          dev::mma_bf16(c[lane], rows, pair(b[2 * t][g], b[2 * t + 1][g]),
                                        pair(b[2 * t + 8][g], b[2 * t + 9][g]));
                        }),
            "");
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      int sum = i;
      for (int k = 0; k < 16; ++k)
        sum += a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2];
      ASSERT_EQ(c[lane][i], static_cast<float>(sum)) << lane << ", " << i;
    }
  }
}

TEST(Engine, CopiesLandWhenWaitedFor) {
  alignas(16) const uint32_t source[4] = {1, 2, 3, 4};
  std::vector<uint32_t> early(1), late(1), zero(1);
  EXPECT_EQ(sim::launch({.block = {32}, .shared_bytes = 64},
                        [&] {
                          if (dev::thread_index() != 0) return;
                          dev::copy_async16(16, source, 8);
                          dev::commit_async();
                          early[0] = dev::load_shared<uint32_t>(20);
                          dev::wait_async<0>();
                          late[0] = dev::load_shared<uint32_t>(20);
                          zero[0] = dev::load_shared<uint32_t>(24);
                        }),
            "");
  EXPECT_EQ(early[0], 0xffffffffu);
  EXPECT_EQ(late[0], 2u);
  EXPECT_EQ(zero[0], 0u);
}

std::string complaint(const std::function<void()>& kernel) {
  return sim::launch({.block = {64}, .shared_bytes = 256}, kernel);
}

TEST(Engine, Complains) {
  alignas(16) static const uint8_t source[64] = {};
  EXPECT_EQ(complaint([] {
              if (dev::thread_index() < 32) dev::sync_block();
            }),
            "deadlock: 32 threads wait");
  EXPECT_EQ(complaint([] {
              if (dev::thread_index() % 2) dev::sync_warp();
            }),
            "deadlock: 32 threads wait");
  EXPECT_EQ(complaint([] { dev::load_shared<uint32_t>(256); }),
            "load: bytes 256 to 260 of 256 in shared memory");
  EXPECT_EQ(complaint([] { dev::store_shared<uint32_t>(2, 0); }),
            "store: misaligned shared memory");
  EXPECT_EQ(complaint([] { dev::copy_async16(0, source + 2, 16); }), "cp.async: misaligned source");
  EXPECT_EQ(complaint([] { dev::copy_async16(0, source, 16); }),
            "a thread ends with copies it never committed");
  EXPECT_EQ(complaint([] {
              dev::copy_async16(0, source, 16);
              dev::commit_async();
            }),
            "a thread ends with copies it never waited for");
  EXPECT_EQ(complaint([] { dev::barrier_wait(0, 0); }), "mbarrier: used before barrier_init");
  EXPECT_EQ(complaint([] {  // 16 bytes expected, none copied
              if (dev::thread_index() != 0) return;
              dev::barrier_init(0);
              dev::barrier_expect(0, 16);
              dev::barrier_wait(0, 0);
            }),
            "deadlock: 1 threads wait");
}

// What block 1 reads of what each thread of block 0 left.
std::vector<int> read_by_the_next(const std::function<void()>& order, sim::Faults faults = {}) {
  std::vector<int> left(64, -1), read(64, -1);
  uint32_t ticket = 0;
  EXPECT_EQ(sim::launch({.grid = {2}, .block = {64}, .faults = faults},
                        [&] {
                          const uint32_t thread = dev::thread_index();
                          if (dev::block_index_x() == 1) {
                            read[thread] = left[thread];
                            return;
                          }
                          dev::store_volatile(&left[thread], static_cast<int>(thread));
                          order();
                          if (thread == 0) dev::atomic_add(&ticket, 1);
                        }),
            "");
  for (int i = 0; i < 64; ++i) EXPECT_EQ(left[static_cast<size_t>(i)], i) << "after the launch";
  return read;
}

TEST(Engine, WritesReachOtherBlocksInOrder) {
  const std::vector<int> none(64, -1);
  std::vector<int> all(64), own(64, -1);
  for (int i = 0; i < 64; ++i) all[static_cast<size_t>(i)] = i;
  own[0] = 0;
  const auto each = [] {
    sim::fence_device();
    dev::sync_block();
  };
  const auto one = [] {
    dev::sync_block();
    if (dev::thread_index() == 0) sim::fence_device();
  };
  std::vector<int> first_warp = none;
  std::copy(all.begin(), all.begin() + 32, first_warp.begin());
  const auto warp = [] {
    sim::fence_device();
    dev::sync_warp();
  };
  const auto exchange = [] {
    sim::fence_device();
    dev::shuffle(0, 0);
  };
  EXPECT_EQ(read_by_the_next(warp), first_warp);
  EXPECT_EQ(read_by_the_next(warp, {.warp = 0}), own);
  EXPECT_EQ(read_by_the_next(exchange), own) << "which orders nothing in memory";
  EXPECT_EQ(read_by_the_next(each), all);
  EXPECT_EQ(read_by_the_next(one), all);
  EXPECT_EQ(read_by_the_next(each, {.fence = 0}), none);
  EXPECT_EQ(read_by_the_next(one, {.fence = 0}), none);
  EXPECT_EQ(read_by_the_next(each, {.barrier = 0}), own);
  EXPECT_EQ(read_by_the_next(one, {.barrier = 0}), own);
}

// Half of the warps meet each other while the others wait for all.
TEST(Engine, WarpsMeetApart) {
  std::vector<uint32_t> seen(128);
  const auto kernel = [&] {
    const uint32_t thread = dev::thread_index();
    if (thread < 64) {
      for (uint32_t turn = 0; turn < 3; ++turn) {
        dev::store_shared<uint32_t>(4 * thread, thread + turn);
        dev::sync_warps<1, 64>();
        seen[thread] = dev::load_shared<uint32_t>(4 * (thread ^ 32u));
        dev::sync_warps<1, 64>();
      }
    }
    dev::sync_block();
  };
  for (uint64_t seed = 1; seed < 20; ++seed) {
    EXPECT_EQ(sim::launch({.block = {128}, .shared_bytes = 256, .seed = seed}, kernel), "");
    for (uint32_t i = 0; i < 64; ++i) ASSERT_EQ(seen[i], (i ^ 32u) + 2) << i;
  }
  EXPECT_EQ(complaint([] { dev::sync_warps<1, 96>(); }), "deadlock: 64 threads wait");
  EXPECT_EQ(complaint([] {
              if (dev::thread_index() < 32) {
                dev::sync_warps<1, 64>();
              } else {
                dev::sync_warps<1, 96>();
              }
            }),
            "sync_warps: a barrier of other threads");
}

// One warp leaves a number and goes on; the other one waits for it.
TEST(Engine, WarpsArriveAndGoOn) {
  uint32_t seen = 0;
  const auto kernel = [&](bool arrives) {
    const uint32_t thread = dev::thread_index();
    if (thread < 32) {
      if (thread == 0) dev::store_shared<uint32_t>(0, 7);
      if (arrives) dev::arrive_warps<64>(2);
    } else {
      dev::sync_warps<64>(2);
      if (thread == 32) seen = dev::load_shared<uint32_t>(0);
    }
  };
  for (uint64_t seed = 1; seed < 20; ++seed) {
    EXPECT_EQ(sim::launch({.block = {64}, .shared_bytes = 4, .seed = seed}, [&] { kernel(true); }),
              "");
    ASSERT_EQ(seen, 7u);
  }
  EXPECT_EQ(complaint([&] { kernel(false); }), "deadlock: 32 threads wait");
}

// One warp says that something is there, then looks whether its place was free before; the other
// one frees it, at once or behind a barrier of those that looked. At once, a slow warp looks too
// late.
TEST(Engine, SlowWarpsMissPhases) {
  constexpr uint32_t kThere = 0, kFree = 8, kLooked = 16;
  const auto kernel = [](bool waits) {
    if (dev::thread_index() == 0) {
      dev::barrier_init(kThere, 32);
      dev::barrier_init(kFree, 1);
      dev::barrier_init(kLooked, 32);
    }
    dev::sync_block();
    if (dev::thread_index() < 32) {
      dev::barrier_arrive(kThere);
      dev::barrier_wait(kFree, 1);
      dev::barrier_arrive(kLooked);
    } else {
      dev::barrier_wait(kThere, 0);
      if (waits) dev::barrier_wait(kLooked, 0);
      if (dev::thread_index() == 32) dev::barrier_arrive(kFree);
    }
  };
  int missed = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const sim::Launch launch{.block = {64}, .shared_bytes = 24, .seed = seed};
    EXPECT_EQ(sim::launch(launch, [&] { kernel(true); }), "");
    missed += sim::launch(launch, [&] { kernel(false); }) == "deadlock: 32 threads wait" ? 1 : 0;
  }
  EXPECT_GT(missed, 0);
}

// A product of 64 x 64 over 16 from what a copy brought, by a barrier that counts it: rows of a and
// b, and then of the transposed b.
std::string multiply_copied(bool fence, std::vector<float>* product) {
  constexpr uint32_t kB = 8192, kBarrier = 16384;
  struct alignas(16) Row {
    uint16_t x[8];
  };
  static std::vector<Row> source(2 * 64 * 2 + 16 * 8);  // of a, of b and of b transposed
  const auto number = [](uint32_t row, uint32_t col) {
    return bf16_from_f32(static_cast<float>((row * 5 + col * 3) % 7) - 3);
  };
  for (uint32_t i = 0; i < 128 * 16; ++i) source[i / 8].x[i % 8] = number(i / 16, i % 16);
  for (uint32_t i = 0; i < 16 * 64; ++i) {
    source[256 + i / 8].x[i % 8] = number(64 + i % 64, i / 64);
  }
  product->assign(2 * 64 * 64, 0);
  return sim::launch({.block = {128}, .shared_bytes = kBarrier + 8}, [&] {
    const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
    if (thread == 0) dev::barrier_init(kBarrier, 128);
    dev::sync_block();
    for (uint32_t i = thread; i < 256; i += 128) {
      const uint32_t row = i / 2 % 64;
      dev::copy_async16(i / 128 * kB + 128 * row + 16 * (i % 2 ^ row % 8), &source[i], 16);
    }
    dev::barrier_arrive_copied(kBarrier);
    dev::barrier_wait(kBarrier, 0);
    if (fence) dev::fence_shared_products();
    float c[8][4], d[8][4] = {};
    dev::fence_products();
    dev::group_shared_bf16<false>(c, dev::matrix_at(0), dev::matrix_at(kB));
    dev::commit_products();
    dev::wait_older_products<0>(c);
    dev::sync_block();
    dev::copy_async16(kB + 128 * (thread / 8) + 16 * (thread % 8 ^ thread / 8 % 8),
                      &source[256 + thread], 16);
    dev::barrier_arrive_copied(kBarrier);
    dev::barrier_wait(kBarrier, 1);
    if (fence) dev::fence_shared_products();
    const uint32_t row = 16 * warp + lane % 16;
    const dev::Word4 a = dev::load_matrices(128 * row + 16 * (lane / 16 ^ row % 8));
    dev::fence_products();
    dev::group_rows_bf16(d, a, dev::matrix_of_rows(kB, 0));
    dev::commit_products();
    dev::wait_older_products<0>(d);
    for (uint32_t n = 0; n < 8; ++n) {
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t at =
            64 * (16 * warp + lane / 4 + i / 2 * 8) + 8 * n + 2 * (lane % 4) + i % 2;
        (*product)[at] = c[n][i];
        (*product)[64 * 64 + at] = d[n][i];
      }
    }
  });
}

TEST(Engine, GroupsMultiplyWhatCopiesBring) {
  std::vector<float> product;
  ASSERT_EQ(multiply_copied(true, &product), "");
  const auto number = [](int row, int col) { return (row * 5 + col * 3) % 7 - 3; };
  for (int row = 0; row < 64; ++row) {
    for (int col = 0; col < 64; ++col) {
      int wanted = 0;
      for (int k = 0; k < 16; ++k) wanted += number(row, k) * number(64 + col, k);
      ASSERT_EQ(product[static_cast<size_t>(64 * row + col)], static_cast<float>(wanted));
      ASSERT_EQ(product[static_cast<size_t>(4096 + 64 * row + col)], static_cast<float>(wanted));
    }
  }
  EXPECT_EQ(multiply_copied(false, &product), "product: no fence behind the wait for copies");
}

// Every thread sends a number to the other block of its cluster, which reads it behind its barrier.
TEST(Engine, BlocksSendToBarriers) {
  std::vector<uint32_t> seen(64);
  bool meets = true;
  const auto kernel = [&] {
    const uint32_t thread = dev::thread_index(), block = dev::block_index_x();
    if (thread == 0) {
      dev::barrier_init(0);
      dev::fence_barrier_init();
      dev::barrier_expect(0, 4 * 32);
    }
    if (meets) dev::arrive_cluster_unordered();
    dev::sync_block();
    if (meets) dev::wait_cluster();
    dev::send_cluster(1 - block, 16 + 4 * thread, 32 * block + thread, 0);
    dev::barrier_wait(0, 0);
    seen[32 * block + thread] = dev::load_shared<uint32_t>(16 + 4 * thread);
  };
  sim::Launch launch{.grid = {2}, .block = {32}, .shared_bytes = 144, .cluster = 2};
  for (launch.seed = 1; launch.seed < 20; ++launch.seed) {
    EXPECT_EQ(sim::launch(launch, kernel), "");
    for (uint32_t i = 0; i < 64; ++i) ASSERT_EQ(seen[i], i ^ 32u) << i;
  }
  launch.faults = {.send = 3};
  EXPECT_EQ(sim::launch(launch, kernel), "deadlock: 32 threads wait");
  launch.faults = {};
  meets = false;
  EXPECT_NE(sim::launch(launch, kernel), "");
}

TEST(Engine, SharedMemoryStartsAsNaN) {
  std::vector<uint32_t> seen(1);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(sim::launch({.block = {1}, .shared_bytes = 16},
                          [&] {
                            seen[0] = dev::load_shared<uint32_t>(0);
                            dev::store_shared<uint32_t>(0, 1);
                          }),
              "");
    EXPECT_EQ(seen[0], 0xffffffffu);
  }
}

}  // namespace
}  // namespace tamis::test
