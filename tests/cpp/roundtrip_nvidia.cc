// NVIDIA's 2:4 metadata against a decode written from its description alone.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "guarded.h"
#include "packing.h"

namespace tamis::test {
namespace {

// The six ascending pairs of column ids.
constexpr int kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

TEST(Nvidia24, MasksMatchTheIds) {
  std::mt19937_64 random(1);
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 4}, {3, 4}, {2, 32}, {5, 60}, {3, 64}, {4, 68}, {7, 192}}) {
    const int64_t groups = rows * cols / 4;
    Guarded<uint32_t> meta(static_cast<size_t>((groups + 7) / 8));
    Guarded<uint64_t> mask(static_cast<size_t>(rows * mask_words(cols)));
    std::fill(meta.span().begin(), meta.span().end(), 0u);
    std::vector<uint8_t> keep(static_cast<size_t>(rows * cols), 0);
    for (int64_t g = 0; g < groups; ++g) {
      const auto& pair = kPairs[random() % 6];
      meta[static_cast<size_t>(g / 8)] |= static_cast<uint32_t>(pair[0] + 4 * pair[1])
                                          << (g % 8 * 4);
      keep[static_cast<size_t>(4 * g + pair[0])] = keep[static_cast<size_t>(4 * g + pair[1])] = 1;
    }
    ASSERT_TRUE(import_nvidia_24(meta.data(), rows, cols, mask.data()).ok());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < 64 * mask_words(cols); ++c) {
        const uint64_t word = mask[static_cast<size_t>(r * mask_words(cols) + c / 64)];
        const bool wanted = c < cols && keep[static_cast<size_t>(r * cols + c)] != 0;
        ASSERT_EQ((word >> (c % 64)) & 1, uint64_t{wanted}) << r << ", " << c;
      }
    }
    // What comes out is an nm 2:4 mask.
    std::vector<float> values(static_cast<size_t>(rows * cols / 2), 1.0f);
    const MatrixView a{.format = Format::nm,
                       .rows = rows,
                       .cols = cols,
                       .values = values.data(),
                       .nnz = rows * cols / 2,
                       .mask = mask.data(),
                       .keep = 2,
                       .of = 4};
    const Status s = check(a, {.values = a.nnz, .mask = rows * mask_words(cols)});
    EXPECT_TRUE(s.ok()) << s.text;
  }
}

TEST(Nvidia24, RefusesIdsThatDoNotAscend) {
  uint64_t mask[1];
  for (uint32_t ids = 0; ids < 16; ++ids) {
    const uint32_t meta = 0x4u | (ids << 4);  // group 0: columns 0 and 1
    const Status s = import_nvidia_24(&meta, 1, 8, mask);
    EXPECT_EQ(s.ok(), (ids & 3) < (ids >> 2)) << ids;
    if (!s.ok()) {
      EXPECT_NE(std::string(s.text).find("in group 1, wanted ascending"), std::string::npos);
    }
  }
  EXPECT_EQ(import_nvidia_24(nullptr, 1, 6, mask).code, Code::invalid_argument);
  EXPECT_EQ(import_nvidia_24(nullptr, -1, 4, mask).code, Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test
