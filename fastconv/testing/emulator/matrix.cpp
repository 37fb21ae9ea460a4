// Products of tiles: ldmatrix and mma.sync. Fragments as in the PTX ISA, section "Matrix multiply-accumulate".
#include "checks.hpp"
#include "hardware.hpp"
#include "product.hpp"

#include <cmath>
#include <cstring>

namespace emulator {

// ---------------------------------------------------------------- tensor cores' arithmetic

float widen_half(uint32_t bits) {
    uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023, whole;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
    whole = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float value;
    memcpy(&value, &whole, 4);
    return value;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

float element(Type type, const uint32_t* registers, unsigned index) {
    if (type == Type::tf32) return float_of(registers[index] & 0xffffe000u);
    uint32_t half = registers[index / 2] >> 16 * (index % 2) & 0xffffu;
    return type == Type::f16 ? widen_half(half) : float_of(half << 16);
}

static int exponent(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    return int(bits >> 52 & 2047) - 1023;
}

static double power_of_two(int exponent) {
    uint64_t bits = uint64_t(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

/// acc + sum of a[k] * b[k]: exact products, aligned to the largest addend and cut off below its 25th bit, summed
/// exactly, and the sum cut to float32. GPUs differ in the last bit and in how many products they align at a time.
/// Source: Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores" (2021).
template <unsigned K>
static float dot(float acc, const float* a, const float* b) {
    double products[K], largest = std::fabs(double(acc)), plain = acc;
    for (unsigned k = 0; k < K; ++k) {
        products[k] = double(a[k]) * double(b[k]);
        const double size = std::fabs(products[k]);
        largest = size > largest ? size : largest;
        plain += products[k];
    }
    if (largest == 0 || !std::isfinite(plain)) return float(plain);
    const int shift = 24 - exponent(largest);
    const double up = power_of_two(shift), down = power_of_two(-shift);
    int64_t sum = int64_t(double(acc) * up);
    for (unsigned k = 0; k < K; ++k) sum += int64_t(products[k] * up);
    const uint64_t size = sum < 0 ? -sum : sum;
    const int dropped = 40 - __builtin_clzll(size | 1);
    const double cut = double(dropped > 0 ? size >> dropped << dropped : size) * down;
    return float(sum < 0 ? -cut : cut);
}

template <unsigned K>
static void rows_by_columns(float* d, const float* a, const float* b, unsigned rows, unsigned columns) {
    for (unsigned i = 0; i < rows; ++i)
        for (unsigned j = 0; j < columns; ++j) d[i * columns + j] = dot<K>(d[i * columns + j], a + i * K, b + j * K);
}

void product(float* d, const float* a, const float* b, unsigned rows, unsigned columns, unsigned k) {
    if (k == 16) return rows_by_columns<16>(d, a, b, rows, columns);
    if (k == 8) return rows_by_columns<8>(d, a, b, rows, columns);
    fail({}, "a product over %u elements", k);
}

// ---------------------------------------------------------------- mma.sync

struct Fragments {
    void* d;
    const uint32_t *a, *b;
};

static const Fragments& of_lane(void* const* lanes, unsigned lane) {
    if (!lanes[lane]) fail({}, "mma by a warp of which lane %u has exited", lane);
    return *static_cast<const Fragments*>(lanes[lane]);
}

/// Where element (row, k) of a 16 x K matrix of fragments lies: lane and index in the lane's elements. A register holds
/// `pack` elements; registers go through both halves of the rows, then through both halves of k.
struct Spot {
    unsigned lane, index;
};
static Spot spot_a(unsigned row, unsigned k, unsigned pack) {
    unsigned chunk = k / (4 * pack);
    return {row % 8 * 4 + k / pack % 4, (row / 8 + 2 * chunk) * pack + k % pack};
}
static Spot spot_b(unsigned k, unsigned column, unsigned pack) {
    return {column * 4 + k / pack % 4, k / (4 * pack) * pack + k % pack};
}

template <Type TYPE, unsigned K>
static void perform_mma(void* const* lanes, unsigned) {
    constexpr unsigned PACK = TYPE == Type::tf32 ? 1 : 2;
    float a[16 * K], b[8 * K], d[16 * 8];
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned k = 0; k < K; ++k) {
            Spot spot = spot_a(row, k, PACK);
            a[row * K + k] = element(TYPE, of_lane(lanes, spot.lane).a, spot.index);
        }
    for (unsigned column = 0; column < 8; ++column)
        for (unsigned k = 0; k < K; ++k) {
            Spot spot = spot_b(k, column, PACK);
            b[column * K + k] = element(TYPE, of_lane(lanes, spot.lane).b, spot.index);
        }
    auto sums = [&](unsigned row, unsigned column) -> float& {
        return static_cast<float*>(of_lane(lanes, row % 8 * 4 + column / 2).d)[row / 8 * 2 + column % 2];
    };
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned column = 0; column < 8; ++column) d[row * 8 + column] = sums(row, column);
    rows_by_columns<K>(d, a, b, 16, 8);
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned column = 0; column < 8; ++column) sums(row, column) = d[row * 8 + column];
}

void mma(Type type, float* d, const uint32_t* a, const uint32_t* b, Site site) {
    Fragments mine{d, a, b};
    Perform perform = type == Type::f16    ? perform_mma<Type::f16, 16>
                      : type == Type::bf16 ? perform_mma<Type::bf16, 16>
                                           : perform_mma<Type::tf32, 8>;
    warp_collective("mma.sync", ~0u, perform, &mine, site);
}

void mma_half_k(Type type, float* d, const uint32_t* a, const uint32_t* b, Site site) {
    Fragments mine{d, a, b};
    warp_collective("mma.sync", ~0u, type == Type::f16 ? perform_mma<Type::f16, 8> : perform_mma<Type::bf16, 8>, &mine,
                    site);
}

struct Doubles {
    double *d, a, b;
};

void mma_f64(double* d, double a, double b, Site site) {
    Doubles mine{d, a, b};
    auto perform = [](void* const* lanes, unsigned) {
        auto lane = [&](unsigned i) -> Doubles& {
            of_lane(lanes, i);
            return *static_cast<Doubles*>(lanes[i]);
        };
        for (unsigned row = 0; row < 8; ++row)
            for (unsigned column = 0; column < 8; ++column) {
                double& sum = lane(row * 4 + column / 2).d[column % 2];
                for (unsigned k = 0; k < 4; ++k) sum = std::fma(lane(row * 4 + k).a, lane(column * 4 + k).b, sum);
            }
    };
    warp_collective("mma.sync", ~0u, perform, &mine, site);
}

template <bool A_SIGNED, bool B_SIGNED>
static void perform_int8(void* const* lanes, unsigned) {
    auto byte = [](const uint32_t* registers, unsigned index, bool is_signed) {
        uint32_t bits = registers[index / 4] >> 8 * (index % 4) & 255;
        return is_signed ? int(int8_t(bits)) : int(bits);
    };
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned column = 0; column < 8; ++column) {
            int& sum = static_cast<int*>(of_lane(lanes, row % 8 * 4 + column / 2).d)[row / 8 * 2 + column % 2];
            for (unsigned k = 0; k < 32; ++k) {
                Spot a = spot_a(row, k, 4), b = spot_b(k, column, 4);
                sum += byte(of_lane(lanes, a.lane).a, a.index, A_SIGNED) *
                       byte(of_lane(lanes, b.lane).b, b.index, B_SIGNED);
            }
        }
}

