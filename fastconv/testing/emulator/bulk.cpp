// Barriers in shared memory (mbarrier) and bulk copies (TMA), tiled and im2col.
//
// What a copy brings is taken when it is issued, and lands when a thread sees the end of the barrier's phase.
#include "checks.hpp"
#include "hardware.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <unordered_map>
#include <vector>

namespace emulator {

// ---------------------------------------------------------------- mbarrier

struct Transfer {
    char* to;
    std::vector<char> data;
    bool bulk;
};

struct MBarrier {
    uint32_t arrivals, phase;               // of a phase; phases that have ended
    int64_t missing, bytes;                 // arrivals and bytes that this phase still waits for
    unsigned thread;                        // that initialised it
    bool visible;                           // to bulk copies
    std::vector<Transfer> coming, landing;  // in this phase; in phases that have ended, not seen by a thread yet
    checks::Clock clock, ended;
};

static std::unordered_map<const void*, MBarrier> barriers;

static MBarrier& find(const uint64_t* barrier, const void* caller) {
    auto found = barriers.find(barrier);
    if (found == barriers.end())
        checks::fail_at(caller, "the barrier at %p is used before barrier_init", static_cast<const void*>(barrier));
    checks::access(barrier, sizeof *barrier, checks::read, caller);
    return found->second;
}

void barrier_init(uint64_t* barrier, uint32_t arrivals) {
    const void* caller = __builtin_return_address(0);
    if (!is_shared(barrier, 8)) checks::fail_at(caller, "a barrier outside of shared memory");
    if (reinterpret_cast<uintptr_t>(barrier) % 8)
        checks::fail_at(caller, "misaligned: a barrier at %p", static_cast<void*>(barrier));
    if (!arrivals || arrivals >= 1u << 20)
        checks::fail_at(caller, "a barrier of %u arrivals: 1 to 2^20 - 1 are allowed", arrivals);
    checks::access(barrier, sizeof *barrier, checks::write, caller);
    MBarrier& b = barriers[barrier];
    b = {};
    b.arrivals = b.missing = arrivals;
    b.thread = thread_number();
}

static void end_phase(const uint64_t* key, MBarrier& b) {
    if (b.missing || b.bytes) return;
    b.phase++;
    b.missing = b.arrivals;
    std::move(b.coming.begin(), b.coming.end(), std::back_inserter(b.landing));
    b.coming.clear();
    b.ended = b.clock;
    checks::clear(b.clock);
    wake(key);
}

static void arrive(const uint64_t* barrier, MBarrier& b, const void* caller) {
    if (b.missing == 0) checks::fail_at(caller, "more than %u arrivals in one phase of a barrier", b.arrivals);
    checks::release(thread_number(), b.clock);
    b.missing--;
    end_phase(barrier, b);
}

void barrier_arrive(uint64_t* barrier) {
    const void* caller = __builtin_return_address(0);
    arrive(barrier, find(barrier, caller), caller);
}

void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    const void* caller = __builtin_return_address(0);
    MBarrier& b = find(barrier, caller);
    b.bytes += bytes;
    arrive(barrier, b, caller);
}

void copies_arrive(uint64_t* barrier) {
    const void* caller = __builtin_return_address(0);
    MBarrier& b = find(barrier, caller);
    Landing copy;
    while (take_copies(&copy, 1))
        b.coming.push_back({static_cast<char*>(copy.to), {copy.data, copy.data + copy.bytes}, false});
    arrive(barrier, b, caller);
}

void barrier_wait(uint64_t* barrier, uint32_t parity, Site site) {
    MBarrier* b = &find(barrier, __builtin_return_address(0));
    while ((b->phase & 1) == (parity & 1)) park("barrier_wait", barrier, site);
    for (const Transfer& transfer : b->landing) {
        memcpy(transfer.to, transfer.data.data(), transfer.data.size());
        checks::land(transfer.to, transfer.data.size(), transfer.bulk);
    }
    if (!b->landing.empty()) checks::release(thread_number(), b->ended);
    b->landing.clear();
    checks::acquire(thread_number(), b->ended);
}

void describe_barrier(const void* key, char* text, size_t size) {
    const MBarrier& b = barriers[key];
    snprintf(text, size, "(phase %u lacks %ld of %u arrivals and %ld bytes)", b.phase, long(b.missing), b.arrivals,
             long(b.bytes));
}

void async_fence() {
    checks::async_fence();
    for (auto& [key, b] : barriers)
        if (b.thread == thread_number()) b.visible = true;
}

// ---------------------------------------------------------------- loads

static void check_tile(const void* tile, size_t alignment, size_t bytes, const void* caller) {
    if (!is_shared(tile, bytes))
        checks::fail_at(caller, "a bulk copy of %zu bytes outside of shared memory, at %p", bytes, tile);
    if (shared_offset(tile) % alignment)
        checks::fail_at(caller, "misaligned: a tile of a bulk copy at %p, not a multiple of %zu", tile, alignment);
}

