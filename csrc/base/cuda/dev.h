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
#define TAMIS_GRID_CONSTANT __grid_constant__  // of a parameter whose address counts

namespace tamis::dev {

struct alignas(16) Word4 {  // loaded and stored whole
  uint32_t x, y, z, w;
};
struct alignas(8) Word2 {
  uint32_t x, y;
};

// Whether this machine code has bulk copies.
#if __CUDA_ARCH__ >= 900
inline constexpr bool kBulkCopies = true;
#else
inline constexpr bool kBulkCopies = false;
#endif

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

extern __shared__ __align__(1024) uint8_t dynamic_shared[];

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

// The same by an address that shared_address gave: sums of addresses then cost nothing more.
template <class T>
TAMIS_DEVICE T load_shared_at(uint32_t address) {
  static_assert(sizeof(T) <= 8, "2, 4 or 8 bytes");
  T value;
  if constexpr (sizeof(T) == 2) {
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address));
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
  } else {
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(address));
  }
  return value;
}

// The word at an address that shared_address gave, aligned to four bytes. Free to move: nothing but
// the values that it is made of and used for keeps it between two barriers.
TAMIS_DEVICE uint32_t load_shared_word(uint32_t address) {
  uint32_t word;
  asm("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}

// To such an address.
TAMIS_DEVICE void store_shared_word(uint32_t address, uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

TAMIS_DEVICE void store_shared_word(uint32_t address, const Word2& words) {
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(address), "r"(words.x), "r"(words.y)
               : "memory");
}

// Two bytes, kFurther bytes on, where `wanted` is not zero; else anything.
template <int kFurther>
TAMIS_DEVICE uint32_t load_shared_half_if(uint32_t wanted, uint32_t address) {
  asm volatile(  // to the register of the address, which needs no value then
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %1, 0;\n"
      "@wanted ld.shared.u16 %0, [%0+%2];\n}"
      : "+r"(address)
      : "r"(wanted), "n"(kFurther));
  return address;
}

// Four matrices of 8 rows of 16 bytes; lane 8j + r says where row r of matrix j lies. Lane 4g + t
// gets elements 2t and 2t + 1 of row g of each.
TAMIS_DEVICE Word4 load_matrices(uint32_t at) {
  Word4 out;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(shared_address(at))
               : "memory");
  return out;
}

// The same transposed: lane 4g + t gets elements g of rows 2t and 2t + 1 of each.
TAMIS_DEVICE Word4 load_matrices_transposed(uint32_t at) {
  Word4 out;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(shared_address(at))
               : "memory");
  return out;
}

// ---- cp.async: 16 bytes per thread, of which `valid` are read and the others become zero

TAMIS_DEVICE void copy_async16(uint32_t to, const void* from, uint32_t valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid)
               : "memory");
}
// All of 16 bytes where `wanted`, kFurther bytes on, or of 8: fewer instructions, no branches.
template <int kFurther>
TAMIS_DEVICE void copy_async16_if(bool wanted, uint32_t to, const void* from) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %2, 0;\n"
      "@wanted cp.async.cg.shared.global [%0+%3], [%1+%3], 16;\n}" ::"r"(shared_address(to)),
      "l"(from), "r"(static_cast<uint32_t>(wanted)), "n"(kFurther)
      : "memory");
}
TAMIS_DEVICE void copy_async8_if(bool wanted, uint32_t to, const void* from) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %2, 0;\n"
      "@wanted cp.async.ca.shared.global [%0], [%1], 8;\n}" ::"r"(shared_address(to)),
      "l"(from), "r"(static_cast<uint32_t>(wanted))
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
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// The one arrival of a phase, which ends once `bytes` have landed.
TAMIS_DEVICE void barrier_expect(uint32_t at, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)),
               "r"(bytes)
               : "memory");
#endif
}
// Until the phase of this parity (0 for the first, 1, 0, ...) has ended.
TAMIS_DEVICE void barrier_wait(uint32_t at, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(at)),
      "r"(parity)
      : "memory");
#endif
}
// `bytes`, a multiple of 16, between addresses that are multiples of 16.
TAMIS_DEVICE void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

