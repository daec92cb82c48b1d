// Which rows a step holds: engine/scheduler/packing.py and the single steps of skipping.py.
#include <algorithm>

#include "scheduler.h"

namespace gs {

Packed Scheduler::pack() {
    if (static_cast<int64_t>(outstanding.size()) >= caps_.depth || is_idle()) return {};
    while (true) {
        Packed packed = pack_once();
        // All rows of this step's share may have been preempted; then others may fit.
        if (!packed.is_empty() || !packed.has_preempted || !outstanding.empty()) return packed;
    }
}

Packed Scheduler::pack_ahead() {
    if (static_cast<int64_t>(outstanding.size()) != caps_.depth) return {};
    const Numbers ending = outstanding.front().rows;
    for (int64_t row : ending) rows_[row].is_ending = true;
    int64_t needed = 0;
    for (int64_t number : running_)
        if (const Row& row = rows_[number]; row.can_run() && !row.is_prefilling)
            needed += missing(row, 1);
    // Where blocks are short nothing is preempted: some may end with the step that runs.
    Packed packed = needed <= num_free_ ? pack_once() : Packed();
    for (int64_t row : ending) rows_[row].is_ending = false;
    return packed;
}

Packed Scheduler::pack_once() {
    Packed packed;
    packed.tokens = caps_.max_num_batched_tokens;
    Numbers decodes, prefills;
    for (int64_t row : running_)
        if (rows_[row].can_run()) (rows_[row].is_prefilling ? prefills : decodes).push_back(row);
    if (caps_.is_prefill_first) {
        take_prompts(packed, prefills);
        if (packed.is_empty()) take_decodes(packed, std::move(decodes));
    } else {
        take_decodes(packed, std::move(decodes));
        take_prompts(packed, prefills);
    }
    if (!packed.is_empty()) packed.shape = shape_of(packed);
    return packed;
}

void Scheduler::take_decodes(Packed& packed, Numbers ready) {
    const int64_t limit = std::min(packed.tokens, share_of_running());
    if (const int64_t size = static_cast<int64_t>(ready.size()); size > limit) {
        std::rotate(ready.begin(), ready.begin() + rotation_ % size, ready.end());
        ready.resize(limit);
        rotation_ += limit;
    }
    if (ready.empty()) return;
    packed.decodes = make_room_for_decodes(packed, std::move(ready));
    for (int64_t row : packed.decodes)
        if (!rows_[row].overhang) grow(rows_[row], 1);
    const int64_t taken = static_cast<int64_t>(packed.decodes.size());
    packed.tokens -= taken;
    packed.used += taken;
}

Numbers Scheduler::make_room_for_decodes(Packed& packed, Numbers ready) {
    while (static_cast<int64_t>(ready.size()) > num_free_) {
        int64_t needed = 0;
        for (int64_t row : ready) needed += missing(rows_[row], 1);
        if (needed <= num_free_) break;
        const int64_t victim = preempt_last(packed, -1);
        if (victim < 0) {
            // Only rows in flight are left: run the first, as many as blocks allow.
            Numbers fitting;
            int64_t sum = 0;
            for (int64_t row : ready)
                if ((sum += missing(rows_[row], 1)) <= num_free_) fitting.push_back(row);
            return fitting;
        }
        ready.erase(std::remove(ready.begin(), ready.end(), victim), ready.end());
    }
    return ready;
}

void Scheduler::take_prompts(Packed& packed, const Numbers& ready) {
    for (int64_t number : ready) {
        Row& row = rows_[number];
        const int64_t before = row.num_computed, left = row.num_tokens - before;
        const int64_t tokens = std::min(left, std::max<int64_t>(packed.tokens, 0));
        if (tokens < 1) break;
        if (!row.is_placed) continue;  // preempted for an earlier one
        bool has_room = true;
        while (has_room && missing(row, tokens) > num_free_)
            has_room = preempt_last(packed, number) >= 0;
        if (has_room) take_chunk(packed, {number, tokens, before, tokens == left});
    }
    if (!packed.has_preempted) admit(packed);
}

void Scheduler::admit(Packed& packed) {
    while (packed.tokens >= 1 && can_admit()) {
        const int64_t number = std::get<2>(*waiting_.begin());
        waiting_.erase(waiting_.begin());
        place(number);
        const int64_t left = rows_[number].num_tokens, tokens = std::min(left, packed.tokens);
        take_chunk(packed, {number, tokens, 0, tokens == left});
    }
}

void Scheduler::take_chunk(Packed& packed, const Chunk& chunk) {
    Row& row = rows_[chunk.row];
    grow(row, missing(row, chunk.num_tokens));
    packed.chunks.push_back(chunk);
    packed.tokens -= chunk.num_tokens;
    packed.used += chunk.num_tokens;
}

bool Scheduler::can_admit() const {
    if (waiting_.empty() || static_cast<int64_t>(running_.size()) >= caps_.max_num_seqs)
        return false;
    int64_t promised = 0;
    if (num_prefilling_)
        for (int64_t number : running_)
            if (const Row& row = rows_[number]; row.is_prefilling)
                promised += std::max<int64_t>(0, blocks_for(row.num_tokens) - row.num_blocks);
    return blocks_for(rows_[std::get<2>(*waiting_.begin())].length) <= num_free_ - promised;
}

void Scheduler::place(int64_t number) {
    Row& row = rows_[number];
    row.num_tokens = row.num_known = row.length;
    row.num_computed = row.overhang = row.num_blocks = row.in_flight = 0;
    row.is_placed = true;
    row.is_prefilling = row.num_tokens > 1;
    num_prefilling_ += row.is_prefilling;
    num_prefix_queries += row.num_tokens;
    running_.push_back(number);
}

void Scheduler::drop(int64_t number) {
    Row& row = rows_[number];
    num_free_ += row.num_blocks;
    num_prefilling_ -= row.is_prefilling;
    row.num_blocks = row.overhang = 0;
    row.is_placed = row.is_prefilling = false;
    row.length = row.num_known;
    running_.erase(std::find(running_.begin(), running_.end(), number));
}

int64_t Scheduler::preempt_last(Packed& packed, int64_t keep) {
    for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
        const int64_t number = *it;
        if (number == keep) return -1;
        if (rows_[number].in_flight || packed.holds(number)) continue;
        drop(number);
        ++num_preemptions;
        packed.has_preempted = true;
        waiting_.emplace(0, rows_[number].turn, number);
        return number;
    }
    return -1;
}

