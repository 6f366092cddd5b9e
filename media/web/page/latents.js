"use strict";
// The latent of a seed: numpy's RandomState(seed).randn, whose numbers are frozen (Matsumoto and
// Nishimura 1998: MT19937; normal numbers by Marsaglia's polar method).

const STATE = 624;
const SHIFT = 397;

class RandomState {
  constructor(seed) {
    this.words = new Uint32Array(STATE);
    this.words[0] = seed;
    for (let i = 1; i < STATE; i++) {
      const before = this.words[i - 1] ^ (this.words[i - 1] >>> 30);
      this.words[i] = Math.imul(1812433253, before) + i;
    }
    this.next = STATE;
    this.spare = null;
  }

  word() {
    if (this.next === STATE) this.twist();
    let y = this.words[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  twist() {
    const words = this.words;
    for (let i = 0; i < STATE; i++) {
      const y = (words[i] & 0x80000000) | (words[(i + 1) % STATE] & 0x7fffffff);
      words[i] = words[(i + SHIFT) % STATE] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  // 53 random bits in [0, 1)
  uniform() {
    const high = this.word() >>> 5;
    return (high * 67108864 + (this.word() >>> 6)) / 9007199254740992;
  }

  normal() {
    if (this.spare !== null) {
      const kept = this.spare;
      this.spare = null;
      return kept;
    }
    let x, y, square;
    do {
      x = 2 * this.uniform() - 1;
      y = 2 * this.uniform() - 1;
      square = x * x + y * y;
    } while (square >= 1 || square === 0);
    const factor = Math.sqrt((-2 * Math.log(square)) / square);
    this.spare = factor * x;
    return factor * y;
  }
}

// z of a seed, 0 to 4294967295.
function seedLatent(seed, size) {
  const random = new RandomState(seed);
  return Float32Array.from({length: size}, () => random.normal());
}

// Latents of the layers, (layers x width): those of one identity blended with another's in the
// layers first..last - 1, and pulled towards the average.
function blend(one, other, {share, first, last, psi}, average) {
  const width = average.length;
  return one.map((value, i) => {
    const layer = Math.floor(i / width);
    const part = layer >= first && layer < last ? share : 0;
    const mixed = value + part * (other[i] - value);
    return average[i % width] + psi * (mixed - average[i % width]);
  });
}
