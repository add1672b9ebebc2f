// Runs what stdin asks for with the embedded kernels; the lines that it reads:
//
//   table                                  prints every entry, its code in hex
//   workspace ENTRY MAX_BATCH              prints bytes; ENTRY: an entry of the wanted config
//   run ENTRY DEVICE BATCH TOKENS BLOCKS SCALE WINDOW SOFTCAP POINTER...
//   threads ENTRY COUNT                    runs the same step in many threads at once

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <thread>

#include "launcher.h"

using namespace enginewright::attention;

namespace {

void print_table() {
    for (size_t at = 0; at < kEntryCount; ++at) {
        const Entry& e = kEntries[at];
        const Config& c = e.config;
        std::printf("entry %d %d %d %d %d %d %d %d %d %d %d %s %s %u %u %u %d ",
                    static_cast<int>(c.io), c.num_heads, c.kv_heads, c.head_dim, c.block_size,
                    static_cast<int>(c.cache), c.rotary_dim, c.interleaved, c.has_sinks,
                    c.has_softcap, static_cast<int>(e.kernel), e.capability, e.symbol, e.num_warps,
                    e.shared_bytes, e.hidden_pointers, e.rows);
        const auto* code = static_cast<const unsigned char*>(e.code);
        for (size_t byte = 0; byte < e.code_bytes; ++byte) std::printf("%02x", code[byte]);
        std::printf("\n");
    }
}

void run(Launcher& launcher, std::istream& line) {
    size_t entry = 0;
    std::string device;
    Shape shape{};
    Scalars scalars{};
    line >> entry >> device >> shape.batch >> shape.tokens >> shape.blocks >> scalars.scale >>
        scalars.window >> scalars.softcap;
    Pointers pointers{};
    for (auto& pointer : pointers) {
        uintptr_t address = 0;
        line >> address;
        pointer = reinterpret_cast<const void*>(address);
    }
    setenv("FAKE_DEVICE", device.c_str(), 1);
    try {
        launcher.run(kEntries[entry].config, shape, scalars, pointers,
                     reinterpret_cast<void*>(0x57));
    } catch (const std::exception& error) {
        std::printf("error %s\n", error.what());
    }
    std::printf("end\n");
}

void run_threads(Launcher& launcher, std::istream& line) {
    size_t entry = 0, count = 0;
    line >> entry >> count;
    setenv("FAKE_DEVICE", "0", 1);
    Pointers pointers;
    pointers.fill(reinterpret_cast<const void*>(0x100));
    std::vector<std::thread> threads;
    for (size_t at = 0; at < count; ++at)
        threads.emplace_back([&] {
            launcher.run(kEntries[entry].config, {1, 1, 4}, {1.0f, 0, 1.0f}, pointers, nullptr);
        });
    for (auto& thread : threads) thread.join();
    std::printf("end\n");
}

}  // namespace

int main() {
    auto launcher = Launcher::shared();
    std::string text, word;
    while (std::getline(std::cin, text)) {
        std::istringstream line(text);
        line >> word;
        if (word == "table") print_table();
        if (word == "run") run(*launcher, line);
        if (word == "threads") run_threads(*launcher, line);
        if (word == "workspace") {
            size_t entry = 0;
            int64_t max_batch = 0;
            line >> entry >> max_batch;
            std::printf("workspace %zu\n", workspace_bytes(kEntries[entry].config, max_batch));
        }
    }
    const auto again = Launcher::shared();
    std::printf("shared %d\n", again == launcher);
}