TAMIS_DEVICE uint32_t add_shared(uint32_t at, uint32_t value) {
  return atomicAdd(reinterpret_cast<uint32_t*>(dynamic_shared + at), value);
}
// Adds one; nobody waits for it.
TAMIS_DEVICE void count_shared(uint32_t at) {
  atomicAdd(reinterpret_cast<uint32_t*>(dynamic_shared + at), 1u);
}

// ---- clusters (sm_90): the blocks that share block_index_y reach each other's shared memory

// Until every block of the cluster is here; what they wrote to shared memory is seen. A warp that
// is not together would arrive more than once.
TAMIS_DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}
// The address of byte `at` of that block of the cluster.
TAMIS_DEVICE uint32_t cluster_address(uint32_t block, uint32_t at) {
  uint32_t address = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(shared_address(at)), "r"(block));
#endif
  return address;
}
TAMIS_DEVICE uint32_t load_cluster(uint32_t block, uint32_t at) {
  uint32_t v = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(cluster_address(block, at)));
#endif
  return v;
}
TAMIS_DEVICE Word4 load_cluster4(uint32_t block, uint32_t at) {
  Word4 v{};
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(cluster_address(block, at))
               : "memory");
#endif
  return v;
}
// The same where `wanted`, without a branch.
TAMIS_DEVICE void load_cluster4_if(bool wanted, uint32_t block, uint32_t at, Word4& to) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %5, 0;\n"
      "@wanted ld.shared::cluster.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "+r"(to.x), "+r"(to.y), "+r"(to.z), "+r"(to.w)
      : "r"(cluster_address(block, at)), "r"(static_cast<uint32_t>(wanted))
      : "memory");
#endif
}
TAMIS_DEVICE void store_cluster(uint32_t block, uint32_t at, uint32_t value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(cluster_address(block, at)), "r"(value)
               : "memory");
#endif
}
// Puts `wanted` where `expected` was; what was there.
TAMIS_DEVICE uint32_t swap_shared(uint32_t at, uint32_t expected, uint32_t wanted) {
  return atomicCAS(reinterpret_cast<uint32_t*>(dynamic_shared + at), expected, wanted);
}

// ---- global memory

template <class T>
TAMIS_DEVICE T load_global(const T* from) {
  return __ldg(from);
}
TAMIS_DEVICE Word2 load_global(const Word2* from) {
  const uint2 v = __ldg(reinterpret_cast<const uint2*>(from));
  return {v.x, v.y};
}
TAMIS_DEVICE Word4 load_global(const Word4* from) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
  return {v.x, v.y, v.z, v.w};
}
// The same past the L1 cache, in this place of the program: for streams that are read once.
TAMIS_DEVICE uint32_t load_stream(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(from));
  return v;
}
TAMIS_DEVICE Word2 load_stream(const Word2* from) {
  Word2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "l"(from));
  return v;
}
TAMIS_DEVICE Word4 load_stream(const Word4* from) {
  Word4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
// The same where `wanted`, without a branch: loads behind branches share a scoreboard, and whoever
// waits for one waits for all.
TAMIS_DEVICE void load_stream_if(bool wanted, const uint32_t* from, uint32_t& to) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %2, 0;\n"
      "@wanted ld.global.nc.L1::no_allocate.u32 %0, [%1];\n}"
      : "+r"(to)
      : "l"(from), "r"(static_cast<uint32_t>(wanted)));
}
TAMIS_DEVICE void load_stream_if(bool wanted, const Word2* from, Word2& to) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %3, 0;\n"
      "@wanted ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];\n}"
      : "+r"(to.x), "+r"(to.y)
      : "l"(from), "r"(static_cast<uint32_t>(wanted)));
}
TAMIS_DEVICE void load_stream_if(bool wanted, const Word4* from, Word4& to) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.u32 wanted, %5, 0;\n"
      "@wanted ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "+r"(to.x), "+r"(to.y), "+r"(to.z), "+r"(to.w)
      : "l"(from), "r"(static_cast<uint32_t>(wanted)));
}
// For other blocks of this launch: they see it once this thread, or one that a barrier of the block
// has let pass since, has come through atomic_add_ordered. A write like any other; the simulator
// holds it back until then.
template <class T>
TAMIS_DEVICE void store_volatile(T* to, T value) {
  *to = value;
}
// What another block wrote before its atomic_add_ordered, and this one sees behind its own.
template <class T>
TAMIS_DEVICE T load_volatile(const T* from) {
  return __ldcg(from);
}
TAMIS_DEVICE Word2 load_volatile(const Word2* from) {
  const uint2 v = __ldcg(reinterpret_cast<const uint2*>(from));
  return {v.x, v.y};
}
TAMIS_DEVICE Word4 load_volatile(const Word4* from) {
  const uint4 v = __ldcg(reinterpret_cast<const uint4*>(from));
  return {v.x, v.y, v.z, v.w};
}
// Towards the L2 cache, soon to be read.
TAMIS_DEVICE void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}
// The same of `bytes`, a multiple of 16, by one thread (sm_90; nothing before).
TAMIS_DEVICE void prefetch_range(const void* from, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
#endif
}
TAMIS_DEVICE uint32_t atomic_add(uint32_t* to, uint32_t value) {
  return atomicAdd(to, value);
}
// What this thread wrote, and what barriers have let it see, is seen by whoever adds after it; it
// sees the same of those before. One fence of less order, where two of __threadfence, before and
// behind, wait some 0.3 us each.
TAMIS_DEVICE uint32_t atomic_add_ordered(uint32_t* to, uint32_t value) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(to), "r"(value)
               : "memory");
  return before;
}

