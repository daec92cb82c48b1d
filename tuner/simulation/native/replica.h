// One replica in virtual time: steps in flight, stretches and turns (tuner/simulation).
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

#include "log.h"
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

// ``Turns``: scheduled at the end of the step before, or (``is_at_start``) as that starts.
class Replica {
public:
    Scheduler scheduler;
    Counts counts;

    Replica(int64_t number, std::vector<Row>& rows, const std::vector<double>& seen_s,
            const Caps& caps, const std::vector<ModeRange>& ranges, const Times& times, RunLog& log,
            int64_t num_modes, bool stops_at_ends, bool is_at_start)
        : scheduler(rows, caps, ranges), number_(number), seen_s_(seen_s), times_(times),
          log_(log), stops_at_ends_(stops_at_ends), is_at_start_(is_at_start),
          stages_free_s_(caps.depth, 0.0), stage_s_(caps.depth, 0.0) {
        counts.modes.resize(num_modes);
    }

    double next_event_s() const { return flights_.empty() ? NEVER_S : flights_[0].finish_s; }
    bool is_in_flight() const { return !flights_.empty(); }

    void add(int64_t request, int64_t max_len);
    void launch(double now_s, double horizon_s);
    Numbers commit(double now_s);

private:
    int64_t number_;
    const std::vector<double>& seen_s_;
    const Times& times_;
    RunLog& log_;
    bool stops_at_ends_, is_at_start_;
    std::deque<Flight> flights_;
    Numbers held_;
    double scheduled_s_ = 0.0;
    double host_free_s_ = 0.0;
    std::vector<double> stages_free_s_, stage_s_;

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
    void start(const Packed& packed, double now_s);
    void let_in(double seen_by_s);

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
