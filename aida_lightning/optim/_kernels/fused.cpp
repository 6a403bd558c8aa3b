// One step of the family over all layers of a dtype, in at most two sweeps of the memory, or the
// sweeps singly (see fused.py).
//
// Letters, as in the paper: x parameter, g gradient, m and v the moving averages of the gradient
// and of the squared tracked vector d = alpha m + beta g, s the adaptive stepsize.
// The layers are cut into blocks, which the threads share. Sums are kept in double per block and
// added up in the blocks' order, so that they do not depend on the number of threads. A run of layers
// that a cache holds goes through all sweeps before the next run, so that the second sweep finds g
// and m there.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct Options {
    double lr, beta1, beta2, eps, second_eps, coupled, decoupled, sign;
    double alpha, beta, xi;  // alpha and beta, where all layers have the same
    double root_eps, tau;    // where the range of the stepsizes is suppressed
    int64_t k, track, layer_mean, suppresses_range, double_step, threads;
};

struct Layers {
    // Of each tensor, which may hold several layers.
    void** x;
    void** g;
    void** m;
    void** v;
    void** step;
    // Of each layer.
    const int64_t* owner;  // the tensor that holds it
    const int64_t* index;  // how many layers of the tensor are before it
    const int64_t* begin;  // and how many elements
    const int64_t* part;   // elements that are here
    const int64_t* whole;  // and of the whole layer, which may be spread over processes
    int64_t n, tensors;
};

namespace {

constexpr int64_t BLOCK = 1 << 14;
constexpr int64_t RUN = 1 << 19;  // elements: g and m of them are 4 MiB in float32
constexpr int64_t MANY = 1 << 8;  // layers whose few numbers are worth the start of threads
constexpr int SUMS = 5;           // <m, m>, <g, g>, <m, g>, and with r = m - g <r, r>, <r, g>

// What is asked for, any of them added up.
enum Sweeps { MOMENTUM = 1, UPDATE = 2, MOVE = 4 };
// Where alpha and beta come from (see tracking.py), and what is averaged over a layer.
enum Track { CONSTANT, MUTUAL_PROJECTION, PROJECTED_GRADIENT };
enum LayerMean { NONE, STATISTIC, STEPSIZE };
// What the second sweep does: it moves x, or gives the sum of s of each layer, or of v and of its
// squares and the least v, on which the stepsizes depend.
enum Then { MOVE_X, SUM_S, SUM_V };
// Of which vectors d is made.
enum Tracked { OF_BOTH, OF_M, OF_G };

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

// What sums that overflowed become (see rule.finite_sums).
constexpr double LARGEST = 3.4028234663852886e38, TINY = 1.1754943508222875e-38;
double finite(double sum) { return std::isinf(sum) ? std::copysign(LARGEST, sum) : sum; }
double norm(double square, double other, double product) {
    return std::isinf(square) ? std::max(product * product / std::max(other, TINY), LARGEST) : square;
}

// T: of x, g and m. S: of v and of the arithmetic.
template <class T, class S>
struct Step {
    const Layers& layers;
    const Options& options;
    double* sums;
    int64_t width;
    double* stepsizes;
    const std::vector<double> corrections1 = corrections(options.beta1);
    const std::vector<double> corrections2 = corrections(options.beta2);

    // Call body(layer, begin, count, sums) for each block of the layers from `first` until `last`,
    // and add up by layer the sums that it gives, `n` of them; the third of three is the least.
    template <int n, class Body>
    void each_block(int64_t first, int64_t last, double* totals, Body body) const {
        std::vector<int64_t> layer_of, begin_of;
        for (int64_t layer = first; layer < last; ++layer) {
            for (int64_t begin = 0; begin < layers.part[layer]; begin += BLOCK) {
                layer_of.push_back(layer);
                begin_of.push_back(begin);
            }
        }
        const int64_t blocks = layer_of.size();
        std::vector<double> of_blocks(n * blocks);
#pragma omp parallel for num_threads(options.threads) schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t layer = layer_of[block], begin = begin_of[block];
            const int64_t left = layers.part[layer] - begin;
            body(layer, begin, left < BLOCK ? left : BLOCK, of_blocks.data() + n * block);
        }
        for (int64_t block = 0; block < blocks; ++block) {
            double* of_layer = totals + n * layer_of[block];
            const double* of_block = of_blocks.data() + n * block;
            for (int i = 0; i < (n == 3 ? 2 : n); ++i) of_layer[i] += of_block[i];
            if constexpr (n == 3) of_layer[2] = std::min(of_layer[2], of_block[2]);
        }
    }

