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
    dev::fence_device();
    dev::sync_block();
  };
  const auto one = [] {
    dev::sync_block();
    if (dev::thread_index() == 0) dev::fence_device();
  };
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
