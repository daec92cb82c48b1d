// A workload under the scheduler in virtual time, without a steering: the twin of run.py, which is
// its oracle. Floating-point operations come in the same order, so that answers are equal.
#include <new>
#include <queue>
#include <vector>

#include "before_end.cpp"
#include "packing.cpp"
#include "quiet.cpp"
#include "replica.cpp"

namespace gs {

constexpr int64_t PROGRESS_REQUESTS = 50;

using OnProgress = int (*)(double now_s, int64_t num_over, int64_t num_requests);

// What Python tells; fields as in native_library.py.
struct Told {
    int64_t num_requests;
    const double* arrival_s;  // of clients' first requests in a closed loop
    const int64_t* input_tokens;
    const int64_t* output_tokens;
    int64_t is_closed;
    int64_t num_clients;
    double limit_s;
    double request_s, prompt_token_s, answer_s, busy_s;
    PromptWait prompt_wait;
    int64_t num_replicas, max_model_len, stops_at_ends;
    LookAhead look_ahead;
    Caps caps;
    int64_t num_modes, base_mode, num_ranges;
    const ModeRange* ranges;
    Times times;
    TokenLog tokens;
    double* sent_s;
    unsigned char* is_refused;
    OnProgress on_progress;
};

// What Python reads; it lives until ``gs_release``.
struct Outcome {
    void* run;
    int64_t num_sent, num_over, num_segments, num_ends;
    const Segment* segments;
    const double* ends_s;
    // [replica]: preemptions, tokens looked for in the prefix cache, mode switches, decode tokens
    // in base, scheduled steps; then steps of each mode.
    const int64_t* counts;
    const double* seconds;  // [replica][mode]
};

struct Run {
    Outcome outcome{};
    RunLog log;
    Numbers counts;
    std::vector<double> seconds;

    explicit Run(const Told& told) : log{told.tokens, {}, {}, told.base_mode}, told_(told) {
        ranges_.assign(told.ranges, told.ranges + told.num_ranges);
        rows_.resize(told.num_requests);
        seen_s_.resize(told.num_requests, NEVER_S);
        for (int64_t i = 0; i < told.num_requests; ++i) {
            rows_[i].length = told.input_tokens[i];
            rows_[i].max_len = told.input_tokens[i] + told.output_tokens[i];
        }
        for (int64_t i = 0; i < told.num_replicas; ++i)
            replicas_.emplace_back(i, rows_, seen_s_, told.caps, ranges_, told.times, log,
                                   told.num_modes, told.stops_at_ends, told.look_ahead,
                                   told.prompt_wait, told.busy_s);
        const int64_t first = told.is_closed ? told.num_clients : told.num_requests;
        for (int64_t i = 0; i < first; ++i) send_next(told.arrival_s[i]);
    }

    void to_the_end() {
        while (true) {
            Replica& replica = *std::min_element(
                replicas_.begin(), replicas_.end(), [](const Replica& a, const Replica& b) {
                    return a.next_event_s() < b.next_event_s();
                });
            const double arrival_s = next_s(), end_s = replica.next_event_s();
            if (std::min(arrival_s, end_s) == NEVER_S) return;
            if (arrival_s <= end_s) {
                admit_until(arrival_s);
                launch(arrival_s, nullptr);
            } else {
                finish_step(replica, end_s);
            }
        }
    }

    void finish() {
        outcome.run = this;
        for (const Replica& replica : replicas_) {
            const Counts& own = replica.counts;
            counts.insert(counts.end(), {replica.scheduler.num_preemptions,
                                         replica.scheduler.num_prefix_queries, own.mode_switches,
                                         own.decode_tokens_in_base, own.scheduled_steps});
            for (const ModeCount& mode : own.modes) {
                counts.push_back(mode.steps);
                seconds.push_back(mode.seconds);
            }
        }
        outcome.num_sent = next_;
        outcome.num_over = num_over_;
        outcome.num_segments = static_cast<int64_t>(log.segments.size());
        outcome.num_ends = static_cast<int64_t>(log.ends_s.size());
        outcome.segments = log.segments.data();
        outcome.ends_s = log.ends_s.data();
        outcome.counts = counts.data();
        outcome.seconds = seconds.data();
    }

private:
    const Told& told_;
    std::vector<ModeRange> ranges_;
    std::vector<Row> rows_;
    std::vector<double> seen_s_;
    std::deque<Replica> replicas_;
    // Requests on their way, by when they come to the process that takes them in, and then by when
    // the scheduler sees them.
    std::priority_queue<std::pair<double, int64_t>, std::vector<std::pair<double, int64_t>>,
                        std::greater<>>
        on_the_way_;
    int64_t next_ = 0, num_over_ = 0;

