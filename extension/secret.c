/*-------------------------------------------------------------------------
 *
 * secret.c
 *		regpilot.secret, the type of a key on its way in.
 *
 * Input and receive hash what they are given, whatever it is, and the value
 * is the SHA-256 digest.  Output and send say "<redacted>".  So a parameter of
 * this type has no plaintext form that a log, a plan or a statistics view
 * could show, and a digest given as text is hashed once more and opens
 * nothing.
 *
 * One limit is the server's: of a parameter bound in text format it keeps the
 * text as given for the context of messages while
 * log_parameter_max_length_on_error is set.  Bind in binary format.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"

#include "compat.h"
#include "key.h"
#include "location.h"

PG_FUNCTION_INFO_V1(regpilot_secret_in);
PG_FUNCTION_INFO_V1(regpilot_secret_out);
PG_FUNCTION_INFO_V1(regpilot_secret_recv);
PG_FUNCTION_INFO_V1(regpilot_secret_send);
PG_FUNCTION_INFO_V1(regpilot_secret_digest);

static const char redacted[] = "<redacted>";

static Datum
secret_from_bytes(const char *bytes, size_t length)
{
	uint8 *secret = palloc(KEY_DIGEST_LENGTH);

	key_digest(bytes, length, secret);
	location_prefetch(secret); /* it is here to be authorized */
	return PointerGetDatum(secret);
}

Datum
regpilot_secret_in(PG_FUNCTION_ARGS)
{
	char *key = PG_GETARG_CSTRING(0);

	return secret_from_bytes(key, strlen(key));
}

Datum
regpilot_secret_out(PG_FUNCTION_ARGS)
{
	PG_RETURN_CSTRING(pstrdup(redacted));
}

Datum
regpilot_secret_recv(PG_FUNCTION_ARGS)
{
	StringInfo message = (StringInfo) PG_GETARG_POINTER(0);
	int length = message->len - message->cursor;

	return secret_from_bytes(pq_getmsgbytes(message, length), length);
}

Datum
regpilot_secret_send(PG_FUNCTION_ARGS)
{
	StringInfoData message;

	pq_begintypsend(&message);
	pq_sendbytes(&message, redacted, strlen(redacted));
	PG_RETURN_BYTEA_P(pq_endtypsend(&message));
}

/* The cast to bytea. */
Datum
regpilot_secret_digest(PG_FUNCTION_ARGS)
{
	bytea *digest = palloc(VARHDRSZ + KEY_DIGEST_LENGTH);

	SET_VARSIZE(digest, VARHDRSZ + KEY_DIGEST_LENGTH);
	memcpy(VARDATA(digest), PG_GETARG_POINTER(0), KEY_DIGEST_LENGTH);
	PG_RETURN_BYTEA_P(digest);
}
