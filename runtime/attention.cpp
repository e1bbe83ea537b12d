// Attention on CPUs, forward and backward: y = softmax(scale q k^T) v, a head at a time in a core's own cache.
//
// Queries come in blocks; the scores of a block against all keys that it sees are whole, so that a row's softmax is one
// pass. The backward makes the weights again from the logarithm of their sum (FlashAttention-2, arXiv:2307.08691). All
// products are outer products of registers (BLIS, doi:10.1145/2764454): six rows at a time of a left side that is read
// number by number, of a right side packed once a head in panels as wide as the registers. Sums are fp32; a head is one
// thread's, so that results do not depend on threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>

namespace {

#ifdef __AVX512F__
constexpr int64_t W = 16, WIDE = 4;  // numbers in a vector, vectors in a panel
#else
constexpr int64_t W = 8, WIDE = 2;
#endif
constexpr int64_t ROWS = 6, PANEL = W * WIDE, BLOCK = 108, DEEP = 256;  // DEEP rows of a panel stay in the L1 cache
constexpr float NONE = -std::numeric_limits<float>::infinity();

typedef float V __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * W)));

struct bf16 { uint16_t bits; };

inline float from(float x) { return x; }
inline float from(bf16 x) { uint32_t i = uint32_t(x.bits) << 16; float y; std::memcpy(&y, &i, 4); return y; }
inline void to(float x, float& y) { y = x; }
inline void to(float x, bf16& y) {
  uint32_t i;
  std::memcpy(&i, &x, 4);
  y.bits = x != x ? 0x7fc0 : (i + 0x7fff + ((i >> 16) & 1)) >> 16;  // to nearest, ties to even
}

inline int64_t up(int64_t n, int64_t by) { return (n + by - 1) / by * by; }
inline V load(const float* x) { return *(const V*)x; }
inline void store(float* x, V y) { *(V*)x = y; }
inline float sum(V x) { float y = 0; for (int64_t j = 0; j < W; ++j) y += x[j]; return y; }
inline float largest(V x) { float y = x[0]; for (int64_t j = 1; j < W; ++j) y = std::max(y, x[j]); return y; }

// e^x for x <= 0, to 2 ulp: 2^n times the polynomial of Cephes' expf.
inline V exponential(V x) {
  I n = __builtin_convertvector(x * 1.44269504f - 0.5f, I);
  V f = __builtin_convertvector(n, V);
  V r = x - f * 0.693359375f + f * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  I bits = (n + 127) << 23;
  V power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? V{} : p * power;
}

// c [M, N W] (+)= a [M, k] b [k, N W]; a number of a lies at row * down + place * along.
template <int M, int N>
inline void tile(int64_t k, const float* a, int64_t down, int64_t along, const float* b, float* c, int64_t width,
                 bool add) {
  V s[M][N];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) s[i][j] = add ? load(c + i * width + j * W) : V{};
  for (int64_t p = 0; p < k; ++p) {
    V y[N];
    for (int j = 0; j < N; ++j) y[j] = load(b + p * PANEL + j * W);
    for (int i = 0; i < M; ++i) {
      float x = a[i * down + p * along];
      for (int j = 0; j < N; ++j) s[i][j] += x * y[j];
    }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) store(c + i * width + j * W, s[i][j]);
}

template <int M, int N>
void rest(int64_t m, int64_t k, const float* a, int64_t down, int64_t along, const float* b, float* c, int64_t width,
          bool add) {
  if (m == M) return tile<M, N>(k, a, down, along, b, c, width, add);
  if constexpr (M > 1) rest<M - 1, N>(m, k, a, down, along, b, c, width, add);
}

template <int N>
void strip(int64_t vectors, int64_t m, int64_t k, const float* a, int64_t down, int64_t along, const float* b, float* c,
           int64_t width, bool add) {
  if (vectors < N) {
    if constexpr (N > 1) strip<N - 1>(vectors, m, k, a, down, along, b, c, width, add);
    return;
  }
  int64_t i = 0;
  for (; i + ROWS <= m; i += ROWS) tile<ROWS, N>(k, a + i * down, down, along, b, c + i * width, width, add);
  if (i < m) rest<ROWS - 1, N>(m - i, k, a + i * down, down, along, b, c + i * width, width, add);
}