    template <class U>
    U* at(void** tensors, int64_t layer, int64_t begin) const {
        return static_cast<U*>(tensors[layers.owner[layer]]) + layers.begin[layer] + begin;
    }

    // 1 - beta^t of each tensor.
    std::vector<double> corrections(double beta) const {
        std::vector<double> of_tensors(layers.tensors);
        for (int64_t i = 0; i < layers.tensors; ++i) {
            const double t = options.double_step ? *static_cast<double*>(layers.step[i])
                                                 : double(*static_cast<float*>(layers.step[i]));
            of_tensors[i] = 1 - std::pow(beta, t);
        }
        return of_tensors;
    }

    double correction1(int64_t layer) const { return corrections1[layers.owner[layer]]; }
    double correction2(int64_t layer) const { return corrections2[layers.owner[layer]]; }

    double whole(int64_t layer) const { return layers.whole[layer] ? layers.whole[layer] : 1; }

    struct Coefficients {
        double alpha, beta;
    };

    Coefficients coefficients(int64_t layer) const {
        if (options.track == CONSTANT) return {options.alpha, options.beta};
        const double* of_layer = sums + width * layer;
        double m_dot_g = finite(of_layer[2]);
        double m_sq = norm(of_layer[0], finite(of_layer[1]), m_dot_g);
        double g_sq = norm(of_layer[1], finite(of_layer[0]), m_dot_g);
        if (options.track == PROJECTED_GRADIENT) return {m_dot_g / (m_sq + options.xi), 0};
        double of_m = 1, of_g = 1;
        for (int64_t j = 0; j < options.k; ++j) {
            const double a = m_dot_g / (g_sq + options.xi), b = m_dot_g / (m_sq + options.xi);
            const double old_of_m = of_m, old_m_sq = m_sq;
            of_m = a * of_g, of_g = b * old_of_m;
            // From the left, so that nothing in between exceeds both the old and the new value.
            m_sq = a * (a * g_sq), g_sq = b * (b * old_m_sq), m_dot_g = a * (b * m_dot_g);
        }
        if (options.k % 2) return {-of_g, of_m};
        return {of_m, -of_g};
    }

    // The squared norm of the tracked vector, put together from m - g (see UpdateRule.squares).
    double square(int64_t layer) const {
        const double* of_layer = sums + width * layer;
        for (int i = 0; i < SUMS; ++i) {
            if (std::isinf(of_layer[i])) return INFINITY;
        }
        const auto [alpha, beta] = coefficients(layer);
        const double both = alpha + beta;
        double square = both * both * of_layer[1];
        // 0 times the NaN of a momentum is NaN
        if (alpha) square += alpha * alpha * of_layer[3] + 2 * alpha * both * of_layer[4];
        return square < 0 ? 0 : square;
    }

    // m, and the sums over each layer.
    template <bool coupled, bool residual>
    void momentum(int64_t first, int64_t last) const {
        each_block<SUMS>(
            first, last, sums,
            [this](int64_t layer, int64_t begin, int64_t count, double* sums) {
                const T* x = at<T>(layers.x, layer, begin);
                const T* g = at<T>(layers.g, layer, begin);
                T* m = at<T>(layers.m, layer, begin);
                const S decay = S(options.coupled), sign = S(options.sign);
                const Lerp<S> lerp(options.beta1);
                double mm = 0, gg = 0, mg = 0, rr = 0;
#pragma omp simd reduction(+ : mm, gg, mg, rr)
                for (int64_t i = 0; i < count; ++i) {
                    S g_i = sign * S(g[i]);
                    if constexpr (coupled) g_i += decay * S(x[i]);
                    m[i] = T(lerp(S(m[i]), g_i));
                    const S m_i = S(m[i]);  // as rounded, for the other sweep reads it so
                    const double a = m_i, b = g_i;
                    mm += a * a;
                    gg += b * b;
                    mg += a * b;
                    if constexpr (residual) rr += (a - b) * (a - b);
                }
                // <m - g, g> as a difference, of which double leaves enough.
                sums[0] = mm, sums[1] = gg, sums[2] = mg, sums[3] = rr, sums[4] = mg - gg;
            });
    }

