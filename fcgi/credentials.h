/*
 * credentials.h
 *	  Finds the API key among the headers of a request.
 */
#ifndef REGPILOT_CREDENTIALS_H
#define REGPILOT_CREDENTIALS_H

#include <stdbool.h>
#include <stddef.h>

#define CREDENTIAL_HEADERS 6

/* The headers looked at, in this order, by the names that CGI (RFC 3875, 4.1.18) gives them. */
extern const char *const credential_params[CREDENTIAL_HEADERS];

typedef struct Credential
{
	const char *key; /* within the header's value; not NUL-terminated */
	size_t length;	 /* > 0 */
} Credential;

/*
 * Takes the values of credential_params, NULL where the request has no such
 * header. The first one that carries a credential wins; false when none does.
 */
extern bool credentials_find(const char *const values[CREDENTIAL_HEADERS], Credential *found)
	__attribute__((warn_unused_result));

/* Whether something in the text looks like a key of RegPilot's own making. */
extern bool credentials_within(const char *text);

#endif
