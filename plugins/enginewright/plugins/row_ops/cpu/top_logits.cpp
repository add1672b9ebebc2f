// TopLogits for ONNX Runtime: of rows of logits, what most requests need to choose a token.

#include <cmath>
#include <functional>
#include <limits>

#include "each_row.h"

namespace enginewright::row_ops {
namespace {

constexpr size_t kMost = 256;
constexpr size_t kKeptRows = 64;

struct Found {
    float logit;
    int32_t id;

    // The highest first; of equals the first token.
    bool operator<(const Found& other) const {
        return logit > other.logit || (logit == other.logit && id < other.id);
    }
};

// The `count` highest of n logits, in order; what is no number is passed over. Returns how many
// there are. `peaks` are those of every kPeak logits; `room` takes as many numbers.
size_t find_highest(const float* logits, size_t n, const float* peaks, float* room, size_t count,
                    Found* highest) {
    const size_t groups = (n + kPeak - 1) / kPeak;
    float least = -std::numeric_limits<float>::infinity();
    if (groups >= count) {  // so many groups have a logit that reaches this
        std::copy_n(peaks, groups, room);
        std::nth_element(room, room + count - 1, room + groups, std::greater<float>());
        least = room[count - 1];
    }
    size_t found = 0;
    for (size_t g = 0; g < groups; ++g) {
        if (!(peaks[g] >= least)) continue;
        for (size_t i = g * kPeak; i < std::min(n, (g + 1) * kPeak); ++i) {
            if (!(logits[i] >= least)) continue;
            if (found == 2 * kMost) {
                std::nth_element(highest, highest + count - 1, highest + found);
                least = highest[count - 1].logit;
                found = count;
            }
            highest[found++] = {logits[i], static_cast<int32_t>(i)};
        }
    }
    const size_t kept = std::min(found, count);
    if (found > count) std::nth_element(highest, highest + count - 1, highest + found);
    std::sort(highest, highest + kept);
    return kept;
}

class TopLogits {
  public:
    static constexpr const char* kName = "TopLogits";

    TopLogits(const void* table, const ort::KernelInfo* info, InstructionSet instructions)
        : api_(table), kernels_(kernels(instructions)) {
        read_attribute(api_, info, "k", &k_);
    }

    ort::Status* check() const {
        if (k_ > 0 && k_ <= static_cast<int64_t>(kMost)) return nullptr;
        return api_.create_status(ort::kInvalidArgument, "TopLogits: k must be from 1 to 256");
    }

    ort::Status* compute(ort::KernelContext* context) const {
        thread_local Tensor in;
        if (auto* status = read_input(api_, context, 0, &in)) return status;
        if (in.shape.size() != 2 || in.shape[1] <= 0 || in.shape[1] < k_)
            return api_.create_status(ort::kInvalidArgument,
                                      "TopLogits: logits must be [rows, at least k]");
        const size_t rows = static_cast<size_t>(in.shape[0]), n = static_cast<size_t>(in.shape[1]);
        const size_t k = static_cast<size_t>(k_), groups = (n + kPeak - 1) / kPeak;
        in.shape[1] = k_;
        float *top = nullptr, *normalizers = nullptr;
        int32_t* ids = nullptr;
        if (auto* status = open_output(api_, context, 0, in.shape, &top)) return status;
        if (auto* status = open_output(api_, context, 1, in.shape, &ids)) return status;
        in.shape.pop_back();
        if (auto* status = open_output(api_, context, 2, in.shape, &normalizers)) return status;
        thread_local std::vector<float> kept;
        std::vector<float> once;  // of a scored prompt, far more than steps over outputs need
        std::vector<float>& peaks_of_all = rows > kKeptRows ? once : kept;
        peaks_of_all.resize(rows * 2 * groups);
        float* const room = peaks_of_all.data();
        const float* logits = in.as<float>();
        return each_row(api_, context, rows, n, [&](size_t row) {
            const float* x = logits + row * n;
            float* peaks = room + row * 2 * groups;
            kernels_.peaks(x, n, peaks);
            Found highest[2 * kMost];
            const size_t found = find_highest(x, n, peaks, peaks + groups, k, highest);
            std::fill(highest + found, highest + k, Found{-INFINITY, 0});
            for (size_t i = 0; i < k; ++i) {
                top[row * k + i] = highest[i].logit;
                ids[row * k + i] = highest[i].id;
            }
            const double sum = kernels_.sum_of_exponentials(x, n, highest[0].logit);
            normalizers[row] = static_cast<float>(highest[0].logit + std::log(sum));
        });
    }

    const ort::Api& api() const { return api_; }

  private:
    ort::Api api_;
    const Kernels& kernels_;
    int64_t k_ = 0;
};

}  // namespace

std::shared_ptr<const Operator> top_logits_operator(InstructionSet instructions) {
    Operator made = describe<TopLogits, 1, 3>(instructions);
    made.output_type = [](const ort::Operator*, size_t index) {
        return index == 1 ? ort::kInt32 : ort::kFloat;
    };
    made.output_characteristic = [](const ort::Operator*, size_t) { return ort::kRequired; };
    return std::make_shared<const Operator>(made);
}

}  // namespace enginewright::row_ops
