// Numbers side by side, for each set of instructions that the kernels are compiled for; they are written in these words
// alone.
//
//     vec   LANES float32, with + - * /        mask   yes or no for each
//
// bfloat16 is widened and rounded (to the nearest, ties to even) on the way from and to memory, by shifts where there
// is no instruction.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace afina {

// A whole vector, or the rest of a row that is none: loaded with zeros behind.
struct All {};
struct Some {
  int64_t n;
};

using half_t = uint16_t;  // the bits of a bfloat16

inline float as_float(float x) { return x; }
inline float as_float(half_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

constexpr int LANES = 16, REGISTERS = 32;
using vec = __m512;
using mask = __mmask16;

inline vec every(float x) { return _mm512_set1_ps(x); }
inline vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, vec x) { _mm512_storeu_ps(p, x); }
inline vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
inline vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
inline float sum(vec x) { return _mm512_reduce_add_ps(x); }
inline float largest(vec x) { return _mm512_reduce_max_ps(x); }
inline vec nearest(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline mask not_less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }  // NaN too
inline vec where(mask m, vec a, vec b) { return _mm512_mask_mov_ps(b, m, a); }
inline vec scaled(mask m, vec y, vec whole) { return _mm512_maskz_scalef_ps(m, y, whole); }
inline mask first(int64_t n) { return n >= LANES ? 0xffff : n <= 0 ? 0 : (mask)((1u << n) - 1); }
inline mask nonzero(const uint8_t* p, int64_t n) {
  return _mm_test_epi8_mask(_mm_maskz_loadu_epi8(first(n), p), _mm_set1_epi8(-1));
}

inline vec widened(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
#ifdef __AVX512BF16__
#define AFINA_INSTRUCTIONS "AVX-512 with bfloat16 products"
inline __m256i narrowed(vec x) { return (__m256i)_mm512_cvtneps_pbh(x); }
#else
#define AFINA_INSTRUCTIONS "AVX-512"
inline __m256i narrowed(vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i near = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
  const mask lost = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(near, lost, _mm512_set1_epi32(0x7fc0)));
}
#endif
inline vec load(const half_t* p) { return widened(_mm256_loadu_si256((const __m256i*)p)); }
inline void store(half_t* p, vec x) { _mm256_storeu_si256((__m256i*)p, narrowed(x)); }
inline vec rounded(const half_t*, vec x) { return widened(narrowed(x)); }

inline vec load(const float* p, Some m) { return _mm512_maskz_loadu_ps(first(m.n), p); }
inline void store(float* p, Some m, vec x) { _mm512_mask_storeu_ps(p, first(m.n), x); }
inline vec load(const half_t* p, Some m) { return widened(_mm256_maskz_loadu_epi16(first(m.n), p)); }
inline void store(half_t* p, Some m, vec x) { _mm256_mask_storeu_epi16(p, first(m.n), narrowed(x)); }

#elif defined(__AVX2__) && defined(__FMA__)

#define AFINA_INSTRUCTIONS "AVX2"
constexpr int LANES = 8, REGISTERS = 16;
using vec = __m256;
using mask = __m256;

inline vec every(float x) { return _mm256_set1_ps(x); }
inline vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, vec x) { _mm256_storeu_ps(p, x); }
inline vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
inline vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }
inline float sum(vec x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline float largest(vec x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline vec nearest(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline mask not_less(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }  // NaN too
inline vec where(mask m, vec a, vec b) { return _mm256_blendv_ps(b, a, m); }
inline vec scaled(mask m, vec y, vec whole) {  // 2^128 is infinite
  const __m256i power = _mm256_cvtps_epi32(_mm256_min_ps(every(128.f), whole));
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(power, _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(m, y * _mm256_castsi256_ps(bits));
}
inline mask first(int64_t n) {
  const __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), at));
}
inline mask nonzero(const uint8_t* p, int64_t n) {
  int64_t bytes = 0;
  if (n > 0) std::memcpy(&bytes, p, n < LANES ? n : LANES);
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes));
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_setzero_si256()));
}

