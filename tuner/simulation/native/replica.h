// One replica in virtual time: steps in flight, stretches and turns (tuner/simulation).
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

#include "log.h"
#include "pace.h"
#include "scheduler.h"
#include "times.h"

namespace gs {

constexpr double NEVER_S = std::numeric_limits<double>::infinity();
constexpr int64_t MAX_BULK_STEPS = 64;
constexpr int64_t MAX_ENDED = 50;

// ``Flight``: a step in flight, or a stretch of steps that is committed already.
struct Flight {
    double finish_s;
    bool is_step = false;
    Segment segment{};
    Numbers ended;
};

// Steps of one group of rows in quiet rounds: ``GroupSteps`` of rounds.py.
struct GroupSteps {
    Shape shape;
    double host_s = 0.0;
    std::vector<double> first, growth, starts_s, ends_s, busy_s, token_s;
};

// How far ahead of its ranks a replica decides: ``LookAhead``.
enum class LookAhead : int64_t { NONE, AT_START, BEFORE_END };

// Prompts that are held back: prompt_wait.py.
struct PromptWait {
    int64_t steps;
    double share;

    bool is_on() const { return steps > 0 && share > 0.0; }
};

// When a step is ready for the ranks, and the host's seconds for it.
struct Started {
    double ready_s, host_s;
};

// ``_Place`` of before_end.py: a step in flight; it has not started while others fill the ranks.
struct Place {
    double submitted_s, started_s, waited_s;
};

// ``Turns`` of each kind.
class Replica {
public:
    Scheduler scheduler;
    Counts counts;

    Replica(int64_t number, std::vector<Row>& rows, const std::vector<double>& seen_s,
            const Caps& caps, const std::vector<ModeRange>& ranges, const Times& times, RunLog& log,
            int64_t num_modes, bool stops_at_ends, LookAhead look_ahead, const PromptWait& wait,
            double busy_s)
        : scheduler(rows, caps, ranges), number_(number), seen_s_(seen_s), times_(times),
          log_(log), stops_at_ends_(stops_at_ends), look_ahead_(look_ahead), wait_(wait),
          outlet_{busy_s}, budget_(caps.max_num_batched_tokens),
          stages_free_s_(caps.depth, 0.0), stage_s_(caps.depth, 0.0), pace_(num_modes) {
        counts.modes.resize(num_modes);
    }

    double next_event_s() const {
        if (look_s_ != NEVER_S) return look_s_;
        const double end_s = flights_.empty() ? NEVER_S : flights_[0].finish_s;
        // A result that comes while the host works is taken in after that work.
        return look_ahead_ == LookAhead::BEFORE_END ? std::max(end_s, host_free_s_) : end_s;
    }
    bool is_in_flight() const { return !flights_.empty(); }

    double take_in(double at_s, double seconds) { return outlet_.take_in(at_s, seconds); }
    void add(int64_t request, int64_t max_len);
    void launch(double now_s, double horizon_s);
    Numbers commit(double now_s);

private:
    int64_t number_;
    const std::vector<double>& seen_s_;
    const Times& times_;
    RunLog& log_;
    bool stops_at_ends_;
    LookAhead look_ahead_;
    PromptWait wait_;
    Outlet outlet_;
    int64_t budget_;
    int64_t num_waited_ = 0;
    std::deque<Flight> flights_;
    Numbers held_;
    double scheduled_s_ = 0.0;
    double host_free_s_ = 0.0;
    std::vector<double> stages_free_s_, stage_s_;
    // Of steps scheduled before the end: what was learned, and when to look ahead.
    std::vector<PaceLine> pace_;
    std::deque<Place> places_;
    double look_s_ = NEVER_S;
    double host_s_ = 0.0;
    bool is_looking_ = false, is_late_ = false, has_run_ = false;

    Segment segment(const Shape& shape, double start_s, double busy_s) const {
        return {number_,     shape,  0, 0, scheduler.num_waiting(), start_s, busy_s,
                scheduler.kv_usage()};
    }
    double busy_s() const {
        double sum = 0.0;
        for (double seconds : stage_s_) sum += seconds;
        return sum;
    }
    double prepare(double now_s, double host_s);
    double send(double ready_s, const std::vector<double>& stage_s);
    Started start(const Packed& packed, double now_s);
    void launch_before_end(double now_s);
    void submit(const Packed& packed, double now_s, bool is_queued);
    void plan_look(double now_s);
    double ahead_at_s() const;
    void learn(double ended_s);
    void let_in(double seen_by_s);
    size_t num_let_in(const Numbers& seen);

    bool take(double now_s, double horizon_s, int64_t most);
    bool take_steps(double now_s, double horizon_s, int64_t most);
    void quiet_ends(double start_s, double horizon_s, int64_t most, std::vector<double>& ends_s);
    double stretch(const Shape& shape, double start_s, int64_t count, double horizon_s,
                   std::vector<double>& ends_s);
    bool take_rounds(double now_s, double horizon_s);
    GroupSteps group_of(const Shape& shape, int64_t count);
    void run_rounds(std::vector<GroupSteps>& groups, int64_t count, double now_s,
                    double horizon_s);
    void record_group(const GroupSteps& group, int64_t count);
};

}  // namespace gs
