/*
 * credentials.c
 *	  Fuzz target: which of the six headers' values is the key.
 *
 * Input: the values, with a NUL after each; "-" for a header that is absent.
 */
#include "fuzz.h"

#include "../credentials.h"

#include <ctype.h>
#include <regex.h>

#define ABSENT "-"

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* Takes the blanks at both ends off the piece of text. */
static void
strip(const char **from, const char **to)
{
	while (*from < *to && is_blank(**from))
		(*from)++;
	while (*to > *from && is_blank((*to)[-1]))
		(*to)--;
}

static bool
is_bearer(const char *from, const char *to)
{
	static const char scheme[] = "bearer ";

	for (int i = 0; scheme[i] != '\0'; i++)
	{
		if (from + i == to || tolower((unsigned char) from[i]) != scheme[i])
			return false;
	}
	return true;
}

/* What the README says, as plainly as can be: gives the length of the key, 0: there is none. */
static size_t
expected_key(const char *const values[CREDENTIAL_HEADERS], const char **key)
{
	for (int i = 0; i < CREDENTIAL_HEADERS; i++)
	{
		const char *from = values[i];
		const char *to;

		if (from == NULL)
			continue;
		to = from + strlen(from);
		strip(&from, &to);
		if (i >= 3) /* authorization, x-authorization, proxy-authorization */
		{
			/* blanks after the scheme belong to it, also where no key follows */
			if (is_bearer(from, values[i] + strlen(values[i])))
			{
				from += 7;
				strip(&from, &to);
				if (from > to)
					from = to;
			}
			else if (to - from < 3 || from[0] != 's' || from[1] != 'k' || from[2] != '_')
				continue;
		}
		if (from < to)
		{
			*key = from;
			return (size_t) (to - from);
		}
	}
	return 0;
}

/* A key of our own making, wherever in a text. */
static bool
expect_within(const char *text)
{
	static regex_t key;
	static bool compiled;

	if (!compiled)
		CHECK(regcomp(&key, "sk_((dev|staging|prod|ci)_)?[0-9a-z]{32}", REG_EXTENDED | REG_NOSUB) ==
			  0);
	compiled = true;
	return regexec(&key, text, 0, NULL, 0) == 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	const char *values[CREDENTIAL_HEADERS] = {NULL};
	char *copies[CREDENTIAL_HEADERS] = {NULL};
	const char *expected = NULL;
	size_t expected_length;
	Credential found;

	for (int i = 0; i < CREDENTIAL_HEADERS && length > 0; i++)
	{
		const uint8_t *end = memchr(bytes, '\0', length);
		size_t taken = end != NULL ? (size_t) (end - bytes) : length;

		copies[i] = strndup((const char *) bytes, taken);
		if (strcmp(copies[i], ABSENT) != 0)
			values[i] = copies[i];
		taken += end != NULL;
		bytes += taken;
		length -= taken;
	}

	expected_length = expected_key(values, &expected);
	CHECK(credentials_find(values, &found) == (expected_length > 0));
	if (expected_length > 0)
	{
		CHECK(found.key == expected);
		CHECK(found.length == expected_length);
	}

	if (values[0] != NULL)
		CHECK(credentials_within(values[0]) == expect_within(values[0]));

	for (int i = 0; i < CREDENTIAL_HEADERS; i++)
		free(copies[i]);
	return 0;
}