    // v and, unless sums over the layer are to be taken first, x; with `momentum_too` m as well, in
    // one sweep. Whatever a loop would have to ask is a template argument, so that it is vector code.
    template <bool momentum_too, Then then, bool coupled, Tracked tracked>
    void update(int64_t first, int64_t last) const {
        each_block<then == MOVE_X ? 0 : then == SUM_S ? 1 : 3>(
            first, last, stepsizes,
            [this](int64_t layer, int64_t begin, int64_t count, double* sums) {
                T* x = at<T>(layers.x, layer, begin);
                const T* g = at<T>(layers.g, layer, begin);
                T* m = at<T>(layers.m, layer, begin);
                S* v = at<S>(layers.v, layer, begin);
                const auto of_layer = coefficients(layer);
                const S alpha = S(of_layer.alpha), beta = S(of_layer.beta);
                const S decay = S(options.coupled), sign = S(options.sign), eps = S(options.eps);
                const Lerp<S> lerp(options.beta1);
                const S beta2 = S(options.beta2), weight = S(1 - options.beta2);
                const S unbias = S(1 / std::sqrt(correction2(layer)));
                const S scale = S(-options.lr / correction1(layer));
                const S second_eps = S(options.second_eps), shrink = S(1 - options.decoupled);
                double sum = 0, square = 0;
                S least = INFINITY;
                // What overflowed would become NaN, times 0.
                if (options.beta2 == 0) std::fill(v, v + count, S(0));
#pragma omp simd reduction(+ : sum, square) reduction(min : least)
                for (int64_t i = 0; i < count; ++i) {
                    const S x_i = S(x[i]);
                    S g_i = 0, m_i = S(m[i]);
                    if constexpr (tracked != OF_M) g_i = sign * S(g[i]);
                    if constexpr (tracked != OF_M && coupled) g_i += decay * x_i;
                    if constexpr (momentum_too) {
                        m_i = lerp(m_i, g_i);
                        m[i] = T(m_i);
                    }
                    S d = 0;  // m and g may be infinite, and 0 times them NaN
                    if constexpr (tracked != OF_G) d = alpha * m_i;
                    if constexpr (tracked != OF_M) d += beta * g_i;
                    const S v_i = beta2 * v[i] + (weight * d * d + eps);
                    v[i] = v_i;
                    if constexpr (then == SUM_V) {
                        const double wide = v_i;
                        sum += wide;
                        square += wide * wide;
                        least = v_i < least ? v_i : least;
                    } else {
                        const S s = 1 / (std::sqrt(v_i) * unbias + second_eps);
                        if constexpr (then == SUM_S) sum += s;
                        if constexpr (then == MOVE_X) x[i] = T(x_i * shrink + scale * (m_i * s));
                    }
                }
                if constexpr (then != MOVE_X) sums[0] = sum;
                if constexpr (then == SUM_V) sums[1] = square, sums[2] = least;
            });
    }

    // What makes the stepsizes of v, in place of the sums over the layer (see stepsizes.suppression).
    void suppress(int64_t layer) const {
        double* of_layer = stepsizes + 3 * layer;
        const double mean = of_layer[0] / whole(layer), square = of_layer[1] / whole(layer);
        const double root = mean / std::sqrt(square);
        const double cosine_sq = square == 0 || std::isinf(square) ? 1 : root * root;
        const double unscale = correction2(layer) / cosine_sq;
        const double inner = options.root_eps * unscale;
        const double least = std::isinf(of_layer[2]) ? LARGEST : of_layer[2];
        of_layer[0] = std::sqrt(unscale), of_layer[1] = inner;
        of_layer[2] = -options.tau * std::sqrt(least + inner);
    }

    // x, by stepsizes that the layer's three numbers make of v.
    void move_suppressed(int64_t first, int64_t last) const {
        const S shrink = S(1 - options.decoupled);
        each_block<0>(
            first, last, nullptr, [&](int64_t layer, int64_t begin, int64_t count, double*) {
                T* x = at<T>(layers.x, layer, begin);
                const T* m = at<T>(layers.m, layer, begin);
                const S* v = at<S>(layers.v, layer, begin);
                const double* of_layer = stepsizes + 3 * layer;
                const S inner = S(of_layer[1]), outer = S(of_layer[2]);
                const S scale = S(-options.lr / correction1(layer) * of_layer[0]);
#pragma omp simd
                for (int64_t i = 0; i < count; ++i) {
                    const S s = 1 / (std::sqrt(v[i] + inner) + outer);
                    x[i] = T(S(x[i]) * shrink + scale * (S(m[i]) * s));
                }
            });
    }

