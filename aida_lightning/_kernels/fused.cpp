// One step of the family over all layers of a dtype, in two sweeps of the memory (see fused.py).
//
// Letters, as in the paper: x parameter, g gradient, m and v the moving averages of the gradient
// and of the squared tracked vector d = alpha m + beta g, s the adaptive stepsize.
// The layers are cut into blocks, which the threads share. Sums are kept in double a block and added
// up in the blocks' order, so that they do not depend on the number of threads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct Options {
    double beta1, beta2, eps, second_eps, coupled, decoupled, sign;
    int64_t averages_stepsize, threads;
};

struct Layers {
    void** x;
    void** g;
    void** m;
    void** v;
    const int64_t* numel;
    const double* alpha;
    const double* beta;
    const double* correction2;  // 1 - beta2^t
    const double* scale;        // -lr / (1 - beta1^t)
    int64_t n;
};

namespace {

constexpr int64_t BLOCK = 1 << 14;

struct bfloat16 {
    uint16_t bits;
    operator float() const {
        uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
    bfloat16() = default;
    bfloat16(float value) {
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bool nan = (wide & 0x7fffffff) > 0x7f800000;
        bits = nan ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
    }
};

// As torch.lerp: from the nearer end, so that beta1 = 0 gives g itself.
template <class S>
struct Lerp {
    const bool from_m;
    const S rate;
    explicit Lerp(double beta1) : from_m(beta1 > 0.5), rate(from_m ? S(1 - beta1) : S(-beta1)) {}
    S operator()(S m, S g) const { return (from_m ? m : g) + rate * (g - m); }
};

// T: of x, g and m. S: of v and of the arithmetic.
template <class T, class S>
struct Step {
    const Layers& layers;
    const Options& options;

    // Call body(layer, begin, count, sums) for each block and add up the sums that it gives, `width`
    // of them, by layer.
    template <int width, class Body>
    void each_block(double* totals, Body body) const {
        std::vector<int64_t> layer_of, begin_of;
        for (int64_t layer = 0; layer < layers.n; ++layer) {
            for (int64_t begin = 0; begin < layers.numel[layer]; begin += BLOCK) {
                layer_of.push_back(layer);
                begin_of.push_back(begin);
            }
        }
        const int64_t blocks = layer_of.size();
        std::vector<double> sums(width * blocks);
#pragma omp parallel for num_threads(options.threads) schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t layer = layer_of[block], begin = begin_of[block];
            const int64_t left = layers.numel[layer] - begin;
            body(layer, begin, left < BLOCK ? left : BLOCK, &sums[width * block]);
        }
        for (int64_t block = 0; block < blocks; ++block) {
            for (int i = 0; i < width; ++i) {
                totals[width * layer_of[block] + i] += sums[width * block + i];
            }
        }
    }

    template <class U>
    static U* at(void** tensors, int64_t layer, int64_t begin) {
        return static_cast<U*>(tensors[layer]) + begin;
    }

    // m, and the sums <m, m>, <g, g>, <m, g>, <m - g, m - g>.
    template <bool coupled>
    void momentum(double* totals) const {
        each_block<4>(totals, [this](int64_t layer, int64_t begin, int64_t count, double* sums) {
            const T* x = at<T>(layers.x, layer, begin);
            const T* g = at<T>(layers.g, layer, begin);
            T* m = at<T>(layers.m, layer, begin);
            const S decay = S(options.coupled), sign = S(options.sign);
            const Lerp<S> lerp(options.beta1);
            double mm = 0, gg = 0, mg = 0, rr = 0;
#pragma omp simd reduction(+ : mm, gg, mg, rr)
            for (int64_t i = 0; i < count; ++i) {
                S gi = sign * S(g[i]);
                if constexpr (coupled) gi += decay * S(x[i]);
                m[i] = T(lerp(S(m[i]), gi));
                const S mi = S(m[i]);  // as rounded, for the other sweep reads it so
                const double a = mi, b = gi, r = a - b;
                mm += a * a;
                gg += b * b;
                mg += a * b;
                rr += r * r;
            }
            sums[0] = mm, sums[1] = gg, sums[2] = mg, sums[3] = rr;
        });
    }

    // v and, unless its mean is to be taken first, x. With `momentum_too` m as well, in one sweep.
    template <bool momentum_too, bool keep_x>
    void update(double* totals) const {
        each_block<1>(totals, [this](int64_t layer, int64_t begin, int64_t count, double* sums) {
            T* x = at<T>(layers.x, layer, begin);
            const T* g = at<T>(layers.g, layer, begin);
            T* m = at<T>(layers.m, layer, begin);
            S* v = at<S>(layers.v, layer, begin);
            const S decay = S(options.coupled), sign = S(options.sign);
            const Lerp<S> lerp(options.beta1);
            const S beta2 = S(options.beta2), weight = S(1 - options.beta2), eps = S(options.eps);
            const S second_eps = S(options.second_eps), shrink = S(1 - options.decoupled);
            const S alpha = S(layers.alpha[layer]), beta = S(layers.beta[layer]);
            const S unbias = S(1 / std::sqrt(layers.correction2[layer]));
            const S scale = S(layers.scale[layer]);
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < count; ++i) {
                const S xi = S(x[i]);
                const S gi = sign * S(g[i]) + decay * xi;
                S mi = S(m[i]);
                if constexpr (momentum_too) {
                    mi = lerp(mi, gi);
                    m[i] = T(mi);
                }
                const S d = alpha * mi + beta * gi;
                const S vi = beta2 * v[i] + (weight * d * d + eps);
                v[i] = vi;
                const S s = 1 / (std::sqrt(vi) * unbias + second_eps);
                if constexpr (keep_x) sum += s;
                if constexpr (!keep_x) x[i] = T(xi * shrink + scale * (mi * s));
            }
            sums[0] = sum;
        });
    }

    // x, by the one stepsize of each layer, which is in the scale.
    void move() const {
        const S shrink = S(1 - options.decoupled);
        each_block<0>(nullptr, [&](int64_t layer, int64_t begin, int64_t count, double*) {
            T* x = at<T>(layers.x, layer, begin);
            const T* m = at<T>(layers.m, layer, begin);
            const S scale = S(layers.scale[layer]);
#pragma omp simd
            for (int64_t i = 0; i < count; ++i) x[i] = T(S(x[i]) * shrink + scale * S(m[i]));
        });
    }

    void run(int64_t sweep, double* totals) const {
        if (sweep == 0) options.coupled ? momentum<true>(totals) : momentum<false>(totals);
        const bool keep_x = options.averages_stepsize;
        if (sweep == 1) keep_x ? update<false, true>(totals) : update<false, false>(totals);
        if (sweep == 2) keep_x ? update<true, true>(totals) : update<true, false>(totals);
        if (sweep == 3) move();
    }
};

}  // namespace

extern "C" void aida_sweep(
    int64_t dtype, int64_t sweep, const Layers* layers, const Options* options,
    double* totals) {
    if (dtype == 0) Step<float, float>{*layers, *options}.run(sweep, totals);
    if (dtype == 1) Step<double, double>{*layers, *options}.run(sweep, totals);
    if (dtype == 2) Step<bfloat16, float>{*layers, *options}.run(sweep, totals);
}
