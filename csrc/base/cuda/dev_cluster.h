// Copies of boxes of matrices, into clusters, and clusters' barriers (sm_90): a part of dev.h,
// which includes it. Sets of blocks have a bit for each block of the cluster.
#pragma once

#include <cstdint>

#include "base/cuda/tensor_map.h"

namespace tamis::dev {

// barrier_init for more than one arrival a phase.
TAMIS_DEVICE void barrier_init(uint32_t at, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals)
               : "memory");
}
// One arrival at a barrier of any block of the cluster, where cluster_address found it: what this
// thread read before may be overwritten. Nothing that it wrote is seen by then; to say so (release
// at the cluster's scope) would flush all writes of the device, 0.5 us an arrival.
TAMIS_DEVICE void barrier_arrive(uint32_t address) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
#endif
}
// sync_cluster without that flush: for meetings that nobody's writes are read after, or behind
// sync_block, by when what a block wrote to its own shared memory lies there for all.
TAMIS_DEVICE void sync_cluster_unordered() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::
                   : "memory");
#endif
}

// The box whose first element that is, to this block or to the same place of several, reporting to
// the same barrier of each.
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
TAMIS_DEVICE void copy_box_to(uint32_t blocks, uint32_t to, const TensorMap& map, int32_t col,
                              int32_t row, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(col), "r"(row), "r"(shared_address(barrier)),
      "h"(static_cast<uint16_t>(blocks))
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
TAMIS_DEVICE void copy_records_to(uint32_t blocks, uint32_t to, const TensorMap& map, int32_t col,
                                  int32_t row, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(to)),
      "l"(&map), "r"(0), "r"(col), "r"(row), "r"(shared_address(barrier)),
      "h"(static_cast<uint16_t>(blocks))
      : "memory");
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
