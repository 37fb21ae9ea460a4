// wgmma: products by a warpgroup, of tiles in shared memory. Each warp sums its 16 of the 64 rows.
//
// A product is computed when its group is waited for, from what the tiles hold then; until then its sums read NaN.
#include "checks.hpp"
#include "product.hpp"

#include <cmath>
#include <cstring>
#include <vector>

namespace emulator {

struct Pending {
    Wgmma product;
    uint32_t group;
    bool hides;  // the first product under way of these sums, which keeps them
    std::vector<float> sums;
    const void* caller;
};

struct Products {
    std::vector<Pending> pending;
    uint32_t groups;
    bool fenced;
};

static Products products[MAX_THREADS];

void forget_products(unsigned threads) {
    for (unsigned i = 0; i < threads; ++i)
        products[i].pending.clear(), products[i].groups = 0, products[i].fenced = false;
}

/// Keeps the sums that a pending product starts from and leaves NaN in their registers.
static void hide(Products& mine, size_t i) {
    Pending& p = mine.pending[i];
    for (size_t before = 0; before < i; ++before)
        if (mine.pending[before].product.d == p.product.d) return;
    p.hides = true;
    p.sums.assign(p.product.d, p.product.d + p.product.n / 2);
    memset(p.product.d, 0xff, p.sums.size() * sizeof(float));
}

void wgmma(const Wgmma& product) {
    const void* caller = __builtin_return_address(0);
    Products& mine = products[thread_number()];
    if (!mine.fenced) checks::fail_at(caller, "wgmma without wgmma_fence before it");
    if (blockDim.x * blockDim.y * blockDim.z % 128)
        checks::fail_at(caller, "wgmma in a block that is no multiple of 128 threads");
    mine.pending.push_back({product, mine.groups, false, {}, caller});
    hide(mine, mine.pending.size() - 1);
}

void wgmma_fence() { products[thread_number()].fenced = true; }
void wgmma_commit() { products[thread_number()].groups++; }

// ---------------------------------------------------------------- tiles

/// Element (row, k) of a tile whose rows lie along the sum, or across it. PTX ISA, "Shared memory matrix layout".
static const char* find(uint64_t descriptor, bool crossed, unsigned row, unsigned k, unsigned bytes) {
    const uint32_t base = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
                   stride = (descriptor >> 32 & 0x3fff) << 4;
    constexpr unsigned SPANS[] = {16, 128, 64, 32};
    const unsigned span = SPANS[descriptor >> 62], chunk = 16 / bytes, wide = span / bytes;
    uint32_t offset;
    if (!crossed && span == 16) offset = row % 8 * 16 + row / 8 * stride + k / chunk * leading + k % chunk * bytes;
    else if (!crossed) offset = row % 8 * span + row / 8 * stride + k * bytes;
    else if (span == 16) offset = row % chunk * bytes + row / chunk * stride + k % 8 * 16 + k / 8 * leading;
    else offset = row % wide * bytes + row / wide * leading + k % 8 * span + k / 8 * stride;
    const uint32_t at = base + offset;
    return shared_pointer(at ^ (at >> 3 & (span - 16)));
}

static float element_at(const Pending& p, uint64_t descriptor, bool crossed, unsigned row, unsigned k) {
    const unsigned bytes = p.product.type == Type::tf32 ? 4 : 2;
    const char* at = find(descriptor, crossed, row, k, bytes);
    if (!is_shared(at, bytes))
        checks::fail_at(p.caller, "wgmma reads outside of shared memory, element (%u, %u) of a tile", row, k);
    checks::access(at, bytes, checks::async_read, p.caller);
    uint32_t word = 0;
    memcpy(&word, at, bytes);
    return element(p.product.type, &word, 0);
}

// ---------------------------------------------------------------- a warp's part

static Products& of_lane(void* const* lanes, unsigned lane) {
    if (!lanes[lane]) fail({}, "wgmma by a warp of which lane %u has exited", lane);
    return *static_cast<Products*>(lanes[lane]);
}

/// Of the first pending product of all lanes: d[16, n] (+)= a[16, K] * b[n, K].
static void compute(void* const* lanes, unsigned warp) {
    const Pending& first = of_lane(lanes, 0).pending.front();
    const Wgmma& product = first.product;
    const unsigned n = product.n, K = product.type == Type::tf32 ? 8 : 16, pack = 16 / K == 2 ? 1 : 2;
    std::vector<float> a(16 * K), b(n * K), d(16 * n);
    auto sums = [&](unsigned row, unsigned column) -> float& {
        return of_lane(lanes, row % 8 * 4 + column % 8 / 2)
            .pending.front()
            .product.d[column / 8 * 4 + row / 8 * 2 + column % 2];
    };
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned k = 0; k < K; ++k) {
            const Wgmma& holder = of_lane(lanes, row % 8 * 4 + k / pack % 4).pending.front().product;
            a[row * K + k] =
                product.a_in_registers
                    ? element(product.type, holder.registers, (row / 8 + 2 * (k / (4 * pack))) * pack + k % pack)
                    : element_at(first, product.a, product.a_crossed, 16 * (warp % 4) + row, k);
        }
    for (unsigned column = 0; column < n; ++column)
        for (unsigned k = 0; k < K; ++k) b[column * K + k] = element_at(first, product.b, product.b_crossed, column, k);
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned column = 0; column < n; ++column) d[row * n + column] = product.add ? sums(row, column) : 0;
    emulator::product(d.data(), a.data(), b.data(), 16, n, K);
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned column = 0; column < n; ++column) sums(row, column) = d[row * n + column];
}

static bool same(const Wgmma& a, const Wgmma& b) {
    return a.type == b.type && a.n == b.n && a.a == b.a && a.b == b.b && a.add == b.add &&
           a.a_in_registers == b.a_in_registers;
}

template <unsigned LATEST>
static void perform_wait(void* const* lanes, unsigned) {
    const unsigned warp = thread_number() / WARP;
    Products& first = of_lane(lanes, 0);
    while (!first.pending.empty() && first.pending.front().group + LATEST < first.groups) {
        for (unsigned lane = 0; lane < WARP; ++lane) {
            Products& mine = of_lane(lanes, lane);
            if (mine.pending.empty() || !same(mine.pending.front().product, first.pending.front().product))
                checks::fail_at(first.pending.front().caller,
                                "wgmma: lanes 0 and %u of a warp have issued different products", lane);
            Pending& p = mine.pending.front();
            if (p.hides) std::copy(p.sums.begin(), p.sums.end(), p.product.d);
        }
        compute(lanes, warp);
        for (unsigned lane = 0; lane < WARP; ++lane) {
            Products& mine = of_lane(lanes, lane);
            float* d = mine.pending.front().product.d;
            mine.pending.erase(mine.pending.begin());
            for (size_t i = 0; i < mine.pending.size(); ++i)
                if (mine.pending[i].product.d == d) {
                    hide(mine, i);
                    break;
                }
        }
    }
    checks::synchronise_warp(warp, ~0u);  // what the warp's products have read, any lane may release
}

void wgmma_wait(unsigned latest, Site site) {
    constexpr Perform PERFORM[] = {perform_wait<0>, perform_wait<1>, perform_wait<2>, perform_wait<3>,
                                   perform_wait<4>, perform_wait<5>, perform_wait<6>, perform_wait<7>};
    if (latest > 7) fail(site, "wgmma_wait<%u>: 0 to 7 are allowed", latest);
    warp_collective("wgmma_wait", ~0u, PERFORM[latest], &products[thread_number()], site);
}

}  // namespace emulator
