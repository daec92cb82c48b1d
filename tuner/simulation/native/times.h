// Step times: looked up in the tables of a plan's timer, or asked of a timer in Python.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>

namespace gs {

// ``StepShape`` of engine/spec/steps.py; ``mode`` is a place in the run's list of modes.
struct Shape {
    int64_t mode = 0;
    int64_t num_seqs = 0;
    int64_t num_decodes = 0;
    int64_t num_prefill = 0;
    int64_t decode_context = 0;
    int64_t prefill_context = 0;
    int64_t prefill_pairs = 0;
    int64_t num_sampled = 0;

    int64_t num_tokens() const { return num_decodes + num_prefill; }
};

// A function of Python raised: the run is over, and Python knows why.
struct Stopped : std::runtime_error {
    Stopped() : std::runtime_error("stopped by the caller") {}
};

// ``Axis`` of tuner/hardware/tables.py.
struct Axis {
    const double* scaled;
    int64_t count;
    int64_t is_log;

    int64_t find(double x, double& share) const {
        const double value = is_log ? std::log(1.0 + x) : x;
        const int64_t place = std::lower_bound(scaled, scaled + count, value) - scaled;
        const int64_t left = std::min(std::max<int64_t>(place - 1, 0), count - 2);
        share = std::max(0.0, (value - scaled[left]) / (scaled[left + 1] - scaled[left]));
        return left;
    }
};

// ``Grid2``: log seconds [first.count][second.count].
inline double grid2(const Axis& first, const Axis& second, const double* logs, double x, double y) {
    double u, v;
    const int64_t i = first.find(x, u), j = second.find(y, v);
    const double* low = logs + i * second.count + j;
    const double* high = low + second.count;
    const double left = low[0] + v * (low[1] - low[0]);
    const double right = high[0] + v * (high[1] - high[0]);
    return std::exp(left + u * (right - left));
}

// What ``RooflineTimer`` of tuner/hardware/roofline.py looks up for the steps of one mode.
struct ModeTables {
    double* body;  // [tokens][stage], not a number where Python has not been asked yet
    double* tail;  // [sampled], likewise
    const double* floors;
    const double* factors;
    Axis decode_seqs, decode_context;
    const double* decode;
    Axis prefill_seqs, prefill_queries, prefix;
    const double* prefill;  // [prefix][seqs][queries]
    double shared_s;

    double attention(const Shape& shape) const {
        const double decodes = static_cast<double>(shape.num_decodes);
        const int64_t prefills = shape.num_seqs - shape.num_decodes;
        const double decode_s =
            shape.num_decodes
                ? grid2(decode_seqs, decode_context, decode, decodes,
                        static_cast<double>(shape.decode_context) / decodes)
                : 0.0;
        if (prefills <= 0 || shape.num_prefill <= 0) return decode_s;
        const double tokens = static_cast<double>(shape.num_prefill);
        const double queries = tokens / static_cast<double>(prefills);
        const double keys = static_cast<double>(shape.prefill_pairs) / tokens;
        const double before = std::max(0.0, keys - (queries + 1) / 2);
        double share;
        const int64_t layer = prefix.find(before, share);
        const int64_t size = prefill_seqs.count * prefill_queries.count;
        const double* logs = prefill + layer * size;
        double prefill_s =
            grid2(prefill_seqs, prefill_queries, logs, static_cast<double>(prefills), queries);
        if (share != 0.0) {
            const double next_s = grid2(prefill_seqs, prefill_queries, logs + size,
                                        static_cast<double>(prefills), queries);
            prefill_s = prefill_s + share * (next_s - prefill_s);
        }
        return prefill_s + std::max(0.0, decode_s - shared_s);
    }
};

// Both return 0, or something else where Python raised.
using Ask = int (*)(const Shape*, double* stage_s, double* host_s);
using Fill = int (*)(int64_t mode, int64_t tokens, int64_t sampled);

struct Host {
    double step_s, seq_s, request_s, prompt_token_s, prompt_step_s, exposed_s;
    double exposed_seq_s;
    int64_t is_overlapped;
};

// ``ServedTimer`` under ``ScaledTimer``; without ``modes`` every step is asked of Python.
struct Times {
    int64_t num_stages;
    const ModeTables* modes;
    Fill fill;
    Ask ask;
    Host host;
    double prefill_scale, decode_scale;
    int64_t is_scaled;

    // Seconds of each stage, and of the host.
    double of(const Shape& shape, double* stage_s) const {
        double host_s = 0.0;
        if (!modes) {
            if (ask(&shape, stage_s, &host_s)) throw Stopped();
            return host_s;
        }
        look_up(shape, stage_s);
        host_s = exposed(shape, *std::max_element(stage_s, stage_s + num_stages));
        if (!is_scaled) return host_s;
        const double factor = scale(shape);
        for (int64_t stage = 0; stage < num_stages; ++stage) stage_s[stage] *= factor;
        return factor * host_s;
    }

private:
    void look_up(const Shape& shape, double* stage_s) const {
        const ModeTables& tables = modes[shape.mode];
        const int64_t tokens = shape.num_tokens(), sampled = shape.num_sampled;
        const double* body = tables.body + tokens * num_stages;
        const double* tail = tables.tail + sampled;
        // The last number of a row is written last, by whatever thread fills it.
        if (std::isnan(body[num_stages - 1]) || std::isnan(*tail))
            if (fill(shape.mode, tokens, sampled)) throw Stopped();
        const double attention_s = tables.attention(shape);
        for (int64_t stage = 0; stage < num_stages; ++stage) {
            const double fixed_s = stage + 1 == num_stages ? body[stage] + *tail : body[stage];
            stage_s[stage] =
                std::max(tables.floors[stage], fixed_s + tables.factors[stage] * attention_s);
        }
    }

    double exposed(const Shape& shape, double slowest_s) const {
        const double prompts = static_cast<double>(shape.num_seqs - shape.num_decodes);
        double work_s = host.step_s + host.seq_s * static_cast<double>(shape.num_seqs) +
                        host.request_s * prompts +
                        host.prompt_token_s * static_cast<double>(shape.num_prefill) +
                        (prompts > 0 ? host.prompt_step_s : 0.0);
        if (host.is_overlapped) {
            const double hidden_s = num_stages == 1 ? slowest_s : 0.0;
            work_s = work_s > slowest_s ? work_s - hidden_s : 0.0;
            work_s += host.exposed_seq_s * static_cast<double>(shape.num_seqs);
        }
        return host.exposed_s + work_s;
    }

    double scale(const Shape& shape) const {
        if (prefill_scale == decode_scale || shape.num_prefill == 0) return decode_scale;
        const double share =
            static_cast<double>(shape.num_prefill) / static_cast<double>(shape.num_tokens());
        return decode_scale + (prefill_scale - decode_scale) * share;
    }
};

}  // namespace gs
