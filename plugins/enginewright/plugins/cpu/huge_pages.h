// Constants of a graph in huge pages, where ENGINEWRIGHT_HUGE_PAGES asks for it.
//
// Weights that are mapped from a file lie in pages of 4 KB. One row of x reads them all, so that
// finding pages takes a good part of its time, most of all in a virtual machine. A copy in pages of
// 2 MB is found faster; it takes time to make, and is not shared with other processes.
#pragma once

#include <cstddef>
#include <memory>

namespace enginewright {

struct Chunk;

// Where a constant is: as it came, or a copy that lives as long as this.
struct Constant {
    const void* data = nullptr;
    std::shared_ptr<Chunk> copy;
};

// The constant in huge pages, or as it is: unless asked for, or where memory ran out. The pages of a
// file that it was mapped from are given back.
Constant in_huge_pages(const void* data, size_t bytes);

}  // namespace enginewright
