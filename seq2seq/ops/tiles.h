// Products of tiles, on CPUs with AMX.

#pragma once

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define WITH_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <type_traits>

#include "vectors.h"

namespace {

// Rows of a tile, each of as many words of 32 bits; and how many outputs are computed together: two tiles.
constexpr int64_t tile = 16, panel = 2 * tile;

#ifdef WITH_TILES

// Whether this process may use tiles: the system must be asked for permission, once.
inline bool has_amx() {
    constexpr long request = 0x1023, tile_data = 18;
    static const bool granted = syscall(SYS_arch_prctl, request, tile_data) == 0;
    return granted;
}

// Configures tiles for this many rows, for as long as the object lives.
class TileConfig {
  public:
    TileConfig(bool wanted, int64_t rows) : wanted(wanted) {
        if (!wanted) return;
        struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } layout;
        for (int number = 0; number < 8; number++) {
            layout.bytes[number] = 4 * tile;
            layout.rows[number] = uint8_t(number < 6 && 0 < rows && rows < tile ? rows : tile);
        }
        // Compilers do not know that the next instruction reads all of `layout`.
        __asm__ volatile("" : : "m"(layout) : "memory");
        _tile_loadconfig(&layout);
    }
    ~TileConfig() {
        if (wanted) _tile_release();
    }
    TileConfig(const TileConfig&) = delete;

  private:
    const bool wanted;
};

#define ADD_PRODUCTS(sums, x, weights)          \
    if constexpr (std::is_same_v<Row, uint8_t>) \
        _tile_dpbusd(sums, x, weights);         \
    else                                        \
        _tile_dpbf16ps(sums, x, weights);

// The products of sixteen rows, or with `two` of twice as many, with a panel, summed over inputs: [rows, panel].
template <bool two, class Row, class Sum>
void multiply_tiles(const Row* x, const uint32_t* weight, int64_t groups, Sum* found) {
    constexpr int64_t group = 4 / sizeof(Row), stride = 4 * panel;
    // Compilers do not know that tiles are loaded from rows that were just written.
    __asm__ volatile("" : : : "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < groups; i += tile) {
        _tile_loadd(4, x + tile * i * group, 4 * tile);
        _tile_loadd(6, weight + i * panel, stride);
        ADD_PRODUCTS(0, 4, 6)
        _tile_loadd(7, weight + i * panel + tile, stride);
        ADD_PRODUCTS(1, 4, 7)
        if constexpr (two) {
            _tile_loadd(5, x + tile * (groups + i) * group, 4 * tile);
            ADD_PRODUCTS(2, 5, 6)
            ADD_PRODUCTS(3, 5, 7)
        }
    }
    _tile_stored(0, found, stride);
    _tile_stored(1, found + tile, stride);
    if constexpr (two) {
        _tile_stored(2, found + tile * panel, stride);
        _tile_stored(3, found + tile * panel + tile, stride);
    }
    __asm__ volatile("" : : : "memory");
}

#undef ADD_PRODUCTS

#else

inline bool has_amx() { return false; }

struct TileConfig {
    TileConfig(bool, int64_t) {}
};

template <bool two, class Row, class Sum>
void multiply_tiles(const Row*, const uint32_t*, int64_t, Sum*) {}

#endif

}  // namespace
