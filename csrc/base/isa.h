// ISA bits of this host; TAMIS_ISA narrows them, never widens.
#pragma once

#include <cstdint>

namespace tamis {

using IsaBits = uint32_t;

namespace isa {
// Each named level includes what its kernels need; a host has a level or not.
inline constexpr IsaBits kScalar = 0;
inline constexpr IsaBits kAvx2 = 1u << 0;         // AVX2, FMA, F16C, BMI1, BMI2, POPCNT
inline constexpr IsaBits kAvx512 = 1u << 1;       // F, BW, DQ, VL, CD
inline constexpr IsaBits kAvx512Vbmi2 = 1u << 2;  // VBMI, VBMI2, VNNI, VPOPCNTDQ, BITALG
inline constexpr IsaBits kAvx512Bf16 = 1u << 3;   // AVX512_BF16
inline constexpr IsaBits kAvx512Fp16 = 1u << 4;   // AVX512_FP16 (Sapphire Rapids and later Xeons)
inline constexpr IsaBits kAmx = 1u << 5;          // AMX_TILE, AMX_INT8, AMX_BF16, and permission
inline constexpr IsaBits kNeon = 1u << 8;         // Advanced SIMD, which every AArch64 has
inline constexpr IsaBits kNeonDot = 1u << 9;      // DotProd, FP16 (Cortex-A76, Neoverse N1)
inline constexpr IsaBits kNeonFhm = 1u << 10;     // FHM (Apple M1, Neoverse V1)
inline constexpr IsaBits kNeonBf16 = 1u << 11;    // BF16, I8MM

// What a kernel compiled for a level requires: the level and every one below it.
inline constexpr IsaBits scalar = kScalar;
inline constexpr IsaBits avx2 = kAvx2;
inline constexpr IsaBits avx512 = avx2 | kAvx512;
inline constexpr IsaBits avx512vbmi2 = avx512 | kAvx512Vbmi2;
inline constexpr IsaBits avx512bf16 = avx512vbmi2 | kAvx512Bf16;
// No kernel needs FP16: it tells a Xeon whose tiles a hypervisor hides from a Zen 4.
inline constexpr IsaBits avx512fp16 = avx512bf16 | kAvx512Fp16;
inline constexpr IsaBits amx = avx512fp16 | kAmx;
inline constexpr IsaBits neon = kNeon;
inline constexpr IsaBits neon_dot = neon | kNeonDot;
inline constexpr IsaBits neon_fhm = neon_dot | kNeonFhm;
inline constexpr IsaBits neon_bf16 = neon_fhm | kNeonBf16;
}  // namespace isa

// What CPUID and XCR0, or HWCAP, report, before TAMIS_ISA. The first call asks Linux for the tile
// registers of AMX, which it hands out per process; where it declines, there is no AMX.
IsaBits host_isa();

// host_isa() narrowed by TAMIS_ISA, the name of a level; read once.
// An unknown name narrows to scalar; isa_request_error() then says so.
IsaBits active_isa();

// The text of TAMIS_ISA if it names no level, else null.
const char* isa_request_error();

// Highest level contained in `bits`, e.g. "avx512bf16".
const char* isa_name(IsaBits bits);

// The names that TAMIS_ISA takes on this processor, as a sentence has them: "scalar, ... or ...".
const char* isa_levels();

// Bits of a level by name; false and untouched if there is no such level.
bool isa_from_name(const char* name, IsaBits* bits);

// TAMIS_NUM_THREADS, or 0 if unset or not a positive number; read once. Lives here because no
// other file reads the environment.
int threads_from_environment();

}  // namespace tamis