// ---- bits and lanes

TAMIS_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
// The same where every digit of the selector is known to be below 8.
TAMIS_DEVICE uint32_t byte_select(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));
  return out;
}
// The same by the selector's lower four digits, whatever the upper ones.
TAMIS_DEVICE uint32_t byte_pick(uint32_t a, uint32_t b, uint32_t selector) {
  return byte_select(a, b, selector);
}
// The low half of high:low >> bits; bits modulo 32, or up to 32.
TAMIS_DEVICE uint32_t shift_pair(uint32_t low, uint32_t high, uint32_t bits) {
  return __funnelshift_r(low, high, bits);
}
TAMIS_DEVICE uint32_t shift_pair_whole(uint32_t low, uint32_t high, uint32_t bits) {
  return __funnelshift_rc(low, high, bits);
}
// a & mask | bits in one instruction, its constants in registers.
TAMIS_DEVICE uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(a), "r"(mask), "r"(bits));
  return out;
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

// The value of the lane whose number differs in the bits of `mask`.
TAMIS_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
TAMIS_DEVICE int32_t shuffle(int32_t value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
// Bit i: what lane i says.
TAMIS_DEVICE uint32_t ballot(bool mine) {
  return __ballot_sync(0xffffffffu, mine);
}
// The largest of what the lanes say.
TAMIS_DEVICE uint32_t warp_max(uint32_t mine) {
  return __reduce_max_sync(0xffffffffu, mine);
}
// The sum of what the lanes say.
TAMIS_DEVICE uint32_t warp_sum(uint32_t mine) {
  return __reduce_add_sync(0xffffffffu, mine);
}
// The larger of each two of 16 bits, unsigned.
TAMIS_DEVICE uint32_t max_halves(uint32_t a, uint32_t b) {
  return __vmaxu2(a, b);
}
// value, which the compiler then holds in a register where it would compute it again at every use.
TAMIS_DEVICE uint32_t in_register(uint32_t value) {
  uint32_t out;
  asm volatile("mov.u32 %0, %1;" : "=r"(out) : "r"(value));
  return out;
}
TAMIS_DEVICE const uint8_t* in_register(const uint8_t* value) {
  const uint8_t* out;
  asm volatile("mov.u64 %0, %1;" : "=l"(out) : "l"(value));
  return out;
}
TAMIS_DEVICE int popcount(uint32_t bits) {
  return __popc(bits);
}
// sum + the products of four signed bytes of each.
TAMIS_DEVICE int32_t dot_bytes(uint32_t a, uint32_t b, int32_t sum) {
  return __dp4a(static_cast<int32_t>(a), static_cast<int32_t>(b), sum);
}
// 8 x 8 elements of 16 bits, two neighbours of row g = lane / 4 in each lane, transposed.
TAMIS_DEVICE uint32_t transpose(uint32_t pair) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

}  // namespace tamis::dev

#include "base/cuda/dev_cluster.h"
#include "base/cuda/dev_floats.h"
#include "base/cuda/dev_group.h"
#include "base/cuda/dev_group_shared.h"
#include "base/cuda/dev_products.h"
#endif
