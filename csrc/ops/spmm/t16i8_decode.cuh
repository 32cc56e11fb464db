// From the word and the packed codes of a t16i8 record to the A fragments of one lane: a lane's
// codes of a run are a window of eight bytes, and a byte permute puts four of them, or zeros, where
// four mask bits are. For a byte of the mask some 24 instructions, three of them loads.
#pragma once

#include "base/cuda/dev.h"
#include "format/t16i8.h"

namespace tamis {

// Of a lane's word: how many bits each nibble has.
TAMIS_DEVICE uint32_t nibble_counts(uint32_t word) {
  const uint32_t pairs = word - (word >> 1 & 0x55555555u);
  return (pairs & 0x33333333u) + (pairs >> 2 & 0x33333333u);
}

// Selectors of byte_permute for the nibbles of a mask byte: byte i of the result is the next of the
// first operand's where bit i is set, and one of the second's, zero, where it is not. With one bit
// a nibble, the number of set bits below bit i is in nibble i of bits * 0x1110; an unset one adds
// four.
TAMIS_DEVICE void selectors(uint32_t byte, uint32_t& low, uint32_t& high) {
  uint32_t bits = byte * 0x1001u & 0x000f000fu;
  bits = bits * 0x41u & 0x03030303u;
  bits = bits * 9u & 0x11111111u;
  low = bits * 0x110cu + 0x4444u;
  high = (bits >> 16) * 0x110cu + 0x4444u;
}

// Four codes of row g and of row g + 8: run `run` of a lane, its codes at the shared address `at`.
TAMIS_DEVICE void expand_run(uint32_t at, uint32_t word, uint32_t counts, uint32_t run,
                             uint32_t& low, uint32_t& high) {
  const uint32_t first = at & ~3u;
  const uint32_t words[3] = {dev::load_shared_word(first), dev::load_shared_word(first + 4),
                             dev::load_shared_word(first + 8)};
  const uint32_t window[2] = {dev::shift_pair(words[0], words[1], 8 * at),
                              dev::shift_pair(words[1], words[2], 8 * at)};
  const uint32_t of_low = (run == 0 ? counts << 3 : counts >> (8 * run - 3)) & 0x78u;  // in bits
  uint32_t select[2];
  selectors(dev::byte_permute(word, 0, 0x4440u + run), select[0], select[1]);
  low = dev::byte_select(window[0], 0, select[0]);
  high = dev::byte_select(dev::shift_pair_whole(window[0], window[1], of_low), 0, select[1]);
}

}  // namespace tamis