static void load(char* to, std::vector<char>&& data, uint64_t* barrier, const void* caller) {
    MBarrier& b = find(barrier, caller);
    if (!b.visible) checks::fail_at(caller, "no barrier_init_fence between barrier_init and a bulk copy");
    checks::access(to, data.size(), checks::start, caller);
    memset(to, 0xff, data.size());
    b.bytes -= data.size();
    b.coming.push_back({to, std::move(data), true});
    end_phase(barrier, b);
}

void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
    const void* caller = __builtin_return_address(0);
    if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
        checks::fail_at(caller, "misaligned: a bulk copy of %u bytes from %p", bytes, from);
    check_tile(to, 16, bytes, caller);
    checks::access(from, bytes, checks::read, caller);
    const char* data = static_cast<const char*>(from);
    load(static_cast<char*>(to), {data, data + bytes}, barrier, caller);
}

// ---------------------------------------------------------------- tensor maps

/// What tensor_map.py encodes, field by field. Axis 0 is the fastest.
struct Map {
    uint64_t address;
    uint64_t stride[5];  // bytes
    uint32_t size[5];
    uint16_t box[5];  // tiled
    uint8_t step[5];  // between elements of a box
    uint8_t rank, bytes, swizzle, im2col;
    uint8_t unused;
    int16_t lower[3], upper[3];  // im2col: corners of the box of pixels, along w, h, d
    uint16_t channels, pixels;
    uint32_t magic;
};
static_assert(sizeof(Map) <= 128);
constexpr uint32_t MAGIC = 0x7e4504a9;

static const Map& read_map(const void* map, unsigned rank, bool im2col, const void* caller) {
    const Map& m = *static_cast<const Map*>(map);
    if (m.magic != MAGIC) checks::fail_at(caller, "no tensor map at %p", map);
    if (m.rank != rank || m.im2col != im2col)
        checks::fail_at(caller, "%u coordinates, %s, for a tensor map of %u axes, %s", rank,
                        im2col ? "im2col" : "tiled", m.rank, m.im2col ? "im2col" : "tiled");
    return m;
}

/// The place of byte `linear` of a tile at `tile`: 16-byte chunks are permuted by the address of their row.
static uint32_t swizzled(uint32_t tile, uint32_t linear, unsigned span) {
    const uint32_t at = tile + linear;
    return (at ^ (at >> 3 & (span - 16))) - tile;
}

static size_t address_of(const Map& m, const int64_t* index, bool& inside) {
    size_t address = m.address;
    for (unsigned axis = 0; axis < m.rank; ++axis) {
        inside &= index[axis] >= 0 && index[axis] < m.size[axis];
        address += index[axis] * m.stride[axis];
    }
    return address;
}

/// Goes over a box: what(place in the tile, address in global memory or 0 outside of the array), element by element.
template <class F>
static void over_box(const Map& m, const int32_t* corner, uint32_t tile, F what) {
    uint32_t count[5], linear = 0;
    int64_t at[5] = {}, index[5];
    for (unsigned axis = 0; axis < m.rank; ++axis) count[axis] = (m.box[axis] + m.step[axis] - 1) / m.step[axis];
    for (unsigned axis = 0; axis < m.rank; linear += m.bytes) {
        bool inside = true;
        for (unsigned a = 0; a < m.rank; ++a) index[a] = corner[a] + at[a] * m.step[a];
        const size_t address = address_of(m, index, inside);
        what(swizzled(tile, linear, m.swizzle), inside ? reinterpret_cast<char*>(address) : nullptr);
        for (axis = 0; axis < m.rank && ++at[axis] == count[axis]; ++axis) at[axis] = 0;
    }
}

static size_t box_bytes(const Map& m) {
    size_t bytes = m.bytes;
    for (unsigned axis = 0; axis < m.rank; ++axis) bytes *= (m.box[axis] + m.step[axis] - 1) / m.step[axis];
    return bytes;
}

void box_load(void* to, const void* map, uint64_t* barrier, unsigned rank, const int32_t* corner) {
    const void* caller = __builtin_return_address(0);
    const Map& m = read_map(map, rank, false, caller);
    std::vector<char> data(box_bytes(m));
    check_tile(to, 128, data.size(), caller);
    over_box(m, corner, shared_offset(to), [&](uint32_t place, const char* from) {
        if (from) checks::access(from, m.bytes, checks::read, caller), memcpy(&data[place], from, m.bytes);
    });
    load(static_cast<char*>(to), std::move(data), barrier, caller);
}