struct Left { const float* at; int64_t down, along; };
struct Right { const float* at; int64_t deep; };  // panels, each `deep` rows of PANEL numbers

// c [m, n] (+)= a [m, k] b [k, n]; rows of c have room for whole vectors.
void product(int64_t m, int64_t n, int64_t k, Left a, Right b, float* c, int64_t width, bool add) {
  for (int64_t p = 0; p < k; p += DEEP)
    for (int64_t j = 0; j < n; j += PANEL)
      strip<WIDE>(up(std::min(PANEL, n - j), W) / W, m, std::min(DEEP, k - p), a.at + p * a.along, a.down, a.along,
                  b.at + j * b.deep + p * PANEL, c + j, width, add || p > 0);
}

// A matrix [rows, columns] of an operand; its columns are neighbours in memory.
template <class X>
struct Matrix {
  X* at;
  int64_t down;
  X& operator()(int64_t i, int64_t j) const { return at[i * down + j]; }
  Matrix from_row(int64_t i) const { return {at + i * down, down}; }
};

template <class X>
void packed(Matrix<X> x, int64_t rows, int64_t columns, float* y) {
  for (int64_t j = 0; j < columns; j += PANEL)
    for (int64_t i = 0, w = std::min(PANEL, columns - j); i < rows; ++i, y += PANEL) {
      for (int64_t c = 0; c < w; ++c) y[c] = from(x(i, j + c));
      for (int64_t c = w; c < PANEL; ++c) y[c] = 0;
    }
}

template <class X>
void packed_transposed(Matrix<X> x, int64_t rows, int64_t columns, float* y) {
  for (int64_t j = 0; j < rows; j += PANEL)
    for (int64_t i = 0, w = std::min(PANEL, rows - j); i < columns; ++i, y += PANEL) {
      for (int64_t c = 0; c < w; ++c) y[c] = from(x(j + c, i));
      for (int64_t c = w; c < PANEL; ++c) y[c] = 0;
    }
}

template <class X>
float dot(const float* x, const X* y, int64_t n) {
  float parts[W] = {}, all = 0;
  int64_t i = 0;
  for (; i + W <= n; i += W)
    for (int64_t j = 0; j < W; ++j) parts[j] += x[i + j] * from(y[i + j]);
  for (; i < n; ++i) all += x[i] * from(y[i]);
  for (float part : parts) all += part;
  return all;
}

template <class X>
void read(Matrix<X> x, int64_t rows, int64_t columns, float* y, int64_t width) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < columns; ++c) y[i * width + c] = from(x(i, c));
}

template <class X>
void write(const float* x, int64_t width, int64_t rows, int64_t columns, Matrix<X> y) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < columns; ++c) to(x[i * width + c], y(i, c));
}

}  // namespace

// What a call is about. Operands are [batch, tokens, heads, width], with the strides of the first three.
struct Strides { int64_t batch, token, head; };
struct Call {
  int64_t batch, heads, kv_heads, queries, keys, width, value_width, threads;
  int64_t causal;  // query i sees no key after i
  Strides q, k, v, y, dy;
  int64_t mask_batch, mask_query;  // strides of mask [batch or 1, queries, keys]
};

namespace {

template <class X>
Matrix<X> of(X* x, Strides s, int64_t b, int64_t h) { return {x + b * s.batch + h * s.head, s.token}; }

Strides dense(int64_t tokens, int64_t heads, int64_t width) { return {tokens * heads * width, heads * width, width}; }

// The queries of a block, and the keys from `low`, a whole panel, to `high` that one of them sees.
struct Block { int64_t start, rows, low, high; };

struct Masked {
  const uint8_t* at;  // of the batch's first query; nothing where all is seen
  int64_t down, keys;
  bool causal;

  int64_t end(int64_t query) const { return causal ? std::min(keys, query + 1) : keys; }

  Block block(int64_t start, int64_t rows) const {
    int64_t low = 0, high = end(start + rows - 1);
    if (at) {
      int64_t first = high, last = 0;
      for (int64_t i = start; i < start + rows; ++i) {
        const uint8_t* seen = at + i * down;
        for (int64_t j = 0; j < first; ++j) if (seen[j]) first = j;
        for (int64_t j = end(i); j > last; --j) if (seen[j - 1]) last = j;
      }
      low = first / PANEL * PANEL;
      high = std::max(low, last);
    }
    return {start, rows, low, high};
  }

