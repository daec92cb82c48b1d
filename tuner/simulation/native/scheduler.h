// The scheduler of engine/scheduler for virtual time: rows, blocks, packing, quiet steps. KV blocks
// are counted, not named, since nothing is shared and nobody computes.
#pragma once

#include <cassert>
#include <cstdint>
#include <deque>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "times.h"

namespace gs {

using Numbers = std::vector<int64_t>;

// One request; its lengths are those of a row of ``SequenceTable`` while ``is_placed``.
struct Row {
    int64_t length = 0;  // tokens so far, while it waits
    int64_t max_len = 0;
    int64_t turn = 0;  // its place among those that arrived at the same replica
    int64_t num_computed = 0;
    int64_t overhang = 0;
    int64_t num_tokens = 0;
    int64_t num_known = 0;
    int64_t num_blocks = 0;
    int64_t in_flight = 0;
    bool is_placed = false;
    bool is_prefilling = false;
    bool is_ending = false;  // in the step that the one to pack will follow

    bool can_run() const { return num_tokens < max_len && in_flight <= is_ending; }
    int64_t left() const { return max_len - num_tokens; }
    void compute(int64_t count) { num_computed += count, overhang += count; }
    void end_prefill() { if (num_tokens - num_computed <= 1) is_prefilling = false; }
};

// Of steps that hold up to ``most`` tokens, those above the last range's are in ``mode``.
struct ModeRange {
    int64_t mode, most;
};

struct Caps {
    int64_t max_num_seqs, max_num_batched_tokens, num_blocks, block_size, depth, is_prefill_first;
};

struct Chunk {
    int64_t row, num_tokens, num_before;
    bool is_whole;
};

struct Packed {
    int64_t tokens = 0, used = 0;
    bool has_preempted = false;
    Shape shape;
    Numbers decodes;
    std::vector<Chunk> chunks;

    bool is_empty() const { return decodes.empty() && chunks.empty(); }
    bool holds(int64_t row) const {
        for (int64_t decode : decodes) if (decode == row) return true;
        for (const Chunk& chunk : chunks) if (chunk.row == row) return true;
        return false;
    }
};

struct Step {
    Numbers rows, sampled;
};

// ``QuietRun``.
struct QuietRun {
    Shape shape;
    int64_t count;
    bool has_end;
};

inline Shape decodes_of(int64_t mode, int64_t rows, int64_t context) {
    Shape shape;
    shape.mode = mode;
    shape.num_seqs = shape.num_decodes = shape.num_sampled = rows;
    shape.decode_context = context;
    return shape;
}

inline Shape with_more_context(Shape shape, int64_t tokens) {
    shape.decode_context += tokens;
    return shape;
}

class Scheduler {
public:
    int64_t load_tokens = 0;
    int64_t num_preemptions = 0;
    int64_t num_prefix_queries = 0;
    std::deque<Step> outstanding;

    Scheduler(std::vector<Row>& rows, const Caps& caps, const std::vector<ModeRange>& ranges)
        : rows_(rows), caps_(caps), ranges_(ranges), num_free_(caps.num_blocks) {}

    int64_t depth() const { return caps_.depth; }
    int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
    bool is_idle() const { return running_.empty() && waiting_.empty(); }
    double kv_usage() const {
        return 1.0 - static_cast<double>(num_free_) / static_cast<double>(caps_.num_blocks);
    }
    const Numbers& running() const { return running_; }
    // Of a request that waits to be added.
    int64_t prompt_tokens(int64_t row) const { return rows_[row].length; }
    bool could_run(int64_t max_len) const { return blocks_for(max_len) <= caps_.num_blocks; }

    void add(int64_t row) {
        rows_[row].turn = next_turn_++;
        waiting_.emplace(1, rows_[row].turn, row);
    }

    // ``Scheduler._pack``; empty while nothing can run.
    Packed pack();
    // The step of ``Scheduler.schedule_ahead``; empty where nothing can run ahead.
    Packed pack_ahead();
    // ``Scheduler._launch``.
    Step& launch(const Packed& packed);
    // ``SkippingScheduler.commit_lengths`` of the oldest step; the requests that end with it.
    Numbers commit();
    // ``SkippingScheduler.take``; ``sampled`` gets the rows that got a token.
    Numbers take(const Packed& packed, Numbers& sampled);

    std::vector<QuietRun> quiet_steps(int64_t most) const;
    Numbers advance(int64_t num_steps);
    // ``quiet_rounds``: how many there are (0: none), the groups of rows and their shapes.
    int64_t quiet_rounds(std::vector<Numbers>& groups, std::vector<Shape>& shapes) const;
    // ``advance_rounds``.
    void advance_rounds(const std::vector<Numbers>& groups, int64_t count);

private:
    std::vector<Row>& rows_;
    Caps caps_;
    const std::vector<ModeRange>& ranges_;
    int64_t num_free_;
    int64_t next_turn_ = 0;
    int64_t rotation_ = 0;
    int64_t num_prefilling_ = 0;
    Numbers running_;
    // Preempted ones first, each in the order in which they arrived.
    std::set<std::tuple<int, int64_t, int64_t>> waiting_;

    int64_t blocks_for(int64_t tokens) const {
        return (tokens + caps_.block_size - 1) / caps_.block_size;
    }
    int64_t missing(const Row& row, int64_t num_new) const {
        const int64_t beyond = row.overhang + num_new;
        return beyond > 0 ? blocks_for(beyond) : 0;
    }
    int64_t mode_of(int64_t tokens) const {
        for (const ModeRange& range : ranges_) if (tokens <= range.most) return range.mode;
        return ranges_.back().mode;
    }
    int64_t share_of_running() const {
        const int64_t size = static_cast<int64_t>(running_.size());
        return std::max<int64_t>(1, (size + caps_.depth - 1) / caps_.depth);
    }

    void grow(Row& row, int64_t blocks) {
        row.num_blocks += blocks;
        row.overhang -= blocks * caps_.block_size;
        num_free_ -= blocks;
        assert(num_free_ >= 0);
    }
    bool can_admit() const;
    bool is_steady() const { return !running_.empty() && !num_prefilling_ && !can_admit(); }
    void place(int64_t row);
    void drop(int64_t row);
    void end(int64_t row) {
        load_tokens -= rows_[row].max_len;
        drop(row);
    }
    void settle_prefill(Row& row) {
        const bool was = row.is_prefilling;
        row.end_prefill();
        num_prefilling_ -= was && !row.is_prefilling;
    }
    Numbers full_of(const Numbers& some) const {
        Numbers full;
        for (int64_t row : some)
            if (rows_[row].num_known >= rows_[row].max_len) full.push_back(row);
        return full;
    }

    Packed pack_once();
    void take_decodes(Packed& packed, Numbers ready);
    Numbers make_room_for_decodes(Packed& packed, Numbers ready);
    void take_prompts(Packed& packed, const Numbers& ready);
    void admit(Packed& packed);
    void take_chunk(Packed& packed, const Chunk& chunk);
    int64_t preempt_last(Packed& packed, int64_t keep);
    Shape shape_of(const Packed& packed) const;

    Shape decode_shape(const Numbers& some) const;
    bool has_blocks_for(int64_t num_steps) const {
        return static_cast<int64_t>(running_.size()) * (blocks_for(num_steps) + 1) <= num_free_;
    }
    int64_t steps_within_blocks(int64_t limit) const;
    void advance_row(Row& row, int64_t count);
};

}  // namespace gs
