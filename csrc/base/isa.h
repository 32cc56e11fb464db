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
}  // namespace isa

// What CPUID and XCR0 report, before TAMIS_ISA.
IsaBits host_isa();

// host_isa() narrowed by TAMIS_ISA = scalar | avx2 | avx512 | avx512vbmi2 | avx512bf16; read once.
IsaBits active_isa();

// Highest level contained in `bits`, e.g. "avx512bf16".
const char* isa_name(IsaBits bits);

}  // namespace tamis
