/*
 * url.h
 *	  What is in a request's address.
 */
#ifndef REGPILOT_URL_H
#define REGPILOT_URL_H

#include "buffer.h"

#include <jansson.h>

/* Appends the text with its percent-encoding (RFC 3986, 2.1) undone; false: it is none, or too long. */
extern bool url_decode(const char *text, size_t length, Buffer *result)
	__attribute__((warn_unused_result));

/*
 * The fields of a query, "a=1&b=2", as an object of strings; "+" is a space there. Of
 * several with one name the last counts, and empty ones do not. NULL: it is no query of
 * UTF-8, or memory is short.
 */
extern json_t *url_query(const char *query) __attribute__((warn_unused_result));

#endif