    double next_s() const { return on_the_way_.empty() ? NEVER_S : on_the_way_.top().first; }

    void send_next(double now_s) {
        const int64_t number = next_++;
        told_.sent_s[number] = now_s;
        if (told_.busy_s > 0.0) on_the_way_.push({now_s, number});
        else see(number, now_s + seconds_in(number));
    }

    double seconds_in(int64_t number) const {
        const double tokens = static_cast<double>(told_.input_tokens[number]);
        return told_.request_s + told_.prompt_token_s * tokens;
    }

    void see(int64_t number, double seen_s) {
        seen_s_[number] = seen_s;
        on_the_way_.push({seen_s, number});
    }

    void admit_until(double now_s) {
        while (next_s() <= now_s) {
            const auto [at_s, number] = on_the_way_.top();
            on_the_way_.pop();
            Replica& replica = *std::min_element(
                replicas_.begin(), replicas_.end(), [](const Replica& a, const Replica& b) {
                    return a.scheduler.load_tokens < b.scheduler.load_tokens;
                });
            if (seen_s_[number] == NEVER_S) {
                see(number, replica.take_in(at_s, seconds_in(number)));
                continue;
            }
            const int64_t max_len = rows_[number].max_len;
            if (max_len <= told_.max_model_len && replica.scheduler.could_run(max_len)) {
                replica.add(number, max_len);
            } else {
                told_.is_refused[number] = 1;
                end_one(at_s);
            }
        }
    }

    void launch(double now_s, const Replica* committed) {
        for (Replica& replica : replicas_)
            if (&replica == committed || !replica.is_in_flight())
                replica.launch(now_s, horizon_s(replica));
    }

    void finish_step(Replica& replica, double now_s) {
        const Numbers ended = replica.commit(now_s);
        admit_until(now_s);
        // After admission, because a client reads its answer before it asks again.
        for (int64_t request : ended) end_one(std::max(now_s, log.tokens.last_s(request)));
        launch(now_s, &replica);
    }

    // A request is over: its client sends the next one, and progress is told.
    void end_one(double now_s) {
        ++num_over_;
        if (told_.is_closed && next_ < told_.num_requests) {
            const double known_s = now_s + told_.answer_s;
            if (known_s < told_.limit_s) send_next(known_s);
        }
        if (num_over_ % PROGRESS_REQUESTS == 0 &&
            told_.on_progress(now_s, num_over_, told_.num_requests))
            throw Stopped();
    }

    // Until when nothing outside ``replica`` can reach it.
    double horizon_s(const Replica& replica) const {
        double first_s = next_s();
        if (told_.is_closed)
            for (const Replica& other : replicas_)
                if (&other != &replica) first_s = std::min(first_s, other.next_event_s());
        return first_s;
    }
};

}  // namespace gs

extern "C" {

// The run, to be read at its address and released; null where memory ran out.
gs::Outcome* gs_simulate(const gs::Told* told) {
    gs::Run* run = nullptr;
    try {
        run = new gs::Run(*told);
        run->to_the_end();
    } catch (const gs::Stopped&) {
        // Python knows, and raises.
    } catch (const std::bad_alloc&) {
        delete run;
        return nullptr;
    }
    run->finish();
    return &run->outcome;
}

void gs_release(gs::Outcome* outcome) {
    delete static_cast<gs::Run*>(outcome->run);
}
}
