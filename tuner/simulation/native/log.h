// What a run leaves behind: tokens' stamps, segments of steps and counts (tuner/simulation/log.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "times.h"

namespace gs {

// ``Segment``; its ends are ``num_ends`` of the log's from ``first_end`` on.
struct Segment {
    int64_t replica;
    Shape shape;
    int64_t first_end;
    int64_t num_ends;
    int64_t num_waiting;
    double start_s;
    double busy_s;
    double kv_usage;
};

// ``TokenLog``: the stamps of request i lie from ``first[i]`` up to ``first[i + 1]``.
struct TokenLog {
    const int64_t* first;
    int64_t* next;
    double* stamps;

    bool lacks(int64_t row) const { return next[row] != first[row + 1]; }
    double last_s(int64_t row) const { return stamps[next[row] - 1]; }
    void put(int64_t row, double when_s) { stamps[next[row]++] = when_s; }
};

// ``Outlet`` of outlet.py.
struct Outlet {
    double busy_s;
    double free_s = 0.0;
    // The last step whose tokens were sent: its end, and since when there was time for them.
    double last_s = 0.0, before_s = 0.0;

    // When a request is in that comes at ``at_s`` and takes ``seconds``: after what was there.
    double take_in(double at_s, double seconds) {
        if (last_s <= at_s) return free_s = std::max(free_s, at_s) + seconds;
        // Tokens of a step that ends later have their stamps; the time for them comes later.
        const double sent_s = free_s - std::max(before_s, last_s);
        before_s = std::max(before_s, at_s) + seconds;
        free_s = std::max(before_s, last_s) + sent_s;
        return before_s;
    }

    void stamp(TokenLog& log, const std::vector<int64_t>& rows, double when_s) {
        if (busy_s == 0.0) {
            for (int64_t row : rows) log.put(row, when_s);
            return;
        }
        const double begun_s = begin(when_s);
        double sent = 0.0;
        for (int64_t row : rows) log.put(row, begun_s + busy_s * ++sent);
        free_s = begun_s + busy_s * sent;
    }

    // One token for each of ``rows`` at each of the ends, as far as it lacks them.
    void stamp_each(TokenLog& log, const std::vector<int64_t>& rows,
                    const std::vector<double>& ends_s) {
        if (busy_s == 0.0) {
            for (int64_t row : rows)
                for (double end_s : ends_s) {
                    if (!log.lacks(row)) break;
                    log.put(row, end_s);
                }
            return;
        }
        for (double end_s : ends_s) {
            const double begun_s = begin(end_s);
            double sent = 0.0;
            for (int64_t row : rows)
                if (log.lacks(row)) log.put(row, begun_s + busy_s * ++sent);
            free_s = begun_s + busy_s * sent;
        }
    }

private:
    double begin(double end_s) {
        before_s = free_s;
        last_s = end_s;
        return std::max(free_s, end_s);
    }
};

struct ModeCount {
    int64_t steps = 0;
    double seconds = 0.0;
};

// ``RunCounts`` of one replica.
struct Counts {
    std::vector<ModeCount> modes;
    int64_t last_mode = -1;
    int64_t mode_switches = 0;
    int64_t decode_tokens_in_base = 0;
    int64_t scheduled_steps = 0;
};

struct RunLog {
    TokenLog tokens;
    std::vector<Segment> segments;
    std::vector<double> ends_s;
    int64_t base_mode;

    void record(Segment segment, const double* ends, int64_t num_ends, Counts& counts) {
        segment.first_end = static_cast<int64_t>(ends_s.size());
        segment.num_ends = num_ends;
        ends_s.insert(ends_s.end(), ends, ends + num_ends);
        segments.push_back(segment);
        const Shape& shape = segment.shape;
        counts.modes[shape.mode].steps += num_ends;
        counts.modes[shape.mode].seconds += segment.busy_s;
        if (shape.mode == base_mode) counts.decode_tokens_in_base += shape.num_decodes * num_ends;
        counts.mode_switches += counts.last_mode >= 0 && counts.last_mode != shape.mode;
        counts.last_mode = shape.mode;
    }
};

}  // namespace gs
