#include "set/spec.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iomanip>
#include <limits>
#include <locale>
#include <sstream>
#include <stdexcept>

static void fail(const std::string & name, const std::string & what) {
    throw std::invalid_argument(name + ": " + what);
}

static std::vector<std::string> split_items(const std::string & name, const std::string & spec) {
    std::vector<std::string> items;
    std::string              item;
    for (char c : spec + ",") {
        if (c != ',' && c != ';') {
            item += c;
            continue;
        }
        const size_t first = item.find_first_not_of(" \t");
        if (first == std::string::npos) {
            fail(name, "empty item in '" + spec + "', expected N, N-M or N-M+STEP");
        }
        items.push_back(item.substr(first, item.find_last_not_of(" \t") - first + 1));
        item.clear();
    }
    return items;
}

// reads an unsigned number at pos, and moves pos behind it
static bool read_number(const std::string & s, size_t & pos, int32_t & value) {
    const size_t first = pos;
    int64_t      n     = 0;
    while (pos < s.size() && s[pos] >= '0' && s[pos] <= '9') {
        n = 10 * n + (s[pos++] - '0');
        if (n > INT32_MAX) {
            return false;
        }
    }
    value = (int32_t) n;
    return pos > first;
}

bool llama_skip_is_plan(const std::string & text) {
    return text.compare(0, 5, "auto:") == 0 || text.compare(0, 1, "@") == 0;
}

static bool read_half(const std::string & s, size_t & pos, int & half) {
    for (half = 0; half < LLAMA_SKIP_N_HALVES; ++half) {
        if (s.compare(pos, std::string::npos, llama_skip_half_names[half]) == 0) {
            pos = s.size();
            return true;
        }
    }
    return false;
}

llama_skip_ranges llama_skip_parse_layers(const std::string & name, const std::string & spec) {
    llama_skip_ranges ranges;
    if (spec == "none") {
        return ranges;
    }
    if (llama_skip_is_plan(spec)) {
        fail(name, "'" + spec +
                       "' is looked up when a model is loaded, as a value of --skip-layers or skip.plan; here "
                       "blocks are expected: N, N-M or N-M+STEP");
    }
    for (const auto & item : split_items(name, spec)) {
        llama_skip_range r   = { 0, 0, 1 };
        size_t           pos = 0;

        bool ok = read_number(item, pos, r.first);
        r.last  = r.first;
        if (ok && pos < item.size() && item[pos] == '-') {
            ok = read_number(item, ++pos, r.last);
            if (ok && pos < item.size() && item[pos] == '+') {
                ok = read_number(item, ++pos, r.step);
            }
        }
        if (ok && pos < item.size() && item[pos] == ':') {
            ok = read_half(item, ++pos, r.half);
        }
        if (!ok || pos != item.size()) {
            fail(name, "malformed item '" + item +
                           "', expected N, N-M or N-M+STEP, with :attn or :ffn behind it for a half of the blocks");
        }
        if (r.last < r.first) {
            fail(name, "reversed range '" + item + "', did you mean " + std::to_string(r.last) + "-" +
                           std::to_string(r.first) + "?");
        }
        if (r.step == 0) {
            fail(name, "step 0 in '" + item + "', the step has to be at least 1");
        }
        ranges.push_back(r);
    }
    return ranges;
}

llama_skip_ranges llama_skip_parse_blocks(const std::string & name, const std::string & spec) {
    const llama_skip_ranges ranges = llama_skip_parse_layers(name, spec);
    for (const auto & r : ranges) {
        if (r.half >= 0) {
            fail(name, "'" + spec + "' names halves of blocks, expected whole ones");
        }
    }
    return ranges;
}

// like strtof(), in the C locale whatever the program's is; infinity for what is too large or not a number
static bool read_float(const std::string & s, float & value) {
    std::string word = s.substr(std::min(s.find_first_not_of("+-"), s.size()));
    std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::tolower(c); });
    if (word == "nan" || word == "inf" || word == "infinity") {
        value = std::numeric_limits<float>::infinity();
        return true;
    }
    std::istringstream in(s);
    in.imbue(std::locale::classic());
    double number = 0.0;
    in >> std::noskipws >> number;
    const bool overflow = in.fail() && std::fabs(number) == std::numeric_limits<double>::max();
    if (in.fail() && !overflow) {
        return false;
    }
    value = overflow ? std::numeric_limits<float>::infinity() : (float) number;
    in.clear();
    return in.peek() == std::istringstream::traits_type::eof();
}

std::string llama_skip_number_str(float value) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out << value; // 6 digits
    float same = 0.0f;
    if (!read_float(out.str(), same) || same != value) {
        out.str("");
        out << std::setprecision(9) << value;
    }
    return out.str();
}

