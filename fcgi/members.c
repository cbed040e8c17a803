/*
 * members.c
 *	  Changes members of a JSON object in its text (RFC 8259).
 */
#include "members.h"

#include <ctype.h>
#include <jansson.h>
#include <string.h>

typedef struct Scan
{
	const char *at;
	const char *end;
	bool begun; /* a member has been read */
} Scan;

typedef struct Member
{
	const char *name; /* as written, between its quotes */
	size_t name_length;
	const char *value;
	const char *end; /* of the value */
} Member;

static bool
at_char(const Scan *scan, char c)
{
	return scan->at < scan->end && *scan->at == c;
}

static void
skip_white(Scan *scan)
{
	while (at_char(scan, ' ') || at_char(scan, '\t') || at_char(scan, '\n') || at_char(scan, '\r'))
		scan->at++;
}

/* Past white space, the character, and white space. */
static bool
skip_char(Scan *scan, char c)
{
	skip_white(scan);
	if (!at_char(scan, c))
		return false;
	scan->at++;
	skip_white(scan);
	return true;
}

static bool
skip_string(Scan *scan)
{
	if (!at_char(scan, '"'))
		return false;
	for (scan->at++; scan->at < scan->end; scan->at++)
	{
		if (*scan->at == '"')
		{
			scan->at++;
			return true;
		}
		if (*scan->at == '\\' && scan->at + 1 < scan->end)
			scan->at++;
	}
	return false;
}

static bool
skip_value(Scan *scan)
{
	const char *start = scan->at;
	int depth = 0;

	while (scan->at < scan->end)
	{
		char c = *scan->at;

		if (depth == 0 && scan->at > start && strchr(",}] \t\n\r", c) != NULL)
			return true;
		if (c == '"')
		{
			if (!skip_string(scan))
				return false;
		}
		else
		{
			depth += (c == '{' || c == '[') - (c == '}' || c == ']');
			scan->at++;
		}
		if (depth < 0)
			return false;
		if (depth == 0 && (c == '"' || c == '}' || c == ']'))
			return true;
	}
	return false;
}

static bool
begin(Scan *scan, const char *text, size_t length)
{
	*scan = (Scan){.at = text, .end = text + length};
	return skip_char(scan, '{');
}

/* Reads the next member; false at the end of the object. *sound: the text is as it should be. */
static bool
next(Scan *scan, Member *member, bool *sound)
{
	*sound = true;
	if (skip_char(scan, '}'))
		return false;
	*sound = false;
	if (scan->begun && !skip_char(scan, ','))
		return false;
	scan->begun = true;

	member->name = scan->at + 1;
	if (!skip_string(scan))
		return false;
	member->name_length = (size_t) (scan->at - 1 - member->name);
	if (!skip_char(scan, ':'))
		return false;
	member->value = scan->at;
	*sound = skip_value(scan);
	member->end = scan->at;
	return *sound;
}

/*
 * Whether two names are the same, or are to a reader that disregards case: Go's
 * encoding/json does, and knows U+017F for another small s.
 */
static bool
is_alike(const char *text, size_t length, const char *name, bool exactly)
{
	if (exactly)
		return length == strlen(name) && memcmp(text, name, length) == 0;

	while (length > 0 && *name != '\0')
	{
		bool long_s = length > 1 && memcmp(text, "\xc5\xbf", 2) == 0;

		if ((long_s ? 's' : tolower((unsigned char) *text)) != *name)
			return false;
		text += long_s ? 2 : 1;
		length -= long_s ? 2 : 1;
		name++;
	}
	return length == 0 && *name == '\0';
}

static bool
is_named(const Member *member, const char *name, bool exactly)
{
	json_t *decoded;
	bool same;

	if (memchr(member->name, '\\', member->name_length) == NULL)
		return is_alike(member->name, member->name_length, name, exactly);

	decoded = json_loadb(member->name - 1, member->name_length + 2,
						 JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
	same = decoded != NULL &&
		   is_alike(json_string_value(decoded), json_string_length(decoded), name, exactly);
	json_decref(decoded);
	return same;
}

bool
members_find(const char *text, size_t length, const char *name, const char **value,
			 size_t *value_length)
{
	Scan scan;
	Member member;
	bool sound = begin(&scan, text, length);
	bool found = false;

	while (sound && next(&scan, &member, &sound))
	{
		if (is_named(&member, name, true))
		{
			*value = member.value;
			*value_length = (size_t) (member.end - member.value);
			found = true;
		}
	}
	return sound && found;
}

bool
members_replace(const char *text, size_t length, const char *const *names, const char *added,
				Buffer *result)
{
	Scan scan;
	Member member;
	bool sound = begin(&scan, text, length);
	bool first = added[0] == '\0';

	buffer_append(result, "{", 1);
	buffer_append_string(result, added);
	while (sound && next(&scan, &member, &sound))
	{
		const char *const *name = names;

		while (*name != NULL && !is_named(&member, *name, false))
			name++;
		if (*name != NULL)
			continue;
		if (!first)
			buffer_append(result, ",", 1);
		first = false;
		buffer_append(result, member.name - 1, (size_t) (member.end - member.name + 1));
	}
	buffer_append(result, "}", 1);
	return sound && !result->failed;
}
