// Cutting a step into tasks; see plan.h.

#include "plan.h"

#include <algorithm>

namespace enginewright::attention {
namespace {

// New positions that one task writes to the cache.
constexpr size_t kWrittenTogether = 64;

size_t divided_up(size_t value, size_t by) { return (value + by - 1) / by; }

}  // namespace

void Plan::make(const Step& step, size_t rows_of_task, size_t parts) {
    writes.clear();
    tasks.clear();
    merges.clear();
    whole_.clear();
    work = 0;
    for (size_t row = 0; row < step.batch; ++row) add_row(step, row, rows_of_task);
    if (whole_.size() < parts)
        cut(step, parts);
    else
        tasks.swap(whole_);
}

// The last positions see the most keys: their tasks come first, so that none is left at the end.
void Plan::add_row(const Step& step, size_t row, size_t rows_of_task) {
    const size_t past = static_cast<size_t>(step.past_lengths[row]);
    const size_t count = static_cast<size_t>(step.new_lengths[row]);
    const size_t most = std::max<size_t>(1, rows_of_task / step.group());
    const size_t tiles = divided_up(count, most);
    for (size_t kv_head = 0; kv_head < step.kv_heads; ++kv_head) {
        for (size_t first = 0; count > 1 && first < count; first += kWrittenTogether)
            writes.push_back({row, kv_head, first, std::min(count, first + kWrittenTogether), 0, 0,
                              true, nullptr});
        for (size_t tile = tiles; tile-- > 0;) {
            const size_t first = count * tile / tiles, last = count * (tile + 1) / tiles;
            const size_t end = past + last, lowest = past + first + 1;
            const size_t start = step.window && lowest > step.window ? lowest - step.window : 0;
            whole_.push_back({row, kv_head, first, last, start / kChunk, divided_up(end, kChunk),
                              count == 1, nullptr});
            work += 2 * (last - first) * step.group() * step.head_dim * (end - start);
        }
    }
}

// A task becomes several, each over some of its chunks; the last of them sees what is written.
void Plan::cut(const Step& step, size_t parts) {
    const size_t pieces = divided_up(parts, std::max<size_t>(whole_.size(), 1));
    const auto width = [&](const Task& task) {
        return (task.last - task.first) * step.group() * step.partial_width();
    };
    size_t floats = 0;
    for (const Task& task : whole_)
        if (task.last_chunk - task.first_chunk > 1)
            floats += (task.last_chunk - task.first_chunk) * width(task);
    if (partials_.size() < floats) partials_.resize(floats);
    float* at = partials_.data();
    for (Task task : whole_) {
        const size_t chunks = task.last_chunk - task.first_chunk;
        const size_t cuts = std::min(pieces, chunks);
        if (cuts < 2) {
            tasks.push_back(task);
            continue;
        }
        task.partials = at;
        merges.push_back(task);
        for (size_t piece = 0; piece < cuts; ++piece) {
            Task part = task;
            part.first_chunk = task.first_chunk + chunks * piece / cuts;
            part.last_chunk = task.first_chunk + chunks * (piece + 1) / cuts;
            part.writes = task.writes && piece + 1 == cuts;
            part.partials = at + (part.first_chunk - task.first_chunk) * width(task);
            tasks.push_back(part);
        }
        at += chunks * width(task);
    }
}

}  // namespace enginewright::attention
