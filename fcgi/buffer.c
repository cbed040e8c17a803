/*
 * buffer.c
 *	  Bytes that grow up to a limit.
 */
#include "buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
buffer_init(Buffer *buffer, size_t limit)
{
	memset(buffer, 0, sizeof(*buffer));
	buffer->limit = limit;
}

void
buffer_free(Buffer *buffer)
{
	free(buffer->data);
	buffer_init(buffer, buffer->limit);
}

char *
buffer_reserve(Buffer *buffer, size_t more)
{
	if (buffer->failed || more > buffer->limit - buffer->length)
	{
		buffer->failed = true;
		return NULL;
	}
	if (buffer->length + more + 1 > buffer->size)
	{
		size_t size = buffer->size < 256 ? 256 : buffer->size;
		char *data;

		while (size < buffer->length + more + 1)
			size *= 2;
		data = realloc(buffer->data, size);
		if (data == NULL)
		{
			buffer->failed = true;
			return NULL;
		}
		buffer->data = data;
		buffer->size = size;
	}
	return buffer->data + buffer->length;
}

bool
buffer_append(Buffer *buffer, const void *bytes, size_t length)
{
	char *end = buffer_reserve(buffer, length);

	if (end == NULL)
		return false;
	memcpy(end, bytes, length);
	end[length] = '\0';
	buffer->length += length;
	return true;
}

bool
buffer_append_string(Buffer *buffer, const char *string)
{
	return buffer_append(buffer, string, strlen(string));
}

bool
buffer_append_integer(Buffer *buffer, int64_t value)
{
	char digits[20];
	char *first = digits + sizeof(digits);
	uint64_t rest = value < 0 ? -(uint64_t) value : (uint64_t) value;

	do
		*--first = (char) ('0' + rest % 10);
	while ((rest /= 10) > 0);
	if (value < 0)
		*--first = '-';
	return buffer_append(buffer, first, (size_t) (digits + sizeof(digits) - first));
}

bool
buffer_printf(Buffer *buffer, const char *format, ...)
{
	va_list arguments;
	size_t room = 128; /* enough for most, which are then formatted once */
	char *end;

	for (;;)
	{
		int length;

		if (room > buffer->limit - buffer->length)
			room = buffer->limit - buffer->length;
		end = buffer_reserve(buffer, room);
		if (end == NULL)
			return false;

		va_start(arguments, format);
		length = vsnprintf(end, room + 1, format, arguments);
		va_end(arguments);
		if (length >= 0 && (size_t) length <= room)
		{
			buffer->length += (size_t) length;
			return true;
		}
		*end = '\0';
		if (length < 0 || (size_t) length > buffer->limit - buffer->length)
		{
			buffer->failed = true;
			return false;
		}
		room = (size_t) length;
	}
}

bool
buffer_append_json(Buffer *buffer, const char *string)
{
	buffer_append(buffer, "\"", 1);
	for (;;)
	{
		size_t plain = 0;

		while ((unsigned char) string[plain] >= ' ' && string[plain] != '"' &&
			   string[plain] != '\\')
			plain++;
		buffer_append(buffer, string, plain);
		string += plain;
		if (*string == '\0')
			return buffer_append(buffer, "\"", 1);
		if (*string == '"' || *string == '\\')
			buffer_printf(buffer, "\\%c", *string);
		else
			buffer_printf(buffer, "\\u%04x", *string);
		string++;
	}
}

void
buffer_consume(Buffer *buffer, size_t length)
{
	if (length == 0)
		return;
	buffer->length -= length;
	memmove(buffer->data, buffer->data + length, buffer->length + 1);
}
