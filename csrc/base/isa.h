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

// What a kernel compiled for a level requires: the level and every one below it.
inline constexpr IsaBits scalar = kScalar;
inline constexpr IsaBits avx2 = kAvx2;
inline constexpr IsaBits avx512 = avx2 | kAvx512;
inline constexpr IsaBits avx512vbmi2 = avx512 | kAvx512Vbmi2;
inline constexpr IsaBits avx512bf16 = avx512vbmi2 | kAvx512Bf16;
}  // namespace isa

// What CPUID and XCR0 report, before TAMIS_ISA.
IsaBits host_isa();

// host_isa() narrowed by TAMIS_ISA = scalar | avx2 | avx512 | avx512vbmi2 | avx512bf16; read once.
// An unknown name narrows to scalar; isa_request_error() then says so.
IsaBits active_isa();

// The text of TAMIS_ISA if it names no level, else null.
const char* isa_request_error();

// Highest level contained in `bits`, e.g. "avx512bf16".
const char* isa_name(IsaBits bits);

// Bits of a level by name; false and untouched if there is no such level.
bool isa_from_name(const char* name, IsaBits* bits);

// TAMIS_NUM_THREADS, or 0 if unset or not a positive number; read once. Lives here because no
// other file reads the environment.
int threads_from_environment();

}  // namespace tamis