inline __m256i near_bits(vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
  const __m256i lost = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(near, _mm256_set1_epi32(0x7fc00000), lost);
}
inline vec load(const half_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline void store(half_t* p, vec x) {
  const __m256i bits = _mm256_srli_epi32(near_bits(x), 16);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
}
inline vec rounded(const half_t*, vec x) {
  return _mm256_castsi256_ps(_mm256_and_si256(near_bits(x), _mm256_set1_epi32((int)0xffff0000)));
}

#elif defined(__ARM_NEON) && defined(__aarch64__)

#define AFINA_INSTRUCTIONS "NEON"
constexpr int LANES = 4, REGISTERS = 32;
using vec = float32x4_t;
using mask = uint32x4_t;

inline vec every(float x) { return vdupq_n_f32(x); }
inline vec load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, vec x) { vst1q_f32(p, x); }
inline vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
inline vec larger(vec a, vec b) { return vmaxq_f32(a, b); }
inline float sum(vec x) { return vaddvq_f32(x); }
inline float largest(vec x) { return vmaxvq_f32(x); }
inline vec nearest(vec x) { return vrndnq_f32(x); }
inline mask not_less(vec a, vec b) { return vmvnq_u32(vcltq_f32(a, b)); }  // NaN too
inline vec where(mask m, vec a, vec b) { return vbslq_f32(m, a, b); }
inline vec scaled(mask m, vec y, vec whole) {  // 2^128 is infinite
  const int32x4_t power = vcvtnq_s32_f32(vminq_f32(whole, every(128.f)));
  const float32x4_t scale = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(power, vdupq_n_s32(127)), 23));
  return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(vmulq_f32(y, scale))));
}
inline mask first(int64_t n) {
  const int32x4_t at = {0, 1, 2, 3};
  return vcgtq_s32(vdupq_n_s32((int)n), at);
}
inline mask nonzero(const uint8_t* p, int64_t n) {
  uint8_t bytes[8] = {};
  if (n > 0) std::memcpy(bytes, p, n < LANES ? n : LANES);
  const uint32x4_t wide = vmovl_u16(vget_low_u16(vmovl_u8(vld1_u8(bytes))));
  return vtstq_u32(wide, wide);
}

inline uint32x4_t near_bits(vec x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t near = vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x7fff));
  return vbslq_u32(vceqq_f32(x, x), near, vdupq_n_u32(0x7fc00000));
}
inline vec load(const half_t* p) { return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16)); }
inline void store(half_t* p, vec x) { vst1_u16(p, vshrn_n_u32(near_bits(x), 16)); }
inline vec rounded(const half_t*, vec x) {
  return vreinterpretq_f32_u32(vandq_u32(near_bits(x), vdupq_n_u32(0xffff0000u)));
}

#else
#error "the kernels are for AVX-512, for AVX2 with FMA and for NEON"
#endif

inline vec rounded(const float*, vec x) { return x; }  // what is left of x in the dtype of the pointer
inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

constexpr float LOG2E = 1.44269504f;

// 2^x, relative error 2e-7: 2^round(x) times the minimax polynomial on [-1/2, 1/2] of those that are 1 at 0; 0 where it
// would be no normal number.
inline vec exp2_(vec x) {
  const vec whole = nearest(x), f = x - whole;
  vec y = every(1.32647273e-3f);
  y = fma(y, f, every(9.67151299e-3f));
  y = fma(y, f, every(5.55073358e-2f));
  y = fma(y, f, every(2.40222424e-1f));
  y = fma(y, f, every(6.93147004e-1f));
  y = fma(y, f, every(1.f));
  return scaled(not_less(x, every(-126.f)), y, whole);
}

template <class T>
inline vec load(const T* p, All) { return load(p); }
template <class T>
inline void store(T* p, All, vec x) { store(p, x); }
inline vec where(All, vec a, vec) { return a; }
inline vec where(Some m, vec a, vec b) { return where(first(m.n), a, b); }
#if !defined(__AVX512F__)
template <class T>
inline vec load(const T* p, Some m) {
  T room[LANES] = {};
  std::memcpy(room, p, m.n * sizeof(T));
  return load(room);
}
template <class T>
inline void store(T* p, Some m, vec x) {
  T room[LANES];
  store(room, x);
  std::memcpy(p, room, m.n * sizeof(T));
}
#endif

// run(i, m) for all of [from, to): vectors, then what is left.
template <class Run>
inline void over(int64_t from, int64_t to, Run run) {
  for (; from + LANES <= to; from += LANES) run(from, All{});
  if (from < to) run(from, Some{to - from});
}

}  // namespace afina
