#include "bindings/generate/grammar.h"

#include <algorithm>
#include <stdexcept>

static const size_t n_depth_max = 1000;  // a level takes some hundred bytes of a stack that may have half a MiB
static const size_t n_rules_max = 10000; // a chain of rules is followed by recursion too

static void check_depth(const std::string & name, size_t depth) {
    if (depth > n_depth_max) {
        throw std::invalid_argument(
            name + ": nested too deeply, at most " + std::to_string(n_depth_max) + " levels are supported");
    }
}

// the end of a text in quotes, or of a class of characters, that begins at i
static size_t skip_quoted(const std::string & text, size_t i, char end) {
    for (++i; i < text.size() && text[i] != end; ++i) {
        i += text[i] == '\\' ? 1 : 0;
    }
    return i;
}

void check_grammar(const std::string & gbnf) {
    size_t depth   = 0;
    size_t n_rules = 0;
    for (size_t i = 0; i < gbnf.size(); ++i) {
        switch (gbnf[i]) {
            case '"':
                i = skip_quoted(gbnf, i, '"');
                break;
            case '[':
                i = skip_quoted(gbnf, i, ']');
                break;
            case '#':
                i = std::min(gbnf.find('\n', i), gbnf.size());
                break;
            case '(':
                check_depth("grammar", ++depth);
                break;
            case ')':
                depth -= depth > 0 ? 1 : 0;
                break;
            case ':':
                n_rules += gbnf.compare(i, 3, "::=") == 0 ? 1 : 0;
                break;
            default:
                break;
        }
    }
    if (n_rules > n_rules_max) {
        throw std::invalid_argument("grammar: " + std::to_string(n_rules) +
                                    " rules may be nested too deeply, at most " + std::to_string(n_rules_max) +
                                    " are supported");
    }
}

void check_json_depth(const std::string & name, const std::string & json) {
    size_t depth = 0;
    for (size_t i = 0; i < json.size(); ++i) {
        if (json[i] == '"') {
            i = skip_quoted(json, i, '"');
        } else if (json[i] == '[' || json[i] == '{') {
            check_depth(name, ++depth);
        } else if (json[i] == ']' || json[i] == '}') {
            depth -= depth > 0 ? 1 : 0;
        }
    }
}