llama_skip_scales llama_skip_parse_scale(
    const std::string & name, const std::string & spec, const char * each, const char * one) {
    llama_skip_scales scales;
    for (const auto & item : split_items(name, spec)) {
        const size_t      colon = item.find(':');
        const std::string text  = colon == std::string::npos ? item : item.substr(colon + 1);

        int32_t gap = -1;
        size_t  pos = 0;
        if (colon != std::string::npos && (!read_number(item, pos, gap) || pos != colon)) {
            fail(name, "malformed item '" + item + "', expected A or N:A");
        }

        float scale = 1.0f;
        if (!read_float(text, scale)) {
            fail(name, "malformed item '" + item + "', expected A or N:A");
        }
        if (!std::isfinite(scale)) {
            fail(name, "the scale '" + text + "' is not finite");
        }
        scales.emplace_back(gap, scale);
    }
    for (size_t i = 0; i < scales.size(); ++i) {
        if (scales[i].first < 0 && scales.size() > 1) {
            fail(name, "'" + spec + "' mixes one scale for every " + each + " with others, expected A or N:A,...");
        }
        for (size_t j = 0; j < i; ++j) {
            if (scales[i].first == scales[j].first) {
                fail(name, std::string("the ") + one + " " + std::to_string(scales[i].first) + " is named twice in '" +
                               spec + "'");
            }
        }
    }
    return scales;
}

llama_skip_mask llama_skip_named_layers(
    const std::string & name, const llama_skip_ranges & ranges, int32_t n_layer, int half) {
    llama_skip_mask mask;
    for (const auto & r : ranges) {
        if (r.last >= n_layer) {
            fail(name, "block " + std::to_string(r.last) + " is out of range, the model has blocks 0-" +
                           std::to_string(n_layer - 1));
        }
        for (int64_t il = r.first; il <= r.last && r.half == half; il += r.step) {
            mask.set(il);
        }
    }
    return mask;
}

void llama_skip_resolve_layers(
    const std::string & name, const llama_skip_ranges & ranges, int32_t n_layer, llama_skip & skip) {
    skip.out = llama_skip_named_layers(name, ranges, n_layer);
    for (int half = 0; half < LLAMA_SKIP_N_HALVES; ++half) {
        skip.half[half] = llama_skip_named_layers(name, ranges, n_layer, half) & ~skip.out;
    }
    if (n_layer > 0 && (int32_t) skip.empty().count() == n_layer) {
        fail(name, "every block is left out, at least one of blocks 0-" + std::to_string(n_layer - 1) + " has to stay");
    }
}

void llama_skip_resolve_scale(const std::string & name, const llama_skip_scales & scales, llama_skip & skip) {
    for (const auto & s : scales) {
        if (s.first >= 0) {
            if (s.first >= LLAMA_SKIP_MAX_LAYERS || !skip.gap_begins(s.first)) {
                fail(name, "no gap begins at block " + std::to_string(s.first) + ", the blocks left out are " +
                               (skip.out.any() ? llama_skip_layers_str(skip.out) : "none"));
            }
            skip.scale[s.first] = s.second;
            continue;
        }
        if (!skip.out.any()) {
            fail(name, "no block is left out, so there is no gap to scale");
        }
        for (int32_t il = 0; il < LLAMA_SKIP_MAX_LAYERS; ++il) {
            if (skip.gap_begins(il)) {
                skip.scale[il] = s.second;
            }
        }
    }
}

std::string llama_skip_layers_str(const llama_skip_mask & mask, const std::string & end) {
    std::string text;
    for (size_t il = 0; il < mask.size(); ++il) {
        if (!mask[il]) {
            continue;
        }
        size_t last = il;
        while (last + 1 < mask.size() && mask[last + 1]) {
            ++last;
        }
        text += (text.empty() ? "" : ",") + std::to_string(il);
        if (last > il) {
            text += "-" + std::to_string(last);
        }
        text += end;
        il = last;
    }
    return text;
}

std::string llama_skip_set_str(const llama_skip & skip, int32_t n_layer) {
    std::string text = llama_skip_layers_str(skip.file_blocks(skip.out, n_layer));
    for (int half = 0; half < LLAMA_SKIP_N_HALVES; ++half) {
        const std::string part = llama_skip_layers_str(
            skip.file_blocks(skip.half[half], n_layer), std::string(":") + llama_skip_half_names[half]);
        text += (text.empty() || part.empty() ? "" : ",") + part;
    }
    return text;
}

std::string llama_skip_scale_str(const llama_skip & skip) {
    std::string text;
    for (int32_t il = 0; il < LLAMA_SKIP_MAX_LAYERS; ++il) {
        if (skip.gap_begins(il) && skip.scale[il] != 1.0f) {
            text += (text.empty() ? "" : ",") + std::to_string(il) + ":" + llama_skip_number_str(skip.scale[il]);
        }
    }
    return text;
}

std::string llama_skip_disk_scale_str(const llama_skip & skip) {
    std::string text;
    for (int32_t il = 0; il < LLAMA_SKIP_MAX_LAYERS; ++il) {
        if (skip.disk.blocks[il] && !skip.out[il] && skip.disk.scale[il] != 1.0f) {
            text += (text.empty() ? "" : ",") + std::to_string(il) + ":" + llama_skip_number_str(skip.disk.scale[il]);
        }
    }
    return text;
}
