/*
 * authorizer.h
 *	  Asks the database whether a key may pass.
 *
 * All requests share one connection, by group authorisation, which works as
 * group commit does; see authorizer.c. No verdict is ever kept: a key that is
 * revoked is refused by the next request.
 */
#ifndef REGPILOT_AUTHORIZER_H
#define REGPILOT_AUTHORIZER_H

#include "buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* regpilot.verdict */
typedef enum Verdict
{
	VERDICT_OK,
	VERDICT_INVALID,
	VERDICT_INACTIVE,
	VERDICT_EXPIRED,
	VERDICT_REVOKED,
	VERDICT_FORBIDDEN,
	VERDICT_RATE_LIMITED,
	VERDICT_UNAVAILABLE /* not judged: also what we say when the database does not answer */
} Verdict;

/* The verdict's name in SQL. */
extern const char *verdict_name(Verdict verdict);

/* Number of bytes, with the NUL, that a field of so many characters needs in UTF-8. */
#define AUTHORIZATION_TEXT(characters) (4 * (characters) + 1)

/*
 * A row of regpilot.authorize_many. A text is empty where the column is NULL;
 * numbers are valid only where their has_ flag is set.
 */
typedef struct Authorization
{
	Verdict verdict;
	bool has_limit; /* requests_per_minute */
	bool has_remaining;
	bool has_reset;
	int requests_per_minute;
	int remaining;
	int retry_after; /* seconds; 0 unless rate limited */
	int64_t reset;	 /* Unix seconds */
	char key_id[37];
	char project_id[37];
	char plan[64];
	char environment[16]; /* the key's own */
	char counted_as[16];  /* what the request counts under */
	char project[AUTHORIZATION_TEXT(200)];
	char name[AUTHORIZATION_TEXT(200)];
	char hint[AUTHORIZATION_TEXT(64)];
	char permissions[256]; /* a JSON array */
} Authorization;

/* False, after a message, when the settings cannot work. Does not need the database. */
extern bool authorizer_init(void) __attribute__((warn_unused_result));

/* Closes the connection; when nobody asks any more. */
extern void authorizer_finish(void);

/*
 * Fills in the answer for one request, within config.database_timeout ms.
 * permission NULL: any valid key. environment: one of dev, staging, prod, ci,
 * other, or NULL for the key's own; both are constants of the program, not
 * bytes of a request.
 */
extern void authorizer_ask(const char *key, size_t key_length, const char *permission,
						   const char *environment, Authorization *answer);

/* Whether a verdict can be had at the moment: asks about a key that nobody has. */
extern bool authorizer_works(void);

extern void authorizer_metrics(Buffer *out);

#endif
