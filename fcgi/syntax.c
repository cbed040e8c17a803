/*
 * syntax.c
 *	  Whether a text is JSON (RFC 8259), without reading what it says.
 *
 * Each part is a function that takes a place in the text and gives that behind the
 * part, or NULL where it is none.
 */
#include "syntax.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Values within each other: jansson's limit. */
#define DEPTH_MAX 2048
/* Digits of an integer that is in a double's range for sure. */
#define SMALL_MAX 300

static const char *
skip_white(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t'))
		at++;
	return at;
}

static const char *
skip_digits(const char *at, const char *end)
{
	while (at < end && *at >= '0' && *at <= '9')
		at++;
	return at;
}

/* Whether the number, which may be a large one, is within a double's range. */
static bool
fits_double(const char *number, size_t length)
{
	char *copy = strndup(number, length);
	bool fits = copy != NULL && !isinf(strtod(copy, NULL));

	free(copy);
	return fits;
}

static const char *
number(const char *start, const char *end)
{
	const char *at = start + (*start == '-');
	const char *digits = at;
	bool small;

	at = skip_digits(at, end);
	if (at == digits || (*digits == '0' && at > digits + 1))
		return NULL;
	small = at - digits <= SMALL_MAX;
	if (at < end && *at == '.')
	{
		digits = at + 1;
		at = skip_digits(digits, end);
		if (at == digits)
			return NULL;
	}
	if (at < end && (*at == 'e' || *at == 'E'))
	{
		digits = at + 1;
		if (digits < end && (*digits == '-' || *digits == '+'))
			digits++;
		at = skip_digits(digits, end);
		if (at == digits)
			return NULL;
		small = false;
	}
	return small || fits_double(start, (size_t) (at - start)) ? at : NULL;
}

/* The four digits of an escaped character; -1: they are none. */
static int
hex(const char *at, const char *end)
{
	int value = 0;

	if (end - at < 4)
		return -1;
	for (int i = 0; i < 4; i++)
	{
		char c = at[i];

		if (c >= '0' && c <= '9')
			value = value << 4 | (c - '0');
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			value = value << 4 | ((c | 0x20) - 'a' + 10);
		else
			return -1;
	}
	return value;
}

/* Of a string, behind a backslash. */
static const char *
escape(const char *at, const char *end, bool is_name)
{
	int value;

	if (at == end)
		return NULL;
	if (*at != 'u')
		return *at != '\0' && strchr("\"\\/bfnrt", *at) != NULL ? at + 1 : NULL;

	value = hex(at + 1, end);
	if (value < 0 || (value == 0 && is_name) || (value >= 0xdc00 && value <= 0xdfff))
		return NULL;
	at += 5;
	if (value >= 0xd800 && value <= 0xdbff)
	{
		if (end - at < 6 || at[0] != '\\' || at[1] != 'u')
			return NULL;
		value = hex(at + 2, end);
		if (value < 0xdc00 || value > 0xdfff)
			return NULL;
		at += 6;
	}
	return at;
}

/* A character of more than one byte (RFC 3629, 4). */
static const char *
long_character(const char *at, const char *end)
{
	const unsigned char *byte = (const unsigned char *) at;
	ptrdiff_t length = byte[0] >= 0xf0 ? 4 : byte[0] >= 0xe0 ? 3 : 2;

	if (byte[0] < 0xc2 || byte[0] > 0xf4 || end - at < length)
		return NULL;
	if ((byte[0] == 0xe0 && byte[1] < 0xa0) || (byte[0] == 0xed && byte[1] > 0x9f) ||
		(byte[0] == 0xf0 && byte[1] < 0x90) || (byte[0] == 0xf4 && byte[1] > 0x8f))
		return NULL;
	for (ptrdiff_t i = 1; i < length; i++)
	{
		if ((byte[i] & 0xc0) != 0x80)
			return NULL;
	}
	return at + length;
}

/* From its quote on. */
static const char *
string(const char *at, const char *end, bool is_name)
{
	at++;
	while (at != NULL && at < end)
	{
		unsigned char c = (unsigned char) *at;

		if (c == '"')
			return at + 1;
		if (c < ' ')
			return NULL;
		if (c == '\\')
			at = escape(at + 1, end, is_name);
		else if (c < 0x80)
			at++;
		else
			at = long_character(at, end);
	}
	return NULL;
}

/* The name of a member, up to its value. */
static const char *
name(const char *at, const char *end)
{
	if (at == end || *at != '"')
		return NULL;
	at = string(at, end, true);
	if (at == NULL)
		return NULL;
	at = skip_white(at, end);
	return at < end && *at == ':' ? skip_white(at + 1, end) : NULL;
}

static const char *
word(const char *at, const char *end, const char *expected)
{
	size_t length = strlen(expected);

	return (size_t) (end - at) >= length && memcmp(at, expected, length) == 0 ? at + length : NULL;
}

/* A value that has none within it. */
static const char *
simple_value(const char *at, const char *end)
{
	switch (*at)
	{
		case '"':
			return string(at, end, false);
		case 't':
			return word(at, end, "true");
		case 'f':
			return word(at, end, "false");
		case 'n':
			return word(at, end, "null");
		default:
			return number(at, end);
	}
}

bool
syntax_is_json(const char *text, size_t length)
{
	char closing[DEPTH_MAX]; /* what ends each of the objects and arrays that are open */
	int depth = 0;			 /* of them */
	const char *end = text + length;
	const char *at = skip_white(text, end);

	for (;;)
	{
		bool closed = false;

		/* a value begins here */
		if (at == NULL || at == end || depth == DEPTH_MAX)
			return false;
		if (*at == '{' || *at == '[')
		{
			closing[depth++] = *at == '{' ? '}' : ']';
			at = skip_white(at + 1, end);
			closed = at < end && *at == closing[depth - 1];
			if (!closed)
			{
				if (closing[depth - 1] == '}')
					at = name(at, end);
				continue;
			}
		}
		else
		{
			at = simple_value(at, end);
			if (at == NULL)
				return false;
		}

		/* it has ended, and with it perhaps those around it */
		for (;;)
		{
			if (closed)
			{
				depth--;
				at++;
			}
			at = skip_white(at, end);
			if (depth == 0)
				return at == end;
			closed = at < end && *at == closing[depth - 1];
			if (!closed)
				break;
		}
		if (at == end || *at != ',')
			return false;
		at = skip_white(at + 1, end);
		if (closing[depth - 1] == '}')
			at = name(at, end);
	}
}
