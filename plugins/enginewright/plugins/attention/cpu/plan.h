// How a step is cut into tasks for the session's threads. What is computed does not depend on it.
#pragma once

#include <vector>

#include "step.h"

namespace enginewright::attention {

class Plan {
  public:
    // What tasks must find written, unless they write it themselves.
    std::vector<Task> writes;
    std::vector<Task> tasks;
    // After them all: of those that were cut by chunks.
    std::vector<Task> merges;
    // Multiplications of the step, by which its size is judged.
    size_t work = 0;

    // `rows_of_task`: see Kernels. `parts`: tasks that there should be at least, where the step has
    // so much to do.
    void make(const Step& step, size_t rows_of_task, size_t parts);

  private:
    void add_row(const Step& step, size_t row, size_t rows_of_task);
    void cut(const Step& step, size_t parts);

    std::vector<Task> whole_;
    std::vector<float> partials_;
};

}  // namespace enginewright::attention
