// The CUDA intrinsics that kernels use, and all they use: thin wrappers, the only inline PTX. Under
// nvcc they are instructions; with TAMIS_CUDA_SIM they run on the simulator of tests/cpp/cuda_sim.
//
// A kernel written over them is plain C++: collectives (sync_*, prefix_step, mma_*) in uniform
// control flow with all 32 lanes, shared memory by byte offset into the block's dynamic shared
// memory, 16-bit floats as their bits.
#pragma once

#include <cstdint>

#if defined(TAMIS_CUDA_SIM)
#include "cuda_sim/device.h"
#else

#define TAMIS_GLOBAL __global__
#define TAMIS_DEVICE __device__ __forceinline__
#define TAMIS_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)

namespace tamis::dev {

struct alignas(16) Word4 {  // loaded and stored whole
  uint32_t x, y, z, w;
};

TAMIS_DEVICE uint32_t thread_index() {
  return threadIdx.x;
}
TAMIS_DEVICE uint32_t block_index_x() {
  return blockIdx.x;
}
TAMIS_DEVICE uint32_t block_index_y() {
  return blockIdx.y;
}

TAMIS_DEVICE void sync_warp() {
  __syncwarp();
}
TAMIS_DEVICE void sync_block() {
  __syncthreads();
}
// Orders this thread's writes to global memory before its later ones, for every block.
TAMIS_DEVICE void fence_device() {
  __threadfence();
}

// ---- programmatic dependent launch (sm_90; nothing before): a kernel launched so may begin while
// the one before it still runs.

// Until every kernel before this one has ended and its writes are seen.
TAMIS_DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel begin once every block has called this or ended.
TAMIS_DEVICE void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- shared memory

extern __shared__ __align__(128) uint8_t dynamic_shared[];

template <class T>
TAMIS_DEVICE T load_shared(uint32_t at) {
  return *reinterpret_cast<const T*>(dynamic_shared + at);
}
template <class T>
TAMIS_DEVICE void store_shared(uint32_t at, T value) {
  *reinterpret_cast<T*>(dynamic_shared + at) = value;
}
TAMIS_DEVICE uint32_t shared_address(uint32_t at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared)) + at;
}

// ---- cp.async: 16 bytes per thread, of which `valid` are read and the others become zero

TAMIS_DEVICE void copy_async16(uint32_t to, const void* from, uint32_t valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid)
               : "memory");
}
TAMIS_DEVICE void commit_async() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kGroupsLeft of this thread's newest groups are on their way.
template <int kGroupsLeft>
TAMIS_DEVICE void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// ---- bulk copy by one thread, reporting to an mbarrier (sm_90; nothing is emitted unless used)

TAMIS_DEVICE void barrier_init(uint32_t at) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(at)) : "memory");
}
// Between barrier_init and the first copy that reports to it.
TAMIS_DEVICE void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// The one arrival of a phase, which ends once `bytes` have landed.
TAMIS_DEVICE void barrier_expect(uint32_t at, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)),
               "r"(bytes)
               : "memory");
}
// Until the phase of this parity (0 for the first, 1, 0, ...) has ended.
TAMIS_DEVICE void barrier_wait(uint32_t at, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(at)),
      "r"(parity)
      : "memory");
}
// `bytes`, a multiple of 16, between addresses that are multiples of 16.
TAMIS_DEVICE void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// ---- global memory

template <class T>
TAMIS_DEVICE T load_global(const T* from) {
  return __ldg(from);
}
// What another block wrote before a fence.
template <class T>
TAMIS_DEVICE T load_volatile(const T* from) {
  return __ldcg(from);
}
TAMIS_DEVICE uint32_t atomic_add(uint32_t* to, uint32_t value) {
  return atomicAdd(to, value);
}

// ---- bits and lanes

TAMIS_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
// value + that of the lane `distance` below; lanes without one keep theirs. Steps 1, 2, 4, 8, 16
// make an inclusive prefix sum. The predicate of SHFL saves a comparison.
TAMIS_DEVICE uint32_t prefix_step(uint32_t value, int distance) {
  asm volatile(
      "{\n"
      ".reg .pred inside;\n"
      ".reg .u32 other;\n"
      "shfl.sync.up.b32 other|inside, %0, %1, 0, 0xffffffff;\n"
      "@inside add.u32 %0, %0, other;\n"
      "}"
      : "+r"(value)
      : "r"(distance));
  return value;
}

// ---- tensor cores: c += a * b for fragments of m16n8k16

TAMIS_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
TAMIS_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- 16-bit floats and f32, rounded to nearest even

TAMIS_DEVICE float bf16_to_f32(uint16_t h) {
  return __uint_as_float(uint32_t{h} << 16);
}
TAMIS_DEVICE float f16_to_f32(uint16_t h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
TAMIS_DEVICE uint16_t f32_to_bf16(float f) {
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
TAMIS_DEVICE uint16_t f32_to_f16(float f) {
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

}  // namespace tamis::dev
#endif
