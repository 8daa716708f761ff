#include "bindings/generate/grammar.h"

#include <algorithm>
#include <stdexcept>

static const size_t n_depth_max = 1000;  // a level takes some hundred bytes of a stack that may have half a MiB
static const size_t n_deep_max  = 10000; // a chain of rules is followed by recursion too

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
    size_t depth  = 0;
    size_t n_deep = 0; // of all rules together: one may lead to the next
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
                ++n_deep;
                break;
            case ')':
                depth -= depth > 0 ? 1 : 0;
                break;
            case ':':
                n_deep += gbnf.compare(i, 3, "::=") == 0 ? 1 : 0;
                break;
            default:
                break;
        }
    }
    if (n_deep > n_deep_max) {
        throw std::invalid_argument("grammar: " + std::to_string(n_deep) +
                                    " rules and groups may be nested too deeply, at most " +
                                    std::to_string(n_deep_max) + " are supported");
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

// Everything between "{{" or "{%" and its end may be one expression.
void check_template_depth(const std::string & source) {
    static const size_t n_expression_max = 32 * 1024;

    size_t n_blocks = 0;
    for (size_t i = source.find('{'); i != std::string::npos && i + 1 < source.size(); i = source.find('{', i + 1)) {
        if (source[i + 1] != '{' && source[i + 1] != '%') {
            continue;
        }
        const std::string end_mark = source[i + 1] == '{' ? "}}" : "%}";
        const size_t      end      = std::min(source.find(end_mark, i), source.size());
        size_t            depth    = 0;
        for (size_t j = i + 2; j < end; ++j) {
            const char c = source[j];
            if (c == '(' || c == '[' || c == '{') {
                check_depth("chat_template", ++depth);
            } else if (c == ')' || c == ']' || c == '}') {
                depth -= depth > 0 ? 1 : 0;
            }
        }
        if (end - i > n_expression_max) {
            throw std::invalid_argument("chat_template: an expression of more than 32 KiB may be nested too deeply");
        }
        const size_t word = std::min(source.find_first_not_of("-+ \t\n", i + 2), source.size());
        if (source[i + 1] == '%' && source.compare(word, 3, "end") == 0) {
            n_blocks -= n_blocks > 0 ? 1 : 0;
        } else if (source[i + 1] == '%' &&
                   (source.compare(word, 3, "if ") == 0 || source.compare(word, 4, "for ") == 0)) {
            check_depth("chat_template", ++n_blocks);
        }
        i = std::min(end, source.size() - 1);
    }
}
