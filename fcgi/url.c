/*
 * url.c
 *	  What is in a request's address.
 */
#include "url.h"

#include <string.h>

/* Bytes of a query's name, and of its value. */
#define NAME_MAX_BYTES 64
#define VALUE_MAX_BYTES 4096

/* The value of a hexadecimal digit, or -1. */
static int
hex_value(char c)
{
	static const char digits[] = "0123456789abcdef";
	const char *digit = c != '\0' ? strchr(digits, c >= 'A' && c <= 'F' ? c + 'a' - 'A' : c) : NULL;

	return digit != NULL ? (int) (digit - digits) : -1;
}

bool
url_decode(const char *text, size_t length, Buffer *result)
{
	for (size_t i = 0; i < length; i++)
	{
		char c = text[i];

		if (c == '%')
		{
			int high = i + 2 < length ? hex_value(text[i + 1]) : -1;
			int low = high >= 0 ? hex_value(text[i + 2]) : -1;

			if (low < 0)
				return false;
			c = (char) (high << 4 | low);
			i += 2;
		}
		buffer_append(result, &c, 1);
	}
	return !result->failed;
}

/* The same of a part of a query; NULL: it is not, or no UTF-8. */
static json_t *
decode_part(const char *text, size_t length, size_t limit)
{
	Buffer plain;
	Buffer decoded;
	json_t *string = NULL;

	buffer_init(&plain, limit * 3);
	buffer_init(&decoded, limit);
	buffer_append(&plain, text, length);
	for (size_t i = 0; i < plain.length; i++)
	{
		if (plain.data[i] == '+')
			plain.data[i] = ' ';
	}
	buffer_append(&decoded, "", 0);
	if (!plain.failed && url_decode(plain.data, plain.length, &decoded) &&
		memchr(decoded.data, '\0', decoded.length) == NULL)
		string = json_stringn(decoded.data, decoded.length);
	buffer_free(&plain);
	buffer_free(&decoded);
	return string;
}

json_t *
url_query(const char *query)
{
	json_t *fields = json_object();

	while (fields != NULL && *query != '\0')
	{
		size_t length = strcspn(query, "&");
		const char *equals = memchr(query, '=', length);
		size_t name_length = equals != NULL ? (size_t) (equals - query) : length;

		if (equals != NULL && name_length + 1 < length)
		{
			json_t *name = decode_part(query, name_length, NAME_MAX_BYTES);
			json_t *value = decode_part(equals + 1, length - name_length - 1, VALUE_MAX_BYTES);

			if (name == NULL || value == NULL ||
				json_object_set(fields, json_string_value(name), value) != 0)
			{
				json_decref(fields);
				fields = NULL;
			}
			json_decref(name);
			json_decref(value);
		}
		query += length;
		query += *query == '&';
	}
	return fields;
}