  // Scores of a query from key `low` on that it does not see become -inf, and of those after `high` to a whole vector:
  // from there on, which is 0 if it sees none, no key of the block is seen.
  int64_t hide(int64_t query, const Block& b, float* row) const {
    int64_t n = std::max<int64_t>(0, std::min(end(query), b.high) - b.low), whole = up(n, W);
    bool any = n > 0;
    if (at) {
      const uint8_t* seen = at + query * down + b.low;
      any = std::any_of(seen, seen + n, [](uint8_t x) { return x != 0; });
      for (int64_t j = 0; j < n; ++j) row[j] = seen[j] ? row[j] : NONE;
    }
    for (int64_t j = n; j < whole; ++j) row[j] = NONE;
    return any ? whole : 0;
  }
};

int64_t block_rows(int64_t queries) {  // blocks of one size, of whole strips
  int64_t blocks = (queries + BLOCK - 1) / BLOCK;
  return up((queries + blocks - 1) / blocks, ROWS);
}

template <class X>
void forward(const Call& c, const X* q, const X* k, const X* v, const uint8_t* mask, float scale, X* y, float* sums) {
  int64_t S = c.queries, T = c.keys, E = c.width, F = c.value_width, R = block_rows(S), group = c.heads / c.kv_heads;
  int64_t TP = up(T, PANEL) + W, FP = up(F, PANEL);  // rows of scores do not all begin in the same lines of a cache
  #pragma omp parallel num_threads(int(c.threads))
  {
    std::unique_ptr<float[]> room(new float[up(T, PANEL) * E + T * FP + R * (TP + E + FP)]);
    float *kt = room.get(), *vp = kt + up(T, PANEL) * E, *s = vp + T * FP, *qs = s + R * TP, *out = qs + R * E;
    #pragma omp for schedule(dynamic, 1)
    for (int64_t head = 0; head < c.batch * c.heads; ++head) {
      int64_t b = head / c.heads, h = head % c.heads;
      packed_transposed(of(k, c.k, b, h / group), T, E, kt);
      packed(of(v, c.v, b, h / group), T, F, vp);
      Masked masked{mask ? mask + b * c.mask_batch : nullptr, c.mask_query, T, c.causal != 0};
      for (int64_t start = 0; start < S; start += R) {
        Block x = masked.block(start, std::min(R, S - start));
        int64_t n = x.high - x.low;
        read(of(q, c.q, b, h).from_row(start), x.rows, E, qs, E);
        product(x.rows, n, E, {qs, E, 1}, {kt + x.low * E, E}, s, TP, false);
        float factors[BLOCK + ROWS];
        for (int64_t i = 0; i < x.rows; ++i) {
          float* row = s + i * TP;
          int64_t seen = masked.hide(start + i, x, row);
          V most = V{} + NONE, total{};
          for (int64_t j = 0; j < seen; j += W) {
            V z = load(row + j);
            most = z > most ? z : most;
          }
          float top = largest(most) * scale;
          for (int64_t j = 0; j < seen; j += W) {
            V p = exponential(load(row + j) * scale - top);
            store(row + j, p);
            total += p;
          }
          for (int64_t j = seen; j < n; ++j) row[j] = 0;
          float all = sum(total);
          factors[i] = seen ? 1 / all : 0;  // a query that sees nothing gets zeros
          sums[(b * c.heads + h) * S + start + i] = seen ? top + std::log(all) : 0;
        }
        product(x.rows, F, n, {s, TP, 1}, {vp + x.low * PANEL, T}, out, FP, false);
        if (n == 0) std::fill(out, out + x.rows * FP, 0.0f);
        for (int64_t i = 0; i < x.rows; ++i)
          for (int64_t f = 0; f < F; ++f) out[i * FP + f] *= factors[i];
        write(out, FP, x.rows, F, of(y, dense(S, c.heads, F), b, h).from_row(start));
      }
    }
  }
}

template <class X>
void backward(const Call& c, const X* dy, const X* q, const X* k, const X* v, const uint8_t* mask, const X* y,
              const float* sums, float scale, X* dq, X* dk, X* dv) {
  int64_t S = c.queries, T = c.keys, E = c.width, F = c.value_width, R = block_rows(S), group = c.heads / c.kv_heads;
  int64_t TP = up(T, PANEL) + W, TR = up(T, PANEL), EP = up(E, PANEL), FP = up(F, PANEL);
  #pragma omp parallel num_threads(int(c.threads))
  {
    std::unique_ptr<float[]> room(
        new float[TR * (E + F) + T * (2 * EP + FP) + R * (2 * TP + E + F + 2 * EP + FP)]);
    float *kt = room.get(), *vt = kt + TR * E, *kp = vt + TR * F, *ks = kp + T * EP, *vs = ks + T * EP;
    float *p = vs + T * FP, *d = p + R * TP, *qs = d + R * TP, *ys = qs + R * E;
    float *qp = ys + R * F, *qg = qp + R * EP, *yp = qg + R * EP;
    #pragma omp for schedule(dynamic, 1)
    for (int64_t pair = 0; pair < c.batch * c.kv_heads; ++pair) {
      int64_t b = pair / c.kv_heads, kv = pair % c.kv_heads;
      packed_transposed(of(k, c.k, b, kv), T, E, kt);
      packed_transposed(of(v, c.v, b, kv), T, F, vt);
      packed(of(k, c.k, b, kv), T, E, kp);
      std::fill(ks, ks + T * (EP + FP), 0.0f);
      Masked masked{mask ? mask + b * c.mask_batch : nullptr, c.mask_query, T, c.causal != 0};
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
        for (int64_t start = (S - 1) / R * R; start >= 0; start -= R) {  // first keys' largest terms come last
          Block x = masked.block(start, std::min(R, S - start));
          int64_t n = x.high - x.low;
          Matrix<const X> query = of(q, c.q, b, h).from_row(start), up_ = of(dy, c.dy, b, h).from_row(start),
                          was = of(y, c.y, b, h).from_row(start);
          read(query, x.rows, E, qs, E);
          read(up_, x.rows, F, ys, F);
          packed(query, x.rows, E, qp);
          packed(up_, x.rows, F, yp);
          product(x.rows, n, E, {qs, E, 1}, {kt + x.low * E, E}, p, TP, false);
          product(x.rows, n, F, {ys, F, 1}, {vt + x.low * F, F}, d, TP, false);
          for (int64_t i = 0; i < x.rows; ++i) {
            float *row = p + i * TP, *grad = d + i * TP, inner = dot(ys + i * F, &was(i, 0), F);
            float log_sum = sums[(b * c.heads + h) * S + start + i];
            int64_t seen = masked.hide(start + i, x, row);
            for (int64_t j = 0; j < seen; j += W) {
              V w = exponential(load(row + j) * scale - log_sum);
              store(row + j, w);
              store(grad + j, w * (load(grad + j) - inner) * scale);
            }
            for (int64_t j = seen; j < n; ++j) row[j] = grad[j] = 0;
          }
          product(n, F, x.rows, {p, 1, TP}, {yp, x.rows}, vs + x.low * FP, FP, true);
          product(n, E, x.rows, {d, 1, TP}, {qp, x.rows}, ks + x.low * EP, EP, true);
          product(x.rows, E, n, {d, TP, 1}, {kp + x.low * PANEL, T}, qg, EP, false);
          if (n == 0) std::fill(qg, qg + x.rows * EP, 0.0f);
          write(qg, EP, x.rows, E, of(dq, dense(S, c.heads, E), b, h).from_row(start));
        }
      write(ks, EP, T, E, of(dk, dense(T, c.kv_heads, E), b, kv));
      write(vs, FP, T, F, of(dv, dense(T, c.kv_heads, F), b, kv));
    }
  }
}

}  // namespace

#define FUNCTIONS(NAME, X)                                                                                         \
  extern "C" void NAME##_forward(const Call* c, const X* q, const X* k, const X* v, const uint8_t* mask,           \
                                 float scale, X* y, float* sums) {                                                 \
    forward(*c, q, k, v, mask, scale, y, sums);                                                                    \
  }                                                                                                                \
  extern "C" void NAME##_backward(const Call* c, const X* dy, const X* q, const X* k, const X* v,                  \
                                  const uint8_t* mask, const X* y, const float* sums, float scale, X* dq, X* dk,   \
                                  X* dv) {                                                                         \
    backward(*c, dy, q, k, v, mask, y, sums, scale, dq, dk, dv);                                                   \
  }

FUNCTIONS(float32, float)
FUNCTIONS(bfloat16, bf16)