void pixels_load(void* to, const void* map, uint64_t* barrier, unsigned rank, const int32_t* corner,
                 const uint16_t* tap) {
    const void* caller = __builtin_return_address(0);
    const Map& m = read_map(map, rank, true, caller);
    const unsigned axes = rank - 2;
    for (unsigned a = 0; a < axes; ++a)
        if (tap[a] >> 16 / axes)
            checks::fail_at(caller, "an offset of %u along axis %u of an im2col copy: below %u is allowed", tap[a], a,
                            1u << 16 / axes);
    std::vector<char> data(size_t(m.pixels) * m.channels * m.bytes);
    check_tile(to, 128, data.size(), caller);
    const uint32_t tile = shared_offset(to);
    int64_t base[5];
    std::copy(corner, corner + rank, base);
    for (uint32_t pixel = 0; pixel < m.pixels; ++pixel) {
        for (uint32_t c = 0; c < m.channels; ++c) {
            int64_t index[5] = {base[0] + c};
            for (unsigned a = 0; a < axes; ++a) index[1 + a] = base[1 + a] + tap[a];
            index[rank - 1] = base[rank - 1];
            bool inside = true;
            const char* from = reinterpret_cast<char*>(address_of(m, index, inside));
            if (!inside) continue;
            checks::access(from, m.bytes, checks::read, caller);
            memcpy(&data[swizzled(tile, (pixel * m.channels + c) * m.bytes, m.swizzle)], from, m.bytes);
        }
        unsigned a = 0;  // the next pixel of the box, along w, then h, d, and at last n
        for (; a < axes && (base[1 + a] += m.step[1 + a]) > int64_t(m.size[1 + a]) - 1 + m.upper[a]; ++a)
            base[1 + a] = m.lower[a];
        if (a == axes) base[rank - 1]++;
    }
    load(static_cast<char*>(to), std::move(data), barrier, caller);
}

// ---------------------------------------------------------------- stores

struct Piece {
    char* to;
    const char* from;
    uint32_t bytes;
};

/// A store reads shared memory when its group is waited for, at the latest time that it may.
struct Store {
    std::vector<Piece> pieces;
    std::vector<char> data;  // once read
    uint32_t group;
    bool was_read;
    const void* caller;
};

struct Stores {
    std::vector<Store> stores;
    uint32_t groups;
};

static Stores stores[MAX_THREADS];

void forget_bulk(unsigned threads) {
    barriers.clear();
    for (unsigned i = 0; i < threads; ++i) stores[i].stores.clear(), stores[i].groups = 0;
}

static void read(Store& store) {
    if (store.was_read) return;
    for (const Piece& piece : store.pieces) {
        checks::access(piece.from, piece.bytes, checks::async_read, store.caller);
        store.data.insert(store.data.end(), piece.from, piece.from + piece.bytes);
    }
    store.was_read = true;
}

static void write(const Store& store) {
    const char* data = store.data.data();
    for (const Piece& piece : store.pieces) {
        checks::access(piece.to, piece.bytes, checks::write, store.caller);
        memcpy(piece.to, data, piece.bytes);
        data += piece.bytes;
    }
}

static void add_store(std::vector<Piece>&& pieces, const void* caller) {
    Stores& mine = stores[thread_number()];
    mine.stores.push_back({std::move(pieces), {}, mine.groups, false, caller});
}

void bulk_store(void* to, const void* from, uint32_t bytes) {
    const void* caller = __builtin_return_address(0);
    if (bytes % 16 || reinterpret_cast<uintptr_t>(to) % 16)
        checks::fail_at(caller, "misaligned: a bulk copy of %u bytes to %p", bytes, to);
    check_tile(from, 16, bytes, caller);
    add_store({{static_cast<char*>(to), static_cast<const char*>(from), bytes}}, caller);
}

void box_store(const void* map, const void* from, unsigned rank, const int32_t* corner) {
    const void* caller = __builtin_return_address(0);
    const Map& m = read_map(map, rank, false, caller);
    check_tile(from, 128, box_bytes(m), caller);
    std::vector<Piece> pieces;
    over_box(m, corner, shared_offset(from), [&](uint32_t place, char* to) {
        if (to) pieces.push_back({to, static_cast<const char*>(from) + place, m.bytes});
    });
    add_store(std::move(pieces), caller);
}

void bulk_commit() { stores[thread_number()].groups++; }

void bulk_wait(unsigned latest, bool read_only) {
    Stores& mine = stores[thread_number()];
    size_t done = 0;
    for (; done < mine.stores.size() && mine.stores[done].group + latest < mine.groups; ++done) {
        read(mine.stores[done]);
        if (!read_only) write(mine.stores[done]);
    }
    if (!read_only) mine.stores.erase(mine.stores.begin(), mine.stores.begin() + done);
}

void exit_bulk() {
    for (const Store& store : stores[thread_number()].stores) {
        if (!store.was_read)
            checks::fail_at(store.caller,
                            "a thread exits before its bulk store has read shared memory: bulk_wait_read is missing");
        write(store);
    }
}

}  // namespace emulator
