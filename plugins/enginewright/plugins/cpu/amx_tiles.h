// The registers of AMX while a kernel uses them: eight tiles of up to 16 rows by 64 bytes.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace enginewright {
namespace {

constexpr size_t kSide = 16;
constexpr size_t kTileBytes = 1024;

// The compiler is not told that tiles are loaded from memory: what is written has to be there.
[[gnu::always_inline]] inline void written_before() { asm volatile("" ::: "memory"); }

// Their shapes, for as long as it lives: tiles 0 to 3 are sums, 4 and 5 left factors, 6 and 7
// right ones.
class Tiles {
  public:
    struct Shape {
        size_t rows, bytes_of_row;
    };

    Tiles(Shape sums, Shape left, Shape right) {
        Config config;
        for (size_t i = 0; i < 8; ++i) {
            const Shape& shape = i < 4 ? sums : i < 6 ? left : right;
            config.rows[i] = static_cast<uint8_t>(shape.rows);
            config.bytes_of_row[i] = static_cast<uint16_t>(shape.bytes_of_row);
        }
        written_before();
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

  private:
    struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes_of_row[16] = {};
        uint8_t rows[16] = {};
    };
};

void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

}  // namespace
}  // namespace enginewright
