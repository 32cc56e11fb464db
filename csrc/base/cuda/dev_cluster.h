// Copies of boxes of matrices and their barriers, registers of warpgroups (sm_90): a part of dev.h,
// which includes it.
#pragma once

#include <cstdint>

#include "base/cuda/tensor_map.h"

namespace tamis::dev {

// barrier_init for more than one arrival a phase.
TAMIS_DEVICE void barrier_init(uint32_t at, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals)
               : "memory");
}
// One arrival: what this thread read before may be overwritten.
TAMIS_DEVICE void barrier_arrive(uint32_t at) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(at)) : "memory");
#endif
}
// The phase also waits for `bytes` of copies; before an arrival of this thread.
TAMIS_DEVICE void barrier_expect_more(uint32_t at, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)),
               "r"(bytes)
               : "memory");
#endif
}
// One arrival once all of this thread's cp.async so far are there. Whoever waits and then
// multiplies what they brought comes through fence_shared_products in between.
TAMIS_DEVICE void barrier_arrive_copied(uint32_t at) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(at))
               : "memory");
#endif
}
// sync_block of kThreads threads, whole warps, at that barrier of the block's: 1 to 15, as
// sync_block is barrier 0. For warps that part from the others, which may not meet them at
// sync_block.
template <int kBarrier, int kThreads>
TAMIS_DEVICE void sync_warps() {
  static_assert(kBarrier > 0 && kBarrier < 16 && kThreads % 32 == 0, "a barrier of whole warps");
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}
// The same at a barrier that is known only then, and its arrival alone.
template <int kThreads>
TAMIS_DEVICE void sync_warps(uint32_t barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}
template <int kThreads>
TAMIS_DEVICE void arrive_warps(uint32_t barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}
// sync_cluster for meetings that nobody's writes are read after, or behind sync_block, by when what
// a block wrote to its own shared memory lies there for all. sync_cluster waits until all writes of
// the block are seen on the whole device, some 0.5 us. In halves: a thread that has arrived may go
// on until it needs the others to have arrived too; one meeting after the other, and no thread ends
// between the two. A warp that is not together arrives wrongly, so each half puts it together.
TAMIS_DEVICE void arrive_cluster_unordered() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
TAMIS_DEVICE void wait_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
TAMIS_DEVICE void sync_cluster_unordered() {
  arrive_cluster_unordered();
  wait_cluster();
}
// Writes to shared memory of that block of the cluster and reports the bytes to its barrier, whose
// waiting threads then see them: no meeting, no release. The block has made the barrier before a
// meeting (fence_barrier_init), and does not end before the bytes are there. An illegal
// instruction in a launch without clusters.
TAMIS_DEVICE void send_cluster(uint32_t block, uint32_t at, uint32_t value, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
          cluster_address(block, at)),
      "r"(value), "r"(cluster_address(block, barrier))
      : "memory");
#endif
}
TAMIS_DEVICE void send_cluster(uint32_t block, uint32_t at, const Word2& v, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%0], {%1,%2}, [%3];" ::
          "r"(cluster_address(block, at)),
      "r"(v.x), "r"(v.y), "r"(cluster_address(block, barrier))
      : "memory");
#endif
}
TAMIS_DEVICE void send_cluster(uint32_t block, uint32_t at, const Word4& v, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1,%2,%3,%4}, "
      "[%5];" ::"r"(cluster_address(block, at)),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(cluster_address(block, barrier))
      : "memory");
#endif
}

// The box whose first element that is.
TAMIS_DEVICE void copy_box(uint32_t to, const TensorMap& map, int32_t col, int32_t row,
                           uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(&map), "r"(col), "r"(row), "r"(shared_address(barrier))
      : "memory");
#endif
}
// The same of a head of a batch (HeadBoxes).
TAMIS_DEVICE void copy_head_box(uint32_t to, const TensorMap& map, int32_t col, int32_t row,
                                int32_t head, int32_t batch, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(col), "r"(row), "r"(head), "r"(batch), "r"(shared_address(barrier))
      : "memory");
#endif
}
// The same of records (RecordBoxes).
TAMIS_DEVICE void copy_records(uint32_t to, const TensorMap& map, int32_t col, int32_t row,
                               uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(to)),
      "l"(&map), "r"(0), "r"(col), "r"(row), "r"(shared_address(barrier))
      : "memory");
#endif
}
// The other way: what lies at `from` as copy_box leaves it to that box, but for what is beyond the
// matrix. Behind it, whoever wrote that has come through fence_shared_products and a barrier; until
// wait_boxes_read it is still read.
TAMIS_DEVICE void store_box(const TensorMap& map, int32_t col, int32_t row, uint32_t from) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n"
      "cp.async.bulk.commit_group;" ::"l"(&map),
      "r"(col), "r"(row), "r"(shared_address(from))
      : "memory");
#endif
}
// Until all of this thread's boxes have been read; before the block ends too.
TAMIS_DEVICE void wait_boxes_read() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}
// Soon to be used.
TAMIS_DEVICE void prefetch_map(const TensorMap& map) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

// Registers of a thread from here on, for all four warps of a group (sm_90a): more of what others
// of the block gave away, a multiple of 8.
template <int kRegisters>
TAMIS_DEVICE void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
TAMIS_DEVICE void keep_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// The inverse of load_matrices_transposed: lane 8j + r says where row r of matrix j goes.
TAMIS_DEVICE void store_matrices_transposed(uint32_t at, const Word4& from) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                   shared_address(at)),
               "r"(from.x), "r"(from.y), "r"(from.z), "r"(from.w)
               : "memory");
#endif
}

}  // namespace tamis::dev
