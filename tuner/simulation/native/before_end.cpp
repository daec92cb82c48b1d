// Steps that are queued one ahead, shortly before the running one ends: before_end.py.
#include <algorithm>

#include "replica.h"

namespace gs {

constexpr double HOST_DECAY = 0.9;

void Replica::launch_before_end(double now_s) {
    if (is_looking_) {
        is_looking_ = false;
        if (const Packed packed = scheduler.pack_ahead(); !packed.is_empty())
            submit(packed, now_s, true);
        return;
    }
    while (true) {
        const Packed packed = scheduler.pack();
        if (packed.is_empty()) break;
        submit(packed, now_s, false);
    }
    plan_look(now_s);
}

void Replica::submit(const Packed& packed, double now_s, bool is_queued) {
    const double free_s = stages_free_s_[0];
    const bool has_run = has_run_;
    const Started started = start(packed, now_s);
    host_s_ = std::max(started.host_s, host_s_ * HOST_DECAY);
    // A step sent to idle ranks waited for nothing after it was sent.
    const double waited_s =
        is_queued && has_run ? std::max(0.0, started.ready_s - free_s) : 0.0;
    places_.push_back({started.ready_s, is_queued ? NEVER_S : started.ready_s, waited_s});
}

// When to look ahead behind the oldest step: now, later, or not before it ends.
void Replica::plan_look(double now_s) {
    look_s_ = NEVER_S;
    is_late_ = false;
    if (flights_.empty()) return;
    now_s = std::max(now_s, host_free_s_);
    const double finish_s = flights_[0].finish_s, begin_s = ahead_at_s();
    if (begin_s <= now_s) {
        is_late_ = finish_s <= now_s;
        look_s_ = now_s;
    } else if (begin_s < finish_s) {
        look_s_ = begin_s;
    } else {
        is_late_ = true;
    }
}

// At once while steps like this one are unknown.
double Replica::ahead_at_s() const {
    const Shape& shape = flights_[0].segment.shape;
    const double expected_s = pace_[shape.mode].expected_s(shape.num_tokens());
    const double started_s = places_[0].started_s;
    if (pace_[shape.mode].count < MIN_SAMPLES || started_s == NEVER_S) return 0.0;
    return started_s + expected_s - ahead_lead_s(expected_s, host_s_);
}

// Learn the oldest step as the live loop times it: from when ranks had room for it.
void Replica::learn(double ended_s) {
    const Place place = places_.front();
    const Segment& segment = flights_[0].segment;
    places_.pop_front();
    if (is_late_) ended_s = std::min(ended_s, place.started_s + place.waited_s + segment.busy_s);
    const size_t behind = static_cast<size_t>(scheduler.depth() - 1);
    if (places_.size() > behind && places_[behind].started_s == NEVER_S)
        places_[behind].started_s = std::max(ended_s, places_[behind].submitted_s);
    pace_[segment.shape.mode].observe(segment.shape.num_tokens(),
                                      std::max(ended_s - place.started_s, 0.0));
}

}  // namespace gs