void mma_int8(int* d, const uint32_t* a, const uint32_t* b, bool a_signed, bool b_signed, Site site) {
    Fragments mine{d, a, b};
    Perform perform = a_signed ? (b_signed ? perform_int8<true, true> : perform_int8<true, false>)
                               : (b_signed ? perform_int8<false, true> : perform_int8<false, false>);
    warp_collective("mma.sync", ~0u, perform, &mine, site);
}

// ---------------------------------------------------------------- ldmatrix

struct Row {
    uint16_t elements[8];
    uint32_t* tiles;
};

template <unsigned COUNT, bool CROSSED>
static void perform_load(void* const* lanes, unsigned) {
    auto lane = [&](unsigned i) -> Row& {
        if (!lanes[i]) fail({}, "ldmatrix by a warp of which lane %u has exited", i);
        return *static_cast<Row*>(lanes[i]);
    };
    for (unsigned l = 0; l < WARP; ++l)
        for (unsigned tile = 0; tile < COUNT; ++tile) {
            unsigned outer = l / 4, inner = l % 4 * 2;
            uint32_t low = CROSSED ? lane(tile * 8 + inner).elements[outer] : lane(tile * 8 + outer).elements[inner];
            uint32_t high =
                CROSSED ? lane(tile * 8 + inner + 1).elements[outer] : lane(tile * 8 + outer).elements[inner + 1];
            lane(l).tiles[tile] = low | high << 16;
        }
}

void load_tiles(uint32_t* tiles, unsigned count, const void* row, bool crossed, Site site) {
    Row mine{{}, tiles};
    if (lane_number() < 8 * count) {  // the other lanes' addresses are not used
        if (reinterpret_cast<uintptr_t>(row) % 16) fail(site, "ldmatrix: the row at %p is not 16-byte aligned", row);
        if (!is_shared(row, 16)) fail(site, "ldmatrix: the row at %p is not in shared memory", row);
        checks::access(row, 16, checks::read, __builtin_return_address(0));
        memcpy(mine.elements, row, 16);
    }
    Perform perform[2][3] = {{perform_load<1, false>, perform_load<2, false>, perform_load<4, false>},
                             {perform_load<1, true>, perform_load<2, true>, perform_load<4, true>}};
    warp_collective("ldmatrix", ~0u, perform[crossed][count / 2], &mine, site);
}

}  // namespace emulator
