/*
 * buffer.h
 *	  Bytes that grow up to a limit.
 *
 * A buffer that could not take what was appended, because of its limit or for
 * want of memory, is "failed" from then on and ignores further appends: so a
 * sequence of appends needs one check, at its end.
 */
#ifndef REGPILOT_BUFFER_H
#define REGPILOT_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Buffer
{
	char *data;	   /* owned; NUL-terminated, NULL while nothing was appended */
	size_t length; /* bytes in use, without the NUL */
	size_t size;   /* bytes allocated */
	size_t limit;  /* length never exceeds this */
	bool failed;
} Buffer;

extern void buffer_init(Buffer *buffer, size_t limit);
extern void buffer_free(Buffer *buffer);

/* Room for more bytes behind length, which the caller fills and adds; NULL: failed. */
extern char *buffer_reserve(Buffer *buffer, size_t more);

/* These return whether the buffer is still sound. */
extern bool buffer_append(Buffer *buffer, const void *bytes, size_t length);
extern bool buffer_append_string(Buffer *buffer, const char *string);
extern bool buffer_append_integer(Buffer *buffer, int64_t value);
extern bool buffer_printf(Buffer *buffer, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* Appends the string, which is UTF-8, as one of JSON (RFC 8259, 7), in quotes. */
extern bool buffer_append_json(Buffer *buffer, const char *string);

/* Removes length bytes at the front. */
extern void buffer_consume(Buffer *buffer, size_t length);

#endif
