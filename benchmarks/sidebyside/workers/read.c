/* Sums count floats (a multiple of 512), from two places at once and in as many vectors as hide the
   latency of an addition, so that the time is that of reading. machine.py builds and calls it. */
typedef float lane __attribute__((vector_size(64), aligned(4)));

enum { VECTORS = 16, LANES = 16, STEP = VECTORS * LANES };

float streamssm_read(const float *data, long count) {
  lane sums[VECTORS] = {{0}};
  const long half = count / 2;
  for (long i = 0; i < half; i += STEP) {
    for (int j = 0; j < VECTORS; ++j) sums[j] += *(const lane *)(data + i + LANES * j);
    for (int j = 0; j < VECTORS; ++j) sums[j] += *(const lane *)(data + half + i + LANES * j);
  }
  float total = 0;
  for (int j = 0; j < VECTORS; ++j)
    for (int k = 0; k < LANES; ++k) total += sums[j][k];
  return total;
}
