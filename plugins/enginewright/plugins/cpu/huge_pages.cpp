// Constants of a graph in huge pages; see huge_pages.h.

#include "huge_pages.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "fetch.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <cstdio>
#include <mutex>
#endif

namespace enginewright {

#if defined(__linux__)

namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kPage = 4096;
// Of memory that is asked for at a time; what is not written takes none.
constexpr size_t kChunk = 64 << 20;

uintptr_t round_up(uintptr_t value, uintptr_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

bool asked() {
    const char* value = std::getenv("ENGINEWRIGHT_HUGE_PAGES");
    return value && std::strcmp(value, "1") == 0;
}

// Whether the system says that the whole range was mapped from a file: its pages can be read again,
// since nobody writes weights.
bool is_of_file(uintptr_t begin, uintptr_t end) {
    std::FILE* maps = std::fopen("/proc/self/maps", "r");
    if (!maps) return false;
    char line[4608];
    bool found = false;
    while (!found && std::fgets(line, sizeof line, maps)) {
        unsigned long from = 0, to = 0, inode = 0;
        if (std::sscanf(line, "%lx-%lx %*s %*x %*s %lu", &from, &to, &inode) == 3)
            found = from <= begin && end <= to && inode != 0;
    }
    std::fclose(maps);
    return found;
}

void give_back(const void* data, size_t bytes) {
    const auto at = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = round_up(at, kPage), end = (at + bytes) / kPage * kPage;
    if (begin < end && is_of_file(begin, end))
        madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

struct Chunk {
    explicit Chunk(size_t bytes) : size(round_up(bytes, kHugePage) + kHugePage) {
        base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) return;
        at = round_up(reinterpret_cast<uintptr_t>(base), kHugePage);
        end = at + round_up(bytes, kHugePage);
        madvise(reinterpret_cast<void*>(at), end - at, MADV_HUGEPAGE);
    }
    ~Chunk() {
        if (base != MAP_FAILED) munmap(base, size);
    }
    Chunk(const Chunk&) = delete;
    Chunk& operator=(const Chunk&) = delete;

    size_t size;
    void* base;
    uintptr_t at = 0, end = 0;
};

Constant in_huge_pages(const void* data, size_t bytes) {
    static std::mutex mutex;
    static std::weak_ptr<Chunk> last;
    if (!data || bytes < kPage || !asked()) return {data, nullptr};
    const std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<Chunk> chunk = last.lock();
    const size_t room = round_up(bytes, kLine);
    if (!chunk || chunk->end - chunk->at < room)
        last = chunk = std::make_shared<Chunk>(std::max(room, kChunk));
    if (chunk->end - chunk->at < room) return {data, nullptr};
    void* to = reinterpret_cast<void*>(chunk->at);
    std::memcpy(to, data, bytes);
    chunk->at += room;
    give_back(data, bytes);
    return {to, chunk};
}

#else

struct Chunk {};

Constant in_huge_pages(const void* data, size_t) { return {data, nullptr}; }

#endif

}  // namespace enginewright
