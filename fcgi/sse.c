/*
 * sse.c
 *	  Splits a stream of server-sent events into events.
 */
#include "sse.h"

#include <string.h>

void
sse_init(SseParser *parser, size_t limit)
{
	memset(parser, 0, sizeof(*parser));
	buffer_init(&parser->pending, limit);
	buffer_init(&parser->data, limit);
}

void
sse_free(SseParser *parser)
{
	buffer_free(&parser->pending);
	buffer_free(&parser->data);
}

bool
sse_feed(SseParser *parser, const char *bytes, size_t length)
{
	Buffer *pending = &parser->pending;
	char *end;

	buffer_consume(pending, parser->consumed);
	parser->scanned -= parser->consumed;
	parser->consumed = 0;

	end = buffer_reserve(pending, length);
	if (end == NULL)
		return false;

	/* A line ends in CR LF, LF or CR: make each one LF. */
	for (size_t i = 0; i < length; i++)
	{
		if (bytes[i] == '\n' && parser->after_cr)
		{
			parser->after_cr = false;
			continue;
		}
		parser->after_cr = bytes[i] == '\r';
		*end++ = parser->after_cr ? '\n' : bytes[i];
	}
	*end = '\0';
	pending->length = (size_t) (end - pending->data);
	return true;
}

static bool
is_data(const char *line, const char *newline)
{
	return newline - line >= 4 && memcmp(line, "data", 4) == 0 &&
		   (newline == line + 4 || line[4] == ':');
}

/* Collects the values of the event's data fields. */
static void
read_data(SseParser *parser, const char *line, const char *end)
{
	Buffer *data = &parser->data;
	bool first = true;

	data->length = 0;
	while (line < end)
	{
		const char *newline = memchr(line, '\n', (size_t) (end - line));
		const char *value = line + 5;

		if (is_data(line, newline))
		{
			if (!first)
				buffer_append(data, "\n", 1);
			first = false;
			if (value < newline && *value == ' ')
				value++;
			if (value < newline)
				buffer_append(data, value, (size_t) (newline - value));
		}
		line = newline + 1;
	}
}

bool
sse_next(SseParser *parser, SseEvent *event)
{
	Buffer *pending = &parser->pending;
	char *start;
	char *end;

	/* Empty lines before an event end nothing. */
	while (parser->consumed < pending->length && pending->data[parser->consumed] == '\n')
		parser->consumed++;
	if (parser->scanned < parser->consumed)
		parser->scanned = parser->consumed;
	if (parser->scanned == pending->length)
		return false;

	start = pending->data + parser->consumed;
	end = memmem(pending->data + parser->scanned, pending->length - parser->scanned, "\n\n", 2);
	if (end == NULL)
	{
		parser->scanned = pending->length - 1; /* the last byte may be the first of the two */
		return false;
	}
	end += 2;
	parser->consumed = parser->scanned = (size_t) (end - pending->data);

	read_data(parser, start, end);
	event->text = start;
	event->length = (size_t) (end - start);
	event->data = parser->data.length > 0 ? parser->data.data : "";
	event->data_length = parser->data.length;
	return true;
}

bool
sse_replace_data(const SseEvent *event, const Buffer *data, Buffer *result)
{
	const char *end = event->text + event->length;
	bool first = true;

	for (const char *line = event->text; line < end;)
	{
		const char *newline = memchr(line, '\n', (size_t) (end - line));

		if (!is_data(line, newline))
			buffer_append(result, line, (size_t) (newline + 1 - line));
		else if (first)
		{
			size_t from = result->length;

			first = false;
			buffer_append_string(result, "data: ");
			buffer_append(result, data->data, data->length);
			for (size_t i = from; i < result->length; i++)
			{
				if (result->data[i] == '\n')
					result->data[i] = ' ';
			}
			buffer_append(result, "\n", 1);
		}
		line = newline + 1;
	}
	return !result->failed;
}