    // x, by the one stepsize of each layer.
    void move(int64_t first, int64_t last) const {
        const S shrink = S(1 - options.decoupled);
        each_block<0>(
            first, last, nullptr, [&](int64_t layer, int64_t begin, int64_t count, double*) {
                T* x = at<T>(layers.x, layer, begin);
                const T* m = at<T>(layers.m, layer, begin);
                const S scale = S(-options.lr / correction1(layer) * stepsizes[layer]);
#pragma omp simd
                for (int64_t i = 0; i < count; ++i) x[i] = T(S(x[i]) * shrink + scale * S(m[i]));
            });
    }

    // The averaged statistic of each layer, and the stepsize of it.
    void statistics(int64_t first, int64_t last) const {
#pragma omp parallel for num_threads(options.threads) schedule(static) if (last - first > MANY)
        for (int64_t layer = first; layer < last; ++layer) {
            S* v = static_cast<S*>(layers.v[layers.owner[layer]]) + layers.index[layer];
            const double old = options.beta2 ? options.beta2 * *v : 0;
            const double mean = square(layer) / whole(layer);
            const double statistic = old + (1 - options.beta2) * mean + options.eps;
            *v = S(statistic);
            stepsizes[layer] = 1 / std::sqrt(statistic / correction2(layer));
        }
    }

    template <Then then>
    void update(int64_t first, int64_t last) const {
        // The sums come first for what the coefficients depend on, and for nothing else.
        if (!sums) {
            options.alpha == 0 ? update<true, then, OF_G>(first, last)
                               : update<true, then, OF_BOTH>(first, last);
        } else {
            options.track == PROJECTED_GRADIENT ? update<false, then, false, OF_M>(first, last)
                                                : update<false, then, OF_BOTH>(first, last);
        }
    }

    template <bool momentum_too, Then then, Tracked tracked>
    void update(int64_t first, int64_t last) const {
        if (options.coupled) {
            update<momentum_too, then, true, tracked>(first, last);
        } else {
            update<momentum_too, then, false, tracked>(first, last);
        }
    }

    void run(int64_t sweeps, int64_t first, int64_t last) const {
        if (sweeps & MOMENTUM) {
            if (options.layer_mean == STATISTIC) {
                options.coupled ? momentum<true, true>(first, last)
                                : momentum<false, true>(first, last);
            } else {
                options.coupled ? momentum<true, false>(first, last)
                                : momentum<false, false>(first, last);
            }
        }
        const bool averages = options.layer_mean == STEPSIZE;
        if (sweeps & UPDATE) {
            if (options.layer_mean == STATISTIC) {
                statistics(first, last);
            } else if (options.suppresses_range) {
                update<SUM_V>(first, last);
            } else if (averages) {
                update<SUM_S>(first, last);
            } else {
                update<MOVE_X>(first, last);
            }
        }
        if (sweeps & UPDATE && sweeps & MOVE && options.layer_mean != STATISTIC) {
#pragma omp parallel for num_threads(options.threads) schedule(static) if (last - first > MANY)
            for (int64_t layer = first; layer < last; ++layer) {
                if (averages) stepsizes[layer] /= whole(layer);
                if (options.suppresses_range) suppress(layer);
            }
        }
        if (sweeps & MOVE) {
            options.suppresses_range ? move_suppressed(first, last) : move(first, last);
        }
    }

    void run(int64_t sweeps) const {
        for (int64_t first = 0, last = 0; first < layers.n; first = last) {
            int64_t size = layers.part[last++];
            while (last < layers.n && size + layers.part[last] <= RUN) size += layers.part[last++];
            run(sweeps, first, last);
        }
    }
};

}  // namespace

// `sums`: those of each layer, `width` numbers apart, where the members take them; the momentum
// sweep writes them, of width SUMS. `stepsizes`: one number per layer, where they are averaged, or
// three that make them of v; from the update sweep alone, what they depend on, over the local elements.
extern "C" void aida_step(
    int64_t dtype, int64_t sweeps, const Layers* layers, const Options* options, double* sums,
    int64_t width, double* stepsizes) {
    if (dtype == 0) Step<float, float>{*layers, *options, sums, width, stepsizes}.run(sweeps);
    if (dtype == 1) Step<double, double>{*layers, *options, sums, width, stepsizes}.run(sweeps);
    if (dtype == 2) Step<bfloat16, float>{*layers, *options, sums, width, stepsizes}.run(sweeps);
}
