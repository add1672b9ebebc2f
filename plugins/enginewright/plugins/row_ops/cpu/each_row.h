// What the operators over rows share: rows in turns on the session's threads, outputs, and how such
// an operator is described.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels.h"
#include "operators.h"

namespace enginewright::row_ops {

// The best that may be used.
const Kernels& kernels(InstructionSet best);

std::shared_ptr<const Operator> top_logits_operator(InstructionSet instructions);

namespace {

// Numbers below which sharing them out takes longer than they do.
constexpr size_t kNumbersOfTask = 1 << 14;

// Calls run(row) for all rows of k numbers each, on the session's threads where there are many.
template <class Run>
ort::Status* each_row(const ort::Api& api, const ort::KernelContext* context, size_t rows, size_t k,
                      const Run& run) {
    struct Shared {
        const Run& run;
        size_t rows, of_task;
    } shared{run, rows, std::max<size_t>(1, kNumbersOfTask / k)};
    const auto task = [](void* argument, size_t at) {
        const auto& s = *static_cast<const Shared*>(argument);
        const size_t end = std::min(s.rows, (at + 1) * s.of_task);
        for (size_t row = at * s.of_task; row < end; ++row) s.run(row);
    };
    const size_t tasks = (rows + shared.of_task - 1) / shared.of_task;
    if (tasks > 1) return api.parallel_for(context, task, tasks, 0, &shared);
    if (tasks) task(&shared, 0);
    return nullptr;
}

// The memory of an output; null where nobody wants it.
template <class T>
ort::Status* open_output(const ort::Api& api, ort::KernelContext* context, size_t index,
                         const std::vector<int64_t>& shape, T** data) {
    ort::Value* value = nullptr;
    *data = nullptr;
    if (auto* status = api.output(context, index, shape.data(), shape.size(), &value))
        return status;
    return value ? api.data(value, reinterpret_cast<void**>(data)) : nullptr;
}

template <class Kernel, size_t kInputs, size_t kOutputs>
Operator describe(InstructionSet instructions) {
    Operator op = operator_of<Kernel>(instructions);
    op.input_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
    op.input_count = [](const ort::Operator*) { return kInputs; };
    op.input_characteristic = [](const ort::Operator*, size_t) { return ort::kRequired; };
    op.output_type = [](const ort::Operator*, size_t) { return ort::kFloat; };
    op.output_count = [](const ort::Operator*) { return kOutputs; };
    op.output_characteristic = [](const ort::Operator*, size_t index) {
        return index == 0 ? ort::kRequired : ort::kOptional;
    };
    return op;
}

}  // namespace
}  // namespace enginewright::row_ops
