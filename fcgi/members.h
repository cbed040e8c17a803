/*
 * members.h
 *	  Changes members of a JSON object in its text.
 *
 * What is not changed stays as it was written, byte for byte: numbers of any
 * length, escapes, the order of the members. The text is one that a parser has
 * accepted as an object already; of any other these say false, no more.
 */
#ifndef REGPILOT_MEMBERS_H
#define REGPILOT_MEMBERS_H

#include "buffer.h"

/* Finds the value of a member; of several with that name the last, which is the one that counts. */
extern bool members_find(const char *text, size_t length, const char *name, const char **value,
						 size_t *value_length) __attribute__((warn_unused_result));

/*
 * Appends the object to result, without any member that has one of the names (lower
 * case, ended by NULL) or that a careless reader might take for it; and with the
 * members in added, such as "a":1,"b":2, before the others.
 */
extern bool members_replace(const char *text, size_t length, const char *const *names,
							const char *added, Buffer *result) __attribute__((warn_unused_result));

#endif
