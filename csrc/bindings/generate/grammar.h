#pragma once

#include <string>

// What upstream's recursive parsers would overflow the stack on. All throw std::invalid_argument.
void check_grammar(const std::string & gbnf);
void check_template_depth(const std::string & source);
void check_json_depth(const std::string & name, const std::string & json);
