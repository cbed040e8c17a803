/*
 * sse.c
 *	  Fuzz target: a stream of events, however it is cut into pieces.
 *
 * Input: a byte that says how it is cut, and one for the limit; then the stream.
 */
#include "fuzz.h"

#include "../sse.h"

#include <stdbool.h>

#define WITHOUT_LIMIT (SIZE_MAX / 4)

/* Adds an event to those found: its text and its data, with the lengths before them. */
static void
note(Buffer *events, const char *text, size_t length, const char *data, size_t data_length)
{
	buffer_printf(events, "event %zu %zu\n", length, data_length);
	buffer_append(events, text, length);
	buffer_append(events, data, data_length);
}

/* ---- the expected events, as plainly as can be ---- */

/* Gives the next line's length and moves on behind its end; false when no end is there. */
static bool
take_line(const char **text, const char *end, size_t *length)
{
	for (const char *c = *text; c < end; c++)
	{
		if (*c == '\r' || *c == '\n')
		{
			*length = (size_t) (c - *text);
			*text = c + 1;
			if (*c == '\r' && *text < end && **text == '\n')
				(*text)++;
			return true;
		}
	}
	return false;
}

/* The value of a line that is a data field; NULL: it is none. */
static const char *
data_value(const char *line, size_t length, size_t *value_length)
{
	size_t name = 0;

	while (name < length && line[name] != ':')
		name++;
	if (name != 4 || memcmp(line, "data", 4) != 0)
		return NULL;
	if (name < length)
		name++;
	if (name < length && line[name] == ' ')
		name++;
	*value_length = length - name;
	return line + name;
}

/* Notes all events of the stream; gives the length of the longest, or of the unfinished one. */
static size_t
expect(const char *text, size_t length, Buffer *events)
{
	const char *end = text + length;
	const char *line = text;
	Buffer event;
	Buffer data;
	size_t longest = 0;
	size_t fields = 0;

	buffer_init(&event, WITHOUT_LIMIT);
	buffer_init(&data, WITHOUT_LIMIT);
	while (line < end)
	{
		const char *start = line;
		const char *value;
		size_t value_length;
		size_t line_length = (size_t) (end - line);
		bool whole = take_line(&line, end, &line_length);

		if (line_length == 0 && event.length == 0)
			continue;
		buffer_append(&event, start, line_length);
		if (whole)
			buffer_append(&event, "\n", 1);
		if (event.length > longest)
			longest = event.length;
		if (!whole)
			break;

		if (line_length == 0)
		{
			note(events, event.data, event.length, data.length > 0 ? data.data : "", data.length);
			event.length = data.length = fields = 0;
			continue;
		}
		value = data_value(start, line_length, &value_length);
		if (value != NULL)
		{
			if (fields++ > 0)
				buffer_append(&data, "\n", 1);
			buffer_append(&data, value, value_length);
		}
	}
	buffer_free(&event);
	buffer_free(&data);
	return longest;
}

/* ---- what the parser finds ---- */

/* An event whose data is replaced is one event, with that data in one line if it had any. */
static void
check_replace(const SseEvent *event)
{
	static char text[] = "{\"a\":\n1}";
	Buffer data = {.data = text, .length = sizeof(text) - 1, .limit = sizeof(text)};
	Buffer replaced;
	SseParser parser;
	SseEvent again;

	buffer_init(&replaced, WITHOUT_LIMIT);
	sse_init(&parser, WITHOUT_LIMIT);
	CHECK(sse_replace_data(event, &data, &replaced));
	CHECK(sse_feed(&parser, replaced.data, replaced.length));
	CHECK(sse_next(&parser, &again));
	CHECK(again.length == replaced.length);
	if (event->data_length > 0)
		CHECK(strcmp(again.data, "{\"a\": 1}") == 0);
	else
		CHECK(again.data_length == 0 || strcmp(again.data, "{\"a\": 1}") == 0);
	CHECK(!sse_next(&parser, &again));
	sse_free(&parser);
	buffer_free(&replaced);
}

/* Feeds the stream in pieces of lengths that follow from cut; false: beyond the limit. */
static bool
parse(const char *text, size_t length, unsigned int cut, size_t limit, Buffer *events)
{
	SseParser parser;
	SseEvent event;
	bool fed = true;

	sse_init(&parser, limit);
	while (fed && length > 0)
	{
		size_t piece = cut == 0 ? length : cut == 1 ? 1 : 1 + cut % 23;

		if (cut > 1)
			cut = cut * 1103515245u + 12345u;
		if (piece > length)
			piece = length;
		fed = sse_feed(&parser, text, piece);
		text += piece;
		length -= piece;

		while (fed && sse_next(&parser, &event))
		{
			CHECK(event.length > 0 && event.length <= limit);
			CHECK(strlen(event.data) <= event.data_length);
			note(events, event.text, event.length, event.data, event.data_length);
			check_replace(&event);
		}
	}
	sse_free(&parser);
	return fed;
}

static bool
begins_with(const Buffer *whole, const Buffer *part)
{
	return part->length <= whole->length &&
		   (part->length == 0 || memcmp(whole->data, part->data, part->length) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	const char *text = (const char *) bytes + 2;
	Buffer expected;
	size_t longest;
	size_t limit;

	if (length < 2)
		return 0;
	limit = bytes[1];
	length -= 2;
	buffer_init(&expected, WITHOUT_LIMIT);
	longest = expect(text, length, &expected);

	/* At once, byte by byte, and in pieces: the same events. */
	for (unsigned int cut = 0; cut < 3; cut++)
	{
		Buffer events;

		buffer_init(&events, WITHOUT_LIMIT);
		CHECK(parse(text, length, cut < 2 ? cut : 2u + bytes[0], WITHOUT_LIMIT, &events));
		CHECK(events.length == expected.length);
		CHECK(begins_with(&expected, &events));
		buffer_free(&events);
	}

	/* With a limit: the same until it is exceeded, and byte by byte no sooner than it must. */
	for (unsigned int cut = 0; cut < 3; cut++)
	{
		Buffer events;
		bool fed;

		buffer_init(&events, WITHOUT_LIMIT);
		fed = parse(text, length, cut < 2 ? cut : 2u + bytes[0], limit, &events);
		CHECK(begins_with(&expected, &events));
		if (fed)
			CHECK(events.length == expected.length);
		if (cut == 1)
			CHECK(fed ? longest <= limit : longest >= limit);
		buffer_free(&events);
	}

	buffer_free(&expected);
	return 0;
}
