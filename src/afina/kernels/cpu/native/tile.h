// Products of bfloat16 matrices with float32 sums, in registers: AVX-512 with `vdpbf16ps`, which multiplies pairs.
//
//     C (M, N) (+)= A (M, K) B (K, N)
//
// A lies as pairs of neighbours in K (32 bits each), at any strides. B is packed: for every pair in K, N pairs side by
// side, N a multiple of 16. C is float32.
#pragma once
#include <immintrin.h>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <omp.h>

namespace afina {

using half_t = uint16_t;  // the bits of a bfloat16
constexpr int LANES = 16;

inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline __m512 load_half(const half_t* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
inline void store_half(half_t* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
inline __m512 load_some(const half_t* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
inline void store_some(half_t* p, __mmask16 m, __m512 x) { _mm256_mask_storeu_epi16(p, m, narrow(x)); }
inline float one(half_t x) { return _mm512_cvtss_f32(widen(_mm256_set1_epi16((short)x))); }

// The pairs (a, b) of two rows, 16 of each: a in the lower half, which is the even place in K.
inline __m512i paired(__m512 a, __m512 b) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(narrow(a)), _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(b)), 16));
}
inline __m512i paired_half(__m256i a, __m256i b) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}

inline __mmask16 first(int64_t n) { return n >= LANES ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }
inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// 2^x, relative error 3e-6: 2^round(x) times a polynomial on [-1/2, 1/2]; 0 where it would be no normal number.
inline __m512 exp2_(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);  // NaN too
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.3333558e-3f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.f));
  return _mm512_maskz_scalef_ps(normal, y, whole);
}

template <int M, int V>
inline void tile(const uint32_t* a, int64_t am, int64_t ak, const uint32_t* b, int64_t bk, float* c, int64_t cm,
                 int64_t pairs, bool add) {
  __m512 sum[M][V];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * cm + j * LANES) : _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; k++) {
    __m512i right[V];
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) right[j] = _mm512_loadu_si512(b + k * bk + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const __m512i left = _mm512_set1_epi32((int)a[i * am + k * ak]);
#pragma GCC unroll 16
      for (int j = 0; j < V; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], (__m512bh)left, (__m512bh)right[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) _mm512_storeu_ps(c + i * cm + j * LANES, sum[i][j]);
}

template <int V>
inline void rows(int64_t m, const uint32_t* a, int64_t am, int64_t ak, const uint32_t* b, int64_t bk, float* c,
                 int64_t cm, int64_t pairs, bool add) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) tile<6, V>(a + i * am, am, ak, b, bk, c + i * cm, cm, pairs, add);
  a += i * am;
  c += i * cm;
  switch (m - i) {
    case 5: return tile<5, V>(a, am, ak, b, bk, c, cm, pairs, add);
    case 4: return tile<4, V>(a, am, ak, b, bk, c, cm, pairs, add);
    case 3: return tile<3, V>(a, am, ak, b, bk, c, cm, pairs, add);
    case 2: return tile<2, V>(a, am, ak, b, bk, c, cm, pairs, add);
    case 1: return tile<1, V>(a, am, ak, b, bk, c, cm, pairs, add);
  }
}

// C (+)= A B; n is a multiple of 16.
inline void product(int64_t m, int64_t n, int64_t pairs, const uint32_t* a, int64_t am, int64_t ak, const uint32_t* b,
                    int64_t bk, float* c, int64_t cm, bool add) {
  int64_t j = 0;
  for (; j + 64 <= n; j += 64) rows<4>(m, a, am, ak, b + j, bk, c + j, cm, pairs, add);
  switch ((n - j) / LANES) {
    case 3: return rows<3>(m, a, am, ak, b + j, bk, c + j, cm, pairs, add);
    case 2: return rows<2>(m, a, am, ak, b + j, bk, c + j, cm, pairs, add);
    case 1: return rows<1>(m, a, am, ak, b + j, bk, c + j, cm, pairs, add);
  }
}

// Pairs of neighbouring rows of x (n, d), d a multiple of 16: (ceil(n / 2), d); a missing row counts as zeros.
inline void pack_rows(const half_t* x, int64_t row, int64_t n, int64_t d, uint32_t* out) {
  for (int64_t i = 0; i < n; i += 2)
    for (int64_t j = 0; j < d; j += LANES) {
      const __m256i a = _mm256_loadu_si256((const __m256i*)(x + i * row + j));
      const __m256i b = i + 1 < n ? _mm256_loadu_si256((const __m256i*)(x + (i + 1) * row + j)) : _mm256_setzero_si256();
      _mm512_storeu_si512(out + i / 2 * d + j, paired_half(a, b));
    }
}

// Pairs of neighbouring columns of x (n, d), transposed: (d / 2, width); columns from n to width are zeros.
inline void pack_columns(const half_t* x, int64_t row, int64_t n, int64_t d, uint32_t* out, int64_t width) {
  const __m512i at = _mm512_mullo_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int)row));
  for (int64_t i = 0; i < width; i += LANES)
    for (int64_t k = 0; k < d; k += 2)
      _mm512_storeu_si512(out + k / 2 * width + i, _mm512_mask_i32gather_epi32(
          _mm512_setzero_si512(), first(n - i), at, (const int*)(x + i * row + k), 2));
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
