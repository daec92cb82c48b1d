// How long steps take, learned on the way: engine/modes/pace.py.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gs {

constexpr double PACE_DECAY = 0.98;
constexpr int64_t MIN_SAMPLES = 4;

// ``_Line``: weighted least squares of seconds over tokens.
struct PaceLine {
    double weight = 0.0, tokens = 0.0, seconds = 0.0, tokens_sq = 0.0, cross = 0.0;
    int64_t count = 0, most_tokens = 0;

    void observe(int64_t num_tokens, double step_s) {
        const double n = static_cast<double>(num_tokens);
        weight = weight * PACE_DECAY + 1.0;
        tokens = tokens * PACE_DECAY + n;
        seconds = seconds * PACE_DECAY + step_s;
        tokens_sq = tokens_sq * PACE_DECAY + n * n;
        cross = cross * PACE_DECAY + n * step_s;
        ++count;
        most_tokens = std::max(most_tokens, num_tokens);
    }

    // ``StepPace.seconds``; below 0 while too little was seen.
    double expected_s(int64_t num_tokens) const {
        if (count < MIN_SAMPLES) return -1.0;
        const double mean_n = tokens / weight, mean_s = seconds / weight;
        const double variance = tokens_sq / weight - mean_n * mean_n;
        const double covariance = cross / weight - mean_n * mean_s;
        double fixed_s = 0.0, per_token_s = mean_s / std::max(mean_n, 1.0);
        if (variance >= 0.25) {
            const double steepest_s = mean_s / std::max(mean_n, 1e-9);
            per_token_s = std::min(std::max(covariance / variance, 0.0), steepest_s);
            fixed_s = mean_s - per_token_s * mean_n;
        }
        const double n = static_cast<double>(num_tokens), most = static_cast<double>(most_tokens);
        const double own_s = fixed_s + per_token_s * n;
        if (num_tokens <= most_tokens) return own_s;
        return std::max(own_s, (fixed_s + per_token_s * most) * n / most);
    }
};

// ``ahead_lead_s``.
inline double ahead_lead_s(double expected_s, double host_s) {
    return std::max(0.0015, 4.0 * host_s) + 0.1 * expected_s;
}

}  // namespace gs
