// What the attention kernels get, and the memory they and the host agree on.
#pragma once

#include <cstdint>

#include "base/cuda/device.h"
#include "ops/sparse_attention/attention_cuda.h"

namespace tamis {

inline constexpr int32_t kAttentionWarps = 8;  // of a block, at most
inline constexpr int32_t kRowsPerTile = 8;     // query rows of a block: the n of the tensor core
inline constexpr int32_t kMaxStages = 8;

// Shared memory of a block: the flag of the last block, mbarriers, then the rings, over which lies
// what warps add up, then room for the other block's part where two meet as a cluster.
inline constexpr int32_t kAttentionFlagAt = 0;
inline constexpr int32_t kAttentionMeetAt = 8;  // the mbarrier of that part
inline constexpr int32_t kAttentionBarriersAt = 16;
inline constexpr int32_t kAttentionRingAt = kAttentionBarriersAt + 8 * kAttentionWarps * kMaxStages;
static_assert(kAttentionRingAt % 16 == 0, "rings are copied in 16 bytes");

// Units that a warp has on their way, warps of a block, and blocks an SM: of pages in 4 bits eight
// warps an SM read faster than sixteen, and leave half as many parts to add up
// (bench/results/gpu.md).
constexpr int page_stages(int bits, int tokens) {
  return bits == 2 && tokens == 32 ? 4 : 2;
}
constexpr int page_warps(int bits) {
  return bits == 4 ? 8 : 4;
}
constexpr int page_blocks(int bits) {
  return bits == 4 ? 1 : 3;
}
// Threads that share an SM's registers: beside a block of pages there is room for one of rows,
// where launches overlap.
constexpr int page_bound(int bits, bool overlap) {
  return bits == 4 && overlap ? 384 : 32 * page_warps(bits);
}
inline constexpr int kRowStages = 2, kRowBlocks = 3, kRowWarps = 4;

// Bytes of shared memory that a warp's tile of a tail takes: keys and values of 16 tokens.
constexpr int64_t tail_shared(int64_t head_dim) {
  return int64_t{2 * 16 * 2} * head_dim;
}

// Floats that one block leaves: weighted values, largest scores and sums of 8 rows.
constexpr int64_t attention_partial(int64_t head_dim) {
  return (head_dim + 2) * kRowsPerTile;
}

// x / by is x * attention_divisor(by) >> kAttentionShift while x * by < 2^kAttentionShift: as many
// tickets as there are allow no more (a division costs the start of every block 100 instructions).
inline constexpr int kAttentionShift = 31;
constexpr uint32_t attention_divisor(int64_t by) {
  const int64_t one = int64_t{1} << kAttentionShift;
  return by < 1 ? 0 : static_cast<uint32_t>((one + by - 1) / by);
}
static_assert(kWorkspaceTickets * kWorkspaceTickets <= int64_t{1} << kAttentionShift);

// Dense tokens that the blocks of a page segment read as well, a tile of 16 a warp at most; strides
// in bytes. shared_at: where tiles lie in shared memory.
struct AttentionTail {
  const uint8_t *keys = nullptr, *values = nullptr;
  int64_t key_batch = 0, key_head = 0, key_token = 0;
  int64_t value_batch = 0, value_head = 0, value_token = 0;
  const int32_t *begin = nullptr, *end = nullptr;
  int32_t tokens = 0, shared_at = 0;
};

struct AttentionCudaParams {
  // The segment; strides in bytes.
  const uint8_t* keys;
  const uint8_t* values;
  int64_t key_batch, key_head, key_token;
  int64_t value_batch, value_head, value_token;
  const int32_t *index, *count, *begin, *end;
  const float* bias;
  int32_t index_stride;
  int32_t units;   // in memory
  int32_t listed;  // at most so many are read
  int32_t tokens;
  // The queries.
  const void* q;
  void* out;
  float* lse;
  DType q_dtype;
  int32_t kv_heads, rows, row_tiles;
  uint32_t per_row_tiles, per_kv_heads;  // what divides by them; see attention_divisor
  float scale, softcap, per_softcap;     // 1 / softcap: a division here costs every block 2 us
  // The layout.
  int32_t splits, first_split, all_splits;
  bool last;     // of the launches: whoever arrives last adds up all parts
  bool cluster;  // the two blocks of a head are one: the second sends its part to the first
  uint32_t* tickets;
  float* partial;  // [heads * row_tiles, all_splits, attention_partial]
  AttentionTail tail = {};
};

// Launches one row's kernel for a segment and `heads` batches and KV heads on a stream.
using AttentionCudaKernel = Status (*)(const AttentionCudaParams&, const AttentionPlan&,
                                       int32_t heads, const CudaDevice&, void* stream);

// Params of a launch as planned.
AttentionCudaParams attention_params(const SparseAttentionCudaArgs& args, const AttentionPlan& plan,
                                     int32_t all_splits);

// Pure: the plan of each launch, that of the segment with most tiles last. A segment that another
// launch reads has no splits.
Status plan_attention(const SparseAttentionArgs& args, const CudaDevice& device,
                      std::span<AttentionPlan> plans, int32_t* all_splits);

inline constexpr int64_t kMaxSegments = 8;
inline constexpr int64_t kMaxSplits = 64;  // of a segment: shared memory holds two numbers of each

}  // namespace tamis
