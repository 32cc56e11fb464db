// kv_quantize straight from the formula: one group after another, one bit field at a time.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/elements.h"
#include "base/numeric.h"
#include "ops/kv_quantize/kv_quantize.h"

namespace tamis {
namespace {

// Largest f16 that is not above x, or smallest not below.
uint16_t f16_toward(float x, bool up) {
  uint16_t best = up ? 0x7bff : 0xfbff;
  for (const int step : {-1, 0, 1}) {
    const auto near = static_cast<uint16_t>(f16_from_f32(x) + step);
    const float value = f32_from_f16(near), known = f32_from_f16(best);
    if (!std::isfinite(value)) continue;
    if (up ? value >= x && value < known : value <= x && value > known) best = near;
  }
  return best == 0x8000 ? uint16_t{0} : best;
}

// Codes, scale and min of one group.
void quantize(std::vector<float> x, int bits, uint32_t* codes, uint16_t* scale, uint16_t* min) {
  constexpr float kLimit = 65504.0f;
  for (float& v : x) v = (v > -kLimit ? std::min(v, kLimit) : -kLimit) + 0.0f;
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  const float top = static_cast<float>((1 << bits) - 1);
  *min = *low < 0 && *low > -0x1p-24f ? uint16_t{0x8001} : f16_toward(*low, false);
  const float origin = f32_from_f16(*min);
  *scale = f16_toward((*high - origin) / top, true);
  const float step = f32_from_f16(*scale);
  for (size_t i = 0; i < x.size(); ++i) {
    const float inverse = step > 0 ? 1.0f / step : 0.0f;
    codes[i] = static_cast<uint32_t>(std::nearbyint(std::min((x[i] - origin) * inverse, top)));
  }
}

void put_code(uint8_t* codes, int bits, int64_t length, int64_t i, int64_t j, uint32_t code) {
  const int64_t per_word = 32 / bits;
  uint8_t* at = codes + 4 * ((i / 16 * (length / per_word) + j / per_word) * 16 + i % 16);
  uint32_t word;
  std::memcpy(&word, at, sizeof word);
  word |= code << code_shift(static_cast<int>(j % per_word), bits);
  std::memcpy(at, &word, sizeof word);
}

void quantize_record(const KvQuantizeArgs& a, int64_t head, int64_t page, uint8_t* record) {
  const KvPageLayout& layout = a.layout;
  const int64_t d = layout.head_dim, tokens = layout.tokens;
  const auto key = [&](int64_t t, int64_t c) {
    const int64_t token = page * tokens + t;
    return load_element(a.dtype, a.keys, head * a.key_head_stride + token * a.key_token_stride + c);
  };
  const auto value = [&](int64_t t, int64_t c) {
    const int64_t token = page * tokens + t;
    return load_element(a.dtype, a.values,
                        head * a.value_head_stride + token * a.value_token_stride + c);
  };
  std::memset(record, 0, static_cast<size_t>(layout.bytes()));
  std::vector<uint32_t> codes(static_cast<size_t>(std::max(d, tokens)));
  uint16_t scale, min;
  for (int64_t c = 0; c < d; ++c) {
    std::vector<float> x(static_cast<size_t>(tokens));
    for (int64_t t = 0; t < tokens; ++t) x[static_cast<size_t>(t)] = key(t, c);
    quantize(x, layout.key_bits, codes.data(), &scale, &min);
    for (int64_t t = 0; t < tokens; ++t) {
      put_code(record + layout.key_codes(), layout.key_bits, d, t, c,
               codes[static_cast<size_t>(t)]);
    }
    std::memcpy(record + layout.key_scale() + 2 * c, &scale, 2);
    std::memcpy(record + layout.key_min() + 2 * c, &min, 2);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t g = 0; g < layout.groups(); ++g) {
      std::vector<float> x(static_cast<size_t>(layout.group));
      for (int64_t c = 0; c < layout.group; ++c) {
        x[static_cast<size_t>(c)] = value(t, g * layout.group + c);
      }
      quantize(x, layout.value_bits, codes.data(), &scale, &min);
      for (int64_t c = 0; c < layout.group; ++c) {
        put_code(record + layout.value_codes(), layout.value_bits, tokens, g * layout.group + c, t,
                 codes[static_cast<size_t>(c)]);
      }
      std::memcpy(record + layout.value_scale() + 2 * (g * tokens + t), &scale, 2);
      std::memcpy(record + layout.value_min() + 2 * (g * tokens + t), &min, 2);
    }
  }
}

}  // namespace

Status kv_quantize_reference(const KvQuantizeArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_page(a.layout));
  for (int64_t head = 0; head < a.heads; ++head) {
    for (int64_t page = 0; page < a.pages; ++page) {
      quantize_record(
          a, head, page,
          static_cast<uint8_t*>(a.out) + head * a.out_stride_bytes + page * a.layout.bytes());
    }
  }
  return {};
}

}  // namespace tamis
