// Products of matrices with float32 sums, in registers:
//
//     C (M, N) (+)= A (M, K) B (K, N)
//
// What they read are items of `STEP` neighbours in K: single float32, or pairs of bfloat16 where an instruction
// multiplies those. A lies at any strides. B is packed: for every item in K, N items side by side, N a multiple of
// LANES. C is float32.
#pragma once
#include <cstdlib>
#include <omp.h>
#include "vector.h"

namespace afina {

inline vec spread(float x) { return every(x); }
inline vec multiply_add(vec a, vec b, vec c) { return fma(a, b, c); }

// Any numbers as float32.
template <class T>
struct Operands {
  using item = float;    // what a product reads
  using number = float;  // of which an item has STEP
  static constexpr int STEP = 1;
  static constexpr bool COPIES_LEFT = true;

  static void down(item* to, const vec (&x)[1]) { store(to, x[0]); }

  // Rows of x (n, d), d a multiple of 16.
  static void pack_rows(const T* x, int64_t row, int64_t n, int64_t d, item* out) {
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < d; j += LANES) store(out + i * d + j, load(x + i * row + j));
  }
  // Columns of x (n, d), transposed: (d, width); columns from n to width are zeros.
  static void pack_columns(const T* x, int64_t row, int64_t n, int64_t d, item* out, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES)
      for (int64_t k = 0; k < d; k++)
        for (int64_t l = i; l < i + LANES; l++) out[k * width + l] = l < n ? as_float(x[l * row + k]) : 0.f;
  }
  // Rows of x as left operand, of which `packed` holds what `pack_rows` makes; `step`: from row to row.
  static const item* left(const T*, int64_t, int64_t d, const item* packed, int64_t& step) {
    step = d;
    return packed;
  }
};

#ifdef __AVX512BF16__
inline __m512bh load(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh spread(uint32_t x) { return (__m512bh)_mm512_set1_epi32((int)x); }
inline vec multiply_add(__m512bh a, __m512bh b, vec c) { return _mm512_dpbf16_ps(c, a, b); }

// bfloat16 by twos: the even place in K in the lower half.
struct Pairs {
  using item = uint32_t;
  using number = half_t;
  static constexpr int STEP = 2;
  static constexpr bool COPIES_LEFT = false;

  static __m512i paired(__m256i a, __m256i b) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
  }
  static void down(item* to, const vec (&x)[2]) { _mm512_storeu_si512(to, paired(narrowed(x[0]), narrowed(x[1]))); }

  // Pairs of neighbouring rows: (ceil(n / 2), d); a missing row counts as zeros.
  static void pack_rows(const half_t* x, int64_t row, int64_t n, int64_t d, item* out) {
    for (int64_t i = 0; i < n; i += 2)
      for (int64_t j = 0; j < d; j += LANES) {
        const __m256i a = _mm256_loadu_si256((const __m256i*)(x + i * row + j));
        const __m256i b = i + 1 < n ? _mm256_loadu_si256((const __m256i*)(x + (i + 1) * row + j)) : __m256i{};
        _mm512_storeu_si512(out + i / 2 * d + j, paired(a, b));
      }
  }
  static void pack_columns(const half_t* x, int64_t row, int64_t n, int64_t d, item* out, int64_t width) {
    const __m512i at = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int)row));
    for (int64_t i = 0; i < width; i += LANES)
      for (int64_t k = 0; k < d; k += 2)
        _mm512_storeu_si512(out + k / 2 * width + i, _mm512_mask_i32gather_epi32(
            _mm512_setzero_si512(), first(n - i), at, (const int*)(x + i * row + k), 2));
  }
  static const item* left(const half_t* x, int64_t row, int64_t, const item*, int64_t& step) {
    step = row / 2;
    return (const item*)x;
  }
};

template <>
struct Operands<half_t> : Pairs {};
#endif

template <int M, int V, class Item>
inline void tile(const Item* a, int64_t am, int64_t ak, const Item* b, int64_t bk, float* c, int64_t cm, int64_t items,
                 bool add) {
  vec sum[M][V];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) sum[i][j] = add ? load(c + i * cm + j * LANES) : every(0.f);
  for (int64_t k = 0; k < items; k++) {
    decltype(load(b)) right[V];
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) right[j] = load(b + k * bk + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const auto left = spread(a[i * am + k * ak]);
#pragma GCC unroll 16
      for (int j = 0; j < V; j++) sum[i][j] = multiply_add(left, right[j], sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) store(c + i * cm + j * LANES, sum[i][j]);
}

template <int M, int V, class Item>
inline void rows(int64_t m, const Item* a, int64_t am, int64_t ak, const Item* b, int64_t bk, float* c, int64_t cm,
                 int64_t items, bool add) {
  for (; m >= M; m -= M, a += M * am, c += M * cm) tile<M, V>(a, am, ak, b, bk, c, cm, items, add);
  if constexpr (M > 1)
    if (m) rows<M - 1, V>(m, a, am, ak, b, bk, c, cm, items, add);
}

// C (+)= A B; n is a multiple of LANES.
template <int V = REGISTERS == 32 ? 4 : 2, class Item>
inline void product(int64_t m, int64_t n, int64_t items, const Item* a, int64_t am, int64_t ak, const Item* b,
                    int64_t bk, float* c, int64_t cm, bool add) {
  for (; n >= V * LANES; n -= V * LANES, b += V * LANES, c += V * LANES)
    rows<6, V>(m, a, am, ak, b, bk, c, cm, items, add);
  if constexpr (V > 1)
    if (n) product<V - 1>(m, n, items, a, am, ak, b, bk, c, cm, add);
}

// One thread's memory, cut into pieces.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : start_((char*)std::aligned_alloc(64, round_up((int64_t)bytes, 64))), at_(start_) {}
  ~Scratch() { std::free(start_); }
  Scratch(const Scratch&) = delete;
  template <class T>
  T* take(int64_t count) {
    T* out = (T*)at_;
    at_ += round_up(count * (int64_t)sizeof(T), 64);
    return out;
  }
  bool good() const { return start_ != nullptr; }

 private:
  char *start_, *at_;
};

}  // namespace afina
