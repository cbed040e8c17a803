/*
 * credentials.c
 *	  Finds the API key among the headers of a request.
 */
#include "credentials.h"

#include <string.h>
#include <strings.h>

const char *const credential_params[CREDENTIAL_HEADERS] = {
	"HTTP_X_API_KEY",	  "HTTP_X_REGPILOT_KEY",  "HTTP_API_KEY",
	"HTTP_AUTHORIZATION", "HTTP_X_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION",
};

/* From this one on, a value is a scheme and its credentials (RFC 9110, 11.4), or a bare key. */
#define FIRST_WITH_SCHEME 3

/* Characters of a key after what it begins with. */
#define KEY_LENGTH 32

/* The value without the spaces and tabs around it (RFC 9110, 5.5). */
static Credential
trim(const char *value)
{
	Credential trimmed;

	trimmed.key = value + strspn(value, " \t");
	trimmed.length = strlen(trimmed.key);
	while (trimmed.length > 0 && strchr(" \t", trimmed.key[trimmed.length - 1]) != NULL)
		trimmed.length--;
	return trimmed;
}

bool
credentials_find(const char *const values[CREDENTIAL_HEADERS], Credential *found)
{
	for (int i = 0; i < CREDENTIAL_HEADERS; i++)
	{
		if (values[i] == NULL)
			continue;

		*found = trim(values[i]);
		if (i >= FIRST_WITH_SCHEME)
		{
			if (strncasecmp(found->key, "Bearer ", 7) == 0)
				*found = trim(found->key + 7);
			else if (strncmp(found->key, "sk_", 3) != 0)
				continue;
		}
		if (found->length > 0)
			return true;
	}
	return false;
}

/*
 * "sk_", an environment or none, and 32 digits and small letters; see key.c of the extension.
 * The checksum among these is not looked at: a key with a slip of the pen is no less secret.
 */
bool
credentials_within(const char *text)
{
	static const char *const environments[] = {"", "dev_", "staging_", "prod_", "ci_"};

	while ((text = strstr(text, "sk_")) != NULL)
	{
		text += 3;
		for (size_t i = 0; i < sizeof(environments) / sizeof(environments[0]); i++)
		{
			size_t length = strlen(environments[i]);

			if (strncmp(text, environments[i], length) == 0 &&
				strspn(text + length, "0123456789abcdefghijklmnopqrstuvwxyz") >= KEY_LENGTH)
				return true;
		}
	}
	return false;
}