Shape Scheduler::shape_of(const Packed& packed) const {
    Shape shape;
    shape.mode = mode_of(packed.used);
    shape.num_decodes = static_cast<int64_t>(packed.decodes.size());
    shape.num_sampled = shape.num_decodes;
    int64_t cached = 0, prefills = 0;
    for (int64_t row : packed.decodes) cached += rows_[row].num_computed;
    for (const Chunk& chunk : packed.chunks) {
        const int64_t fresh = chunk.num_tokens, before = chunk.num_before;
        shape.num_sampled += chunk.is_whole;
        if (fresh == 1) {
            ++shape.num_decodes;
            cached += before;
            continue;
        }
        ++prefills;
        shape.num_prefill += fresh;
        shape.prefill_context += fresh + before;
        shape.prefill_pairs += fresh * before + fresh * (fresh + 1) / 2;
    }
    shape.num_seqs = shape.num_decodes + prefills;
    shape.decode_context = cached + shape.num_decodes;
    return shape;
}

Step& Scheduler::launch(const Packed& packed) {
    Step& step = outstanding.emplace_back();
    step.rows = packed.decodes;
    step.sampled = packed.decodes;
    for (int64_t number : packed.decodes) {
        Row& row = rows_[number];
        row.compute(1);
        ++row.in_flight;
        ++row.num_tokens;
    }
    for (const Chunk& chunk : packed.chunks) {
        Row& row = rows_[chunk.row];
        row.compute(chunk.num_tokens);
        ++row.in_flight;
        row.num_tokens += chunk.is_whole;
        settle_prefill(row);
        step.rows.push_back(chunk.row);
        if (chunk.is_whole) step.sampled.push_back(chunk.row);
    }
    return step;
}

Numbers Scheduler::commit() {
    const Step step = std::move(outstanding.front());
    outstanding.pop_front();
    for (int64_t row : step.rows) --rows_[row].in_flight;
    for (int64_t row : step.sampled) ++rows_[row].num_known;
    Numbers ended = full_of(step.sampled);
    for (int64_t row : ended) end(row);
    return ended;
}

Numbers Scheduler::take(const Packed& packed, Numbers& sampled) {
    sampled = packed.decodes;
    for (int64_t number : packed.decodes) {
        Row& row = rows_[number];
        row.compute(1);
        ++row.num_tokens;
        ++row.num_known;
    }
    for (const Chunk& chunk : packed.chunks) {
        Row& row = rows_[chunk.row];
        row.compute(chunk.num_tokens);
        row.num_tokens += chunk.is_whole;
        row.num_known += chunk.is_whole;
        settle_prefill(row);
        if (chunk.is_whole) sampled.push_back(chunk.row);
    }
    Numbers ended = full_of(sampled);
    for (int64_t row : ended) end(row);
    return ended;
}

}  // namespace gs
