/*
 * syntax.h
 *	  Whether a text is JSON, without reading what it says.
 */
#ifndef REGPILOT_SYNTAX_H
#define REGPILOT_SYNTAX_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Whether jansson would read the text as one value, of any type: by RFC 8259, in
 * UTF-8, with numbers that fit a double, whole surrogate pairs, no NUL in a name,
 * and at most 2048 values within each other. Takes a fraction of its time, and no
 * memory.
 */
extern bool syntax_is_json(const char *text, size_t length) __attribute__((warn_unused_result));

#endif
