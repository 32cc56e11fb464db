// Host detection and the environment: the only file that reads either.
#include "base/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && !defined(TAMIS_SIMDE)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace tamis {
namespace {

struct Level {
  const char* name;
  IsaBits bits;
};

// Ascending; each contains the one before of its kind of processor.
constexpr Level kLevels[] = {
    {"scalar", isa::scalar},
    {"avx2", isa::avx2},
    {"avx512", isa::avx512},
    {"avx512vbmi2", isa::avx512vbmi2},
    {"avx512bf16", isa::avx512bf16},
    {"avx512fp16", isa::avx512fp16},
    {"amx", isa::amx},
    {"neon", isa::neon},
    {"neon_dot", isa::neon_dot},
    {"neon_fhm", isa::neon_fhm},
    {"neon_bf16", isa::neon_bf16},
};

#if defined(TAMIS_SIMDE)  // NEON sources on another processor (make test-simde)
IsaBits detect() {
  return isa::neon_dot;
}
#elif defined(__x86_64__)
constexpr bool has(uint32_t reg, std::initializer_list<int> bits) {
  for (int b : bits) {
    if (!(reg >> b & 1u)) return false;
  }
  return true;
}

// The register state that the operating system saves; without it a feature bit is no permission.
uint64_t xcr0() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Whether this process may use the tile registers. Their 8 KB are not part of a signal frame until
// it has asked; a kernel that does not know the question, or an alternative signal stack that is
// too small for them, means no.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr uint64_t kTileState = 3u << 17;  // TILECFG and TILEDATA in XCR0
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return (xcr0() & kTileState) == kTileState &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

IsaBits detect() {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return isa::kScalar;
  // FMA, POPCNT, OSXSAVE, AVX, F16C
  if (!has(ecx, {12, 23, 27, 28, 29}) || (xcr0() & 0x6) != 0x6) return isa::kScalar;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return isa::kScalar;
  if (!has(ebx, {3, 5, 8})) return isa::kScalar;  // BMI1, AVX2, BMI2
  IsaBits bits = isa::avx2;

  // F, DQ, CD, BW, VL; opmask and zmm state saved
  if (!has(ebx, {16, 17, 28, 30, 31}) || (xcr0() & 0xe6) != 0xe6) return bits;
  bits |= isa::kAvx512;
  // VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
  if (!has(ecx, {1, 6, 11, 12, 14})) return bits;
  bits |= isa::kAvx512Vbmi2;
  const bool fp16 = has(edx, {23}), tiles = has(edx, {22, 24, 25});  // AMX_BF16, _TILE, _INT8
  if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !has(eax, {5})) return bits;
  bits |= isa::kAvx512Bf16;
  if (fp16) bits |= isa::kAvx512Fp16;
  return fp16 && tiles && may_use_tiles() ? bits | isa::kAmx : bits;
}
#elif defined(__aarch64__)
IsaBits detect() {
  const auto has = [](unsigned long word, unsigned long bits) { return (word & bits) == bits; };
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  if (!has(caps, HWCAP_ASIMD)) return isa::kScalar;
  if (!has(caps, HWCAP_ASIMDDP | HWCAP_FPHP | HWCAP_ASIMDHP)) return isa::neon;
  if (!has(caps, HWCAP_ASIMDFHM)) return isa::neon_dot;
  return has(caps2, HWCAP2_BF16 | HWCAP2_I8MM) ? isa::neon_bf16 : isa::neon_fhm;
}
#else
IsaBits detect() {
  return isa::kScalar;
}
#endif

}  // namespace

const char* isa_levels() {
#if defined(__aarch64__)
  return "scalar, neon, neon_dot, neon_fhm or neon_bf16";
#else
  return "scalar, avx2, avx512, avx512vbmi2, avx512bf16, avx512fp16 or amx";
#endif
}

bool isa_from_name(const char* name, IsaBits* bits) {
  for (const Level& level : kLevels) {
    if (std::strcmp(name, level.name) == 0) {
      *bits = level.bits;
      return true;
    }
  }
  return false;
}

const char* isa_name(IsaBits bits) {
  const char* name = "scalar";
  for (const Level& level : kLevels) {
    if ((bits & level.bits) == level.bits) name = level.name;
  }
  return name;
}

IsaBits host_isa() {
  static const IsaBits bits = detect();
  return bits;
}

const char* isa_request_error() {
  static const char* const wrong = [] {
    const char* name = std::getenv("TAMIS_ISA");
    IsaBits ignored = 0;
    return name && *name && !isa_from_name(name, &ignored) ? name : nullptr;
  }();
  return wrong;
}

IsaBits active_isa() {
  static const IsaBits bits = [] {
    const char* name = std::getenv("TAMIS_ISA");
    if (!name || !*name) return host_isa();
    IsaBits wanted = isa::kScalar;
    isa_from_name(name, &wanted);
    return host_isa() & wanted;
  }();
  return bits;
}

int threads_from_environment() {
  static const int threads = [] {
    const char* text = std::getenv("TAMIS_NUM_THREADS");
    const long n = text ? std::strtol(text, nullptr, 10) : 0;
    return n > 0 && n < 4096 ? static_cast<int>(n) : 0;
  }();
  return threads;
}

}  // namespace tamis
