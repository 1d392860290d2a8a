// Kernels of decoding that torch has none for: what is read once from memory is used for everything.
//
// Shapes: B rows, H heads, T cached tokens, W their width, of which the first R are values.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

constexpr int LANES = 16;
constexpr int HEADS = 8;    // in registers at a time
constexpr int BLOCK = 64;   // tokens at a time
constexpr int MAX_WIDTH = 256;
constexpr int MAX_PARTS = 64;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef double Doubles __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats load(const float* source) {
    Floats out;
    std::memcpy(&out, source, sizeof out);
    return out;
}

inline Floats load(const uint16_t* source) {  // bf16: the upper half of a float
    Halves halves;
    std::memcpy(&halves, source, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline float widen(float value) { return value; }

inline float widen(uint16_t value) {
    const uint32_t word = uint32_t(value) << 16;
    float out;
    std::memcpy(&out, &word, sizeof out);
    return out;
}

inline void store(float value, float* out) { *out = value; }

inline void store(float value, uint16_t* out) {  // rounded to nearest even
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    *out = uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

inline float sum(Floats values) {
    float out = 0;
    for (int lane = 0; lane < LANES; lane++) out += values[lane];
    return out;
}

// e^x for x <= 0, to 2e-7: 2^n times a polynomial on half an octave either side of it
inline Floats exponential(Floats x) {
    const Floats low = Floats{} - 87.0f;
    x = x > low ? x : low;
    const Floats scaled = x * 1.44269504f;
    const Ints n = __builtin_convertvector(scaled - 0.5f, Ints);  // towards zero: to nearest
    const Floats f = (scaled - __builtin_convertvector(n, Floats)) * 0.69314718f;
    Floats p = Floats{} + 1.9841270e-4f;
    for (const float c : {1.3888889e-3f, 8.3333333e-3f, 4.1666667e-2f, 1.6666667e-1f, 0.5f, 1.f, 1.f})
        p = p * f + c;
    return p * (Floats)((n + 127) << 23);
}

struct Partial {  // of HEADS heads over some tokens: unnormalised, relative to the largest logit
    Floats mixed[MAX_WIDTH / LANES][HEADS];
    Floats total, peak;  // twice: of even and of odd tokens, HEADS lanes each; peaks are equal
};

inline Floats swap_halves(Floats x) {
    return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}

// Logits of 8 tokens, two a vector; ``query`` has lanes (head, parity of w)
inline void score(const float* tokens, int W, const Floats* query, Floats* out) {
    Floats sums[8] = {};
    for (int w = 0; w < W; w += 2)
        for (int i = 0; i < 8; i++) {
            double pair;
            std::memcpy(&pair, tokens + i * W + w, sizeof pair);
            sums[i] += query[w / 2] * (Floats)Doubles{pair, pair, pair, pair, pair, pair, pair, pair};
        }
    for (int i = 0; i < 4; i++) {
        const Floats a = sums[2 * i], b = sums[2 * i + 1];
        out[i] = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
                 __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    }
}

template <typename T>
void attend(const T* queries, const T* cache, int num_heads, int W, int R, int begin, int end,
            Partial& out) {
    alignas(64) float query[MAX_WIDTH * HEADS] = {}, tokens[BLOCK * MAX_WIDTH];
    Floats weights[BLOCK / 2];
    for (int h = 0; h < num_heads; h++)
        for (int w = 0; w < W; w++)
            query[(w / 2 * HEADS + h) * 2 + w % 2] = widen(queries[h * W + w]);
    std::memset(&out, 0, sizeof out);
    out.peak -= INFINITY;
    for (int start = begin; start < end; start += BLOCK) {
        const int count = end - start < BLOCK ? end - start : BLOCK;
        const T* source = cache + int64_t(start) * W;
        for (int i = 0; i < count * W; i += LANES) {
            const Floats values = load(source + i);
            std::memcpy(tokens + i, &values, sizeof values);
        }
        if (count < BLOCK) std::memset(tokens + count * W, 0, (BLOCK - count) * W * sizeof(float));
        for (int i = 0; i < BLOCK; i += 8) {
            // of the next block, which the processor's own prefetching forgets meanwhile
            const char* ahead = reinterpret_cast<const char*>(source + (BLOCK + i) * W);
            for (int line = 0; line < int(8 * W * sizeof(T)); line += 64)
                __builtin_prefetch(ahead + line);
            score(tokens + i * W, W, reinterpret_cast<const Floats*>(query), weights + i / 2);
        }
        for (int i = count; i < BLOCK; i++)
            for (int h = 0; h < HEADS; h++) weights[i / 2][i % 2 * HEADS + h] = -INFINITY;
        Floats peak = out.peak;
        for (const Floats& w : weights) peak = w > peak ? w : peak;
        peak = swap_halves(peak) > peak ? swap_halves(peak) : peak;
        const Floats shrink = exponential(out.peak - peak);
        out.peak = peak;
        out.total *= shrink;
        for (Floats& w : weights) out.total += w = exponential(w - peak);
        for (int c = 0; c < R / LANES; c++) {
            Floats sums[HEADS];
            for (int h = 0; h < HEADS; h++) sums[h] = out.mixed[c][h] * shrink[h];
            const float* factors = reinterpret_cast<const float*>(weights);
            for (int i = 0; i < count; i++) {
                const Floats values = load(tokens + i * W + c * LANES);
                for (int h = 0; h < HEADS; h++) sums[h] += factors[i * HEADS + h] * values;
            }
            for (int h = 0; h < HEADS; h++) out.mixed[c][h] = sums[h];
        }
    }
    out.total += swap_halves(out.total);
}

// out (B, H, R) = softmax(queries · cacheᵀ) · cache; row b of cache has ``lengths[b]`` of C tokens
template <typename T>
void latent_attention(const T* queries, const T* cache, T* out, const int32_t* lengths, int B,
                      int H, int C, int W, int R) {
    const int groups = (H + HEADS - 1) / HEADS, threads = omp_get_max_threads();
    const int parts = B * groups >= 2 * threads ? 1 : std::min(threads, MAX_PARTS);
    std::vector<Partial> partials(B * groups * parts);
#pragma omp parallel for schedule(dynamic)
    for (int job = 0; job < B * groups * parts; job++) {
        const int part = job % parts, first = job / parts % groups * HEADS, b = job / parts / groups;
        const int heads = H - first < HEADS ? H - first : HEADS;
        attend(queries + (b * H + first) * W, cache + int64_t(b) * C * W, heads, W, R,
               int64_t(lengths[b]) * part / parts, int64_t(lengths[b]) * (part + 1) / parts,
               partials[job]);
    }
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++) {
            const Partial* all = &partials[(b * groups + h / HEADS) * parts];
            const int i = h % HEADS;
            float peak = -INFINITY, total = 0, share[MAX_PARTS];
            for (int part = 0; part < parts; part++) peak = std::fmax(peak, all[part].peak[i]);
            for (int part = 0; part < parts; part++) {
                share[part] = std::exp(all[part].peak[i] - peak);
                total += share[part] * all[part].total[i];
            }
            for (int r = 0; r < R; r++) {
                float mixed = 0;
                for (int part = 0; part < parts; part++)
                    mixed += share[part] * all[part].mixed[r / LANES][i][r % LANES];
                store(mixed / total, out + (b * H + h) * R + r);
            }
        }
}

template <typename T>
void rms_norm(const T* x, const float* weight, T* out, int N, int D, float eps) {
    for (int n = 0; n < N; n++, x += D, out += D) {
        float squares = 0;
        for (int d = 0; d < D; d++) squares += widen(x[d]) * widen(x[d]);
        const float inverse = 1 / std::sqrt(squares / D + eps);
        for (int d = 0; d < D; d++) store(widen(x[d]) * inverse * (weight ? weight[d] : 1), out + d);
    }
}

}  // namespace

extern "C" {

void latent_attention_fp32(const float* queries, const float* cache, float* out,
                           const int32_t* lengths, int B, int H, int C, int W, int R) {
    latent_attention(queries, cache, out, lengths, B, H, C, W, R);
}

void latent_attention_bf16(const uint16_t* queries, const uint16_t* cache, uint16_t* out,
                           const int32_t* lengths, int B, int H, int C, int W, int R) {
    latent_attention(queries, cache, out, lengths, B, H, C, W, R);
}

// out (N, D) = x / rms(x) · weight, in one thread: for few rows
void rms_norm_fp32(const float* x, const float* weight, float* out, int N, int D, float eps) {
    rms_norm(x, weight, out, N, D, eps);
}

void rms_norm_bf16(const uint16_t* x, const float* weight, uint16_t* out, int N, int D, float eps) {
    rms_norm(x, weight, out, N, D, eps);
}

// out (N) = scale · weight (N, K) · x (K), added to what is there if ``add``
void matvec_bf16(const uint16_t* weight, const uint16_t* x, uint16_t* out, int N, int K,
                 float scale, int add) {
#pragma omp parallel
    {
        std::vector<float> wide(K);
        for (int k = 0; k < K; k++) wide[k] = widen(x[k]);
#pragma omp for
        for (int n = 0; n < N; n++) {
            const uint16_t* row = weight + int64_t(n) * K;
            Floats sums[4] = {};
            int k = 0;
            for (; k + 4 * LANES <= K; k += 4 * LANES)
                for (int i = 0; i < 4; i++)
                    sums[i] += load(row + k + i * LANES) * load(&wide[k + i * LANES]);
            float dot = sum(sums[0] + sums[1] + sums[2] + sums[3]);
            for (; k < K; k++) dot += widen(row[k]) * wide[k];
            store(scale * dot + (add ? widen(out[n]) : 0), out + n);
        }
    }
}
}
