// Steps put in flight and taken in, and stretches of them: steps.py, turns.py and stretches.py.
#include "replica.h"

#include <algorithm>

namespace gs {

void Replica::add(int64_t request, int64_t max_len) {
    scheduler.load_tokens += max_len;
    if (look_ahead_ == LookAhead::AT_START && is_in_flight()) held_.push_back(request);
    else scheduler.add(request);
}

void Replica::launch(double now_s, double horizon_s) {
    if (look_ahead_ == LookAhead::BEFORE_END) return launch_before_end(now_s);
    if (!held_.empty()) let_in(scheduler.is_idle() ? now_s : scheduled_s_);
    // Who is still held is let in after one more step.
    if (take(now_s, horizon_s, held_.empty() ? MAX_BULK_STEPS : 1)) return;
    while (true) {
        const Packed packed = scheduler.pack();
        if (packed.is_empty()) return;
        start(packed, now_s);
    }
}

void Replica::let_in(double seen_by_s) {
    Numbers seen, later;
    for (int64_t request : held_)
        (seen_s_[request] <= seen_by_s ? seen : later).push_back(request);
    const size_t count = seen.empty() || !wait_.is_on() ? seen.size() : num_let_in(seen);
    held_.assign(seen.begin() + static_cast<std::ptrdiff_t>(count), seen.end());
    held_.insert(held_.end(), later.begin(), later.end());
    for (size_t nth = 0; nth < count; ++nth) scheduler.add(seen[nth]);
}

// How many of the first of those seen need not wait for another step.
size_t Replica::num_let_in(const Numbers& seen) {
    const int64_t running = static_cast<int64_t>(scheduler.running().size());
    int64_t tokens = running;
    size_t count = 0;
    for (; count < seen.size(); ++count) {
        const int64_t prompt = scheduler.prompt_tokens(seen[count]);
        if (count && tokens + prompt > budget_) break;
        tokens += prompt;
    }
    tokens = std::min(tokens, budget_);
    if (running && num_waited_ < wait_.steps &&
        static_cast<double>(tokens) < wait_.share * static_cast<double>(budget_)) {
        ++num_waited_;
        return 0;
    }
    num_waited_ = 0;
    return count;
}

Numbers Replica::commit(double now_s) {
    if (look_s_ != NEVER_S) {
        look_s_ = NEVER_S;
        is_looking_ = true;
        return {};
    }
    if (look_ahead_ == LookAhead::BEFORE_END) {
        is_late_ |= now_s > flights_[0].finish_s;
        learn(now_s);
    }
    Flight flight = std::move(flights_.front());
    flights_.pop_front();
    if (!flight.is_step) return std::move(flight.ended);
    outlet_.stamp(log_.tokens, scheduler.outstanding.front().sampled, now_s);
    Numbers ended = scheduler.commit();
    log_.record(flight.segment, &flight.finish_s, 1, counts);
    ++counts.scheduled_steps;
    return ended;
}

double Replica::prepare(double now_s, double host_s) {
    host_free_s_ = std::max(now_s, host_free_s_) + host_s;
    return host_free_s_;
}

double Replica::send(double ready_s, const std::vector<double>& stage_s) {
    for (size_t stage = 0; stage < stage_s.size(); ++stage) {
        ready_s = std::max(ready_s, stages_free_s_[stage]) + stage_s[stage];
        stages_free_s_[stage] = ready_s;
    }
    has_run_ = true;
    return ready_s;
}

Started Replica::start(const Packed& packed, double now_s) {
    scheduler.launch(packed);
    const double begun_s = std::max(now_s, host_free_s_);
    const double host_s = times_.of(packed.shape, stage_s_.data());
    const double started_s = prepare(now_s, host_s);
    Flight& flight = flights_.emplace_back();
    flight.is_step = true;
    flight.finish_s = send(started_s, stage_s_);
    flight.segment = segment(packed.shape, begun_s, busy_s());
    return {started_s, host_s};
}

// -- stretches -------------------------------------------------------------------------------

bool Replica::take(double now_s, double horizon_s, int64_t most) {
    scheduled_s_ = now_s;
    if (is_in_flight() || scheduler.depth() > 1) return most > 1 && take_rounds(now_s, horizon_s);
    return take_steps(now_s, horizon_s, most);
}

bool Replica::take_steps(double now_s, double horizon_s, int64_t most) {
    double end_s = now_s;
    Numbers ended, sampled;
    std::vector<double> ends_s;
    const int64_t most_ended = stops_at_ends_ ? 1 : MAX_ENDED;
    while (end_s < horizon_s) {
        quiet_ends(end_s, horizon_s, most, ends_s);
        if (!ends_s.empty()) {
            const Numbers rows = scheduler.running();
            const Numbers own = scheduler.advance(static_cast<int64_t>(ends_s.size()));
            ended.insert(ended.end(), own.begin(), own.end());
            outlet_.stamp_each(log_.tokens, rows, ends_s);
            scheduled_s_ = ends_s.size() > 1 ? ends_s[ends_s.size() - 2] : end_s;
            end_s = ends_s.back();
        } else {
            const Packed packed = scheduler.pack();
            if (packed.is_empty()) break;
            const double host_s = times_.of(packed.shape, stage_s_.data());
            const Segment taken = segment(packed.shape, end_s, stage_s_[0]);
            const double step_end_s = end_s + host_s + stage_s_[0];
            scheduled_s_ = end_s;
            if (stops_at_ends_ && step_end_s > horizon_s) {
                // Whoever comes while it runs must find it running. Nobody has ended so far.
                start(packed, end_s);
                return true;
            }
            const Numbers own = scheduler.take(packed, sampled);
            ended.insert(ended.end(), own.begin(), own.end());
            outlet_.stamp(log_.tokens, sampled, step_end_s);
            log_.record(taken, &step_end_s, 1, counts);
            ++counts.scheduled_steps;
            end_s = step_end_s;
        }
        if (most == 1 || static_cast<int64_t>(ended.size()) >= most_ended) break;
    }
    if (end_s == now_s) return false;
    host_free_s_ = stages_free_s_[0] = end_s;
    Flight& flight = flights_.emplace_back();
    flight.finish_s = end_s;
    flight.ended = std::move(ended);
    return true;
}

void Replica::quiet_ends(double start_s, double horizon_s, int64_t most,
                         std::vector<double>& ends_s) {
    ends_s.clear();
    std::vector<double> own;
    for (const QuietRun& run : scheduler.quiet_steps(most)) {
        double busy_s = stretch(run.shape, start_s, run.count, horizon_s, own);
        const bool has_end = run.has_end && static_cast<int64_t>(own.size()) == run.count;
        if (has_end && stops_at_ends_ && own.back() > horizon_s) {
            // Someone arrives in the step that ends a request, and must find it running.
            if (own.size() == 1) break;
            busy_s = stretch(run.shape, start_s, run.count - 1, horizon_s, own);
        }
        const int64_t count = static_cast<int64_t>(own.size());
        ends_s.insert(ends_s.end(), own.begin(), own.end());
        log_.record(segment(run.shape, start_s, busy_s), own.data(), count, counts);
        start_s = own.back();
        if (count < run.count || start_s >= horizon_s || (has_end && stops_at_ends_)) break;
    }
}

double Replica::stretch(const Shape& shape, double start_s, int64_t count, double horizon_s,
                        std::vector<double>& ends_s) {
    const double host_s = times_.of(shape, stage_s_.data());
    const double first_s = host_s + stage_s_[0];
    double last_host_s = host_s, growth_s = 0.0;
    if (count > 1) {
        const Shape last = with_more_context(shape, (count - 1) * shape.num_seqs);
        last_host_s = times_.of(last, stage_s_.data());
        const double last_s = last_host_s + stage_s_[0];
        growth_s = (last_s - first_s) / static_cast<double>(count - 1);
    }
    ends_s.clear();
    for (int64_t nth = 1; nth <= count; ++nth) {
        const double taken = static_cast<double>(nth), grown = taken * (taken - 1) / 2;
        ends_s.push_back(start_s + first_s * taken + growth_s * grown);
        if (ends_s.back() >= horizon_s) break;
    }
    const double hosts_s = static_cast<double>(ends_s.size()) * (host_s + last_host_s) / 2;
    return ends_s.back() - start_s - hosts_s;
}

// -- rounds of a pipeline ---------------------------------------------------------------------

GroupSteps Replica::group_of(const Shape& shape, int64_t count) {
    GroupSteps group;
    group.shape = shape;
    group.first.resize(stage_s_.size());
    group.growth.assign(stage_s_.size(), 0.0);
    group.host_s = times_.of(shape, group.first.data());
    if (count > 1) {
        times_.of(with_more_context(shape, (count - 1) * shape.num_seqs), stage_s_.data());
        for (size_t stage = 0; stage < stage_s_.size(); ++stage)
            group.growth[stage] =
                (stage_s_[stage] - group.first[stage]) / static_cast<double>(count - 1);
    }
    return group;
}

void Replica::run_rounds(std::vector<GroupSteps>& groups, int64_t count, double now_s,
                         double horizon_s) {
    std::deque<double> finish_s;
    for (const Flight& flight : flights_) finish_s.push_back(flight.finish_s);
    for (int64_t nth = 0; nth < count; ++nth) {
        // The last launch of a round comes when the newest step in flight has ended.
        if (finish_s.back() >= horizon_s) return;
        for (size_t at = 0; at < groups.size(); ++at) {
            GroupSteps& group = groups[at];
            stage_s_ = group.first;
            if (nth)
                for (size_t stage = 0; stage < stage_s_.size(); ++stage)
                    stage_s_[stage] += static_cast<double>(nth) * group.growth[stage];
            const double started_s = prepare(now_s, group.host_s);
            const double end_s = send(started_s, stage_s_);
            finish_s.push_back(end_s);
            group.starts_s.push_back(started_s);
            group.ends_s.push_back(end_s);
            group.busy_s.push_back(busy_s());
            // The oldest step ends; its rows are those of the next group.
            now_s = finish_s.front();
            finish_s.pop_front();
            groups[(at + 1) % groups.size()].token_s.push_back(now_s);
        }
    }
}

bool Replica::take_rounds(double now_s, double horizon_s) {
    std::vector<Numbers> rows;
    std::vector<Shape> shapes;
    const int64_t most = std::min(scheduler.quiet_rounds(rows, shapes), MAX_BULK_STEPS);
    if (!most) return false;
    std::vector<GroupSteps> groups;
    for (const Shape& shape : shapes) groups.push_back(group_of(shape, most));
    run_rounds(groups, most, now_s, horizon_s);
    const int64_t count = static_cast<int64_t>(groups[0].ends_s.size());
    if (!count) return false;
    for (const Flight& flight : flights_) log_.record(flight.segment, &flight.finish_s, 1, counts);
    // In the order in which they come: a round's first group ends last.
    for (int64_t nth = 0; nth < count; ++nth)
        for (size_t at = 1; at <= groups.size(); ++at) {
            const size_t group = at % groups.size();
            outlet_.stamp(log_.tokens, rows[group], groups[group].token_s[nth]);
        }
    scheduler.advance_rounds(rows, count);
    record_group(groups[0], count);
    for (size_t nth = 1; nth < groups.size(); ++nth) record_group(groups[nth], count - 1);
    flights_.clear();
    flights_.emplace_back().finish_s = groups[0].token_s.back();
    for (size_t nth = 1; nth < groups.size(); ++nth) {
        const GroupSteps& group = groups[nth];
        const Shape shape = with_more_context(group.shape, (count - 1) * group.shape.num_seqs);
        Flight& flight = flights_.emplace_back();
        flight.is_step = true;
        flight.finish_s = group.ends_s.back();
        flight.segment = segment(shape, group.starts_s.back(), group.busy_s.back());
    }
    return true;
}

void Replica::record_group(const GroupSteps& group, int64_t count) {
    if (!count) return;
    double busy_s = 0.0;
    for (int64_t nth = 0; nth < count; ++nth) busy_s += group.busy_s[nth];
    log_.record(segment(group.shape, group.starts_s[0], busy_s), group.ends_s.data(), count,
                counts);
}

}  // namespace gs
