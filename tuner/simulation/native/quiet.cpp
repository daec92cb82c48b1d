// Quiet stretches, in which nothing but lengths changes: engine/scheduler/skipping.py.
#include <algorithm>

#include "scheduler.h"

namespace gs {

Shape Scheduler::decode_shape(const Numbers& some) const {
    const int64_t count = static_cast<int64_t>(some.size());
    int64_t context = count;
    for (int64_t row : some) context += rows_[row].num_computed;
    return decodes_of(mode_of(count), count, context);
}

int64_t Scheduler::steps_within_blocks(int64_t limit) const {
    int64_t low = 0, high = std::max<int64_t>(limit, 0);
    if (has_blocks_for(high)) return high;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        int64_t needed = 0;
        for (int64_t row : running_) needed += missing(rows_[row], middle);
        if (needed <= num_free_) low = middle;
        else high = middle - 1;
    }
    return low;
}

std::vector<QuietRun> Scheduler::quiet_steps(int64_t most) const {
    std::vector<QuietRun> found;
    const int64_t size = static_cast<int64_t>(running_.size());
    if (caps_.depth > 1 || !outstanding.empty() || !is_steady()) return found;
    if (size > caps_.max_num_batched_tokens) return found;
    if (!waiting_.empty() || !has_blocks_for(most)) {
        // When a row ends, a request may come in, or rows may take its blocks.
        int64_t until_end = most + 1;
        for (int64_t row : running_) until_end = std::min(until_end, rows_[row].left());
        const int64_t count = steps_within_blocks(std::min(until_end, most));
        if (count) found.push_back({decode_shape(running_), count, count == until_end});
        return found;
    }
    // Rows by their ends, and the computed tokens of each and of all that end no sooner.
    std::vector<std::pair<int64_t, int64_t>> rows;
    rows.reserve(size);
    for (int64_t row : running_) rows.push_back({rows_[row].left(), rows_[row].num_computed});
    std::sort(rows.begin(), rows.end());
    for (int64_t i = size - 2; i >= 0; --i) rows[i].second += rows[i + 1].second;
    int64_t done = 0, first = 0;
    while (first < size && done < most) {
        const int64_t num_rows = size - first, until_end = rows[first].first;
        const int64_t context = rows[first].second + num_rows * (done + 1);
        const int64_t count = std::min(until_end, most) - done;
        found.push_back(
            {decodes_of(mode_of(num_rows), num_rows, context), count, until_end <= most});
        done += count;
        while (first < size && rows[first].first <= done) ++first;
    }
    return found;
}

void Scheduler::advance_row(Row& row, int64_t count) {
    grow(row, missing(row, count));
    row.compute(count);
    row.num_tokens += count;
    row.num_known += count;
}

Numbers Scheduler::advance(int64_t num_steps) {
    std::vector<std::pair<int64_t, int64_t>> ends;
    for (int64_t number : running_) {
        Row& row = rows_[number];
        const int64_t left = row.left();
        if (left <= num_steps) ends.push_back({left, number});
        advance_row(row, std::min(left, num_steps));
    }
    // Stable: rows that end with the same step end in row order, as in single steps.
    std::stable_sort(ends.begin(), ends.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    Numbers ended;
    for (const auto& [left, number] : ends) ended.push_back(number);
    for (int64_t number : ended) end(number);
    return ended;
}

int64_t Scheduler::quiet_rounds(std::vector<Numbers>& groups, std::vector<Shape>& shapes) const {
    const int64_t size = static_cast<int64_t>(running_.size());
    if (caps_.depth == 1 || static_cast<int64_t>(outstanding.size()) != caps_.depth - 1) return 0;
    const int64_t most = std::min(share_of_running(), caps_.max_num_batched_tokens);
    int64_t held = 0;
    const auto fits = [&](const Numbers& rows) {
        const int64_t count = static_cast<int64_t>(rows.size());
        held += count;
        return count >= 1 && count <= most;
    };
    for (const Step& step : outstanding)
        if (!fits(step.rows) || step.sampled.size() != step.rows.size()) return 0;
    groups.assign(1, {});
    for (int64_t row : running_)
        if (!rows_[row].in_flight) groups[0].push_back(row);
    if (!fits(groups[0]) || held != size || !is_steady()) return 0;
    int64_t least = INT64_MAX;
    for (int64_t row : running_)
        // Rows in flight are counted one token ahead; the others have one round less to go.
        least = std::min(least, rows_[row].left() - (rows_[row].in_flight == 0));
    const int64_t count = steps_within_blocks(least);
    if (!count) return 0;
    for (const Step& step : outstanding) {
        // In running order, whatever order this step had.
        std::set<int64_t> own(step.rows.begin(), step.rows.end());
        Numbers& group = groups.emplace_back();
        for (int64_t row : running_) if (own.count(row)) group.push_back(row);
    }
    shapes.clear();
    for (const Numbers& group : groups) shapes.push_back(decode_shape(group));
    return count;
}

void Scheduler::advance_rounds(const std::vector<Numbers>& groups, int64_t count) {
    for (int64_t row : running_) advance_row(rows_[row], count);
    outstanding.clear();
    for (size_t nth = 1; nth < groups.size(); ++nth)
        outstanding.push_back({groups[nth], groups[nth]});
}

}  // namespace gs
